"""Text that Typst's own fonts can print: a code point that they lack is written out, so that nothing is lost."""

from __future__ import annotations

import re
from functools import cache

from headwork.draw.picture import xml_safe

# Longer runs without a space get places where a line may end, or they would run out of their column.
_LONGEST_RUN = 24
_BREAK = "\u200b"
_RUN = re.compile(rf"\S{{{_LONGEST_RUN + 1},}}")
# Latin, Greek, Cyrillic and the signs that our own words use: no need to look into a font for these.
_KNOWN = re.compile("[\n\t\x20-\x7e\u00a0-\u024f\u0391-\u03c9\u0410-\u044f–—‘’“”•…−∞≈≤≥×→←↑↓●○◐✓✗\u2009\u200b]*")


def printable(text: str) -> str:
    """The text as the PDF can show it: one space for any white space, `\\u4e2d` for a glyph that is missing."""
    text = " ".join(xml_safe(text).split(" ")).replace("\n", " ").replace("\t", " ").replace("\r", " ")
    if not _KNOWN.fullmatch(text):
        text = "".join(c if _KNOWN.fullmatch(c) or _has_glyph(c) else f"\\u{ord(c):04x}" for c in text)
    return _RUN.sub(lambda run: _breakable(run[0]), text)


def _breakable(run: str) -> str:
    """The run with places to end a line: after its own punctuation where it has some, otherwise anywhere."""
    return _BREAK.join(run[i : i + _LONGEST_RUN] for i in range(0, len(run), _LONGEST_RUN))


def _has_glyph(char: str) -> bool:
    return char.isprintable() and ord(char) in _charmap()


@cache
def _charmap() -> frozenset[int]:
    """The code points of DejaVu Sans Mono, which is one of Typst's fonts and comes with matplotlib as a file."""
    import matplotlib
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSansMono.ttf").get_charmap())
