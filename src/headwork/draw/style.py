"""The look of every picture, in one place, and the way from a figure to deterministic SVG. Never touches pyplot."""

from __future__ import annotations

import hashlib
import html
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, cast

import matplotlib
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.text import Text
from matplotlib.textpath import text_to_path

from headwork.draw.colour import CATEGORIES, FAINT, INK, MUTED, PAPER
from headwork.draw.picture import Picture, require_alt, xml_safe
from headwork.errors import UserError

CM = 1 / 2.54
POINTS_PER_CM = 72 / 2.54
# DejaVu's letters are wide and tall: 7 points of it look like 8 of most faces.
SIZE, SMALL, TITLE = 7.0, 6.2, 7.6
FONT = "DejaVu Sans"
TEXT_WIDTH_CM = 16.0

_LOOK: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.labelsize": SIZE,
    "axes.linewidth": 0.6,
    "axes.prop_cycle": cycler(color=CATEGORIES),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": TITLE,
    "axes.titleweight": "bold",
    "axes.unicode_minus": True,
    "figure.constrained_layout.h_pad": 0.03,
    "figure.constrained_layout.w_pad": 0.03,
    "figure.facecolor": PAPER,
    "font.family": [FONT],
    "font.size": SIZE,
    "grid.color": FAINT,
    "grid.linewidth": 0.4,
    "hatch.linewidth": 0.4,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "path",
    "svg.hashsalt": "headwork",
    "text.color": INK,
    # Hinted widths at 72 dpi are rounded to whole points; the paths that we write are not hinted.
    "text.hinting": "none",
    "text.parse_math": False,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "xtick.labelsize": SMALL,
    "xtick.major.size": 2.5,
    "xtick.major.width": 0.6,
    "xtick.minor.size": 1.5,
    "xtick.minor.width": 0.4,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "ytick.labelsize": SMALL,
    "ytick.major.size": 2.5,
    "ytick.major.width": 0.6,
    "ytick.minor.size": 1.5,
    "ytick.minor.width": 0.4,
}


@contextmanager
def look() -> Iterator[None]:
    """Matplotlib's defaults with our look, whatever the user's own matplotlibrc says; restored afterwards."""
    defaults = {key: matplotlib.rcParamsDefault[key] for key in matplotlib.rcParamsDefault if key not in _NOT_STYLE}
    with matplotlib.rc_context(cast(Any, {**defaults, **_LOOK})):
        yield


_NOT_STYLE = {"backend", "backend_fallback", "interactive", "toolbar", "timezone", "date.epoch", "webagg.port"}


def new_figure(width_cm: float, height_cm: float) -> Figure:
    """A figure of this size, not known to pyplot. Its layout keeps all text inside; one pixel is one point."""
    if not (1.0 <= width_cm <= 100.0 and 0.5 <= height_cm <= 100.0):
        raise UserError(
            f"A picture of {width_cm:g} × {height_cm:g} cm was asked for; 1 to 100 cm each way can be drawn."
        )
    return Figure(figsize=(width_cm * CM, height_cm * CM), dpi=72, layout="constrained")


def figure_of(axes: Axes) -> Figure:
    """The figure that these axes stand in."""
    return cast(Figure, axes.get_figure(root=True))


def put_title(axes: Axes, text: str, width_cm: float, pad: float = 5.0) -> None:
    """Put a title over the axes, where there is one, in as many lines as this width asks for."""
    if text:
        axes.set_title(wrapped(text, width_cm, TITLE, "bold"), pad=pad)


def number(value: float, digits: int = 2) -> str:
    """A number for people: fixed decimals, fewer where the number is large, a true minus, no negative zero."""
    size = abs(value)
    digits = 0 if size >= 1000 else max(digits - 1, 0) if size >= 100 else digits
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", "\N{MINUS SIGN}")


def signed(value: float, digits: int = 2) -> str:
    """As `number`, with a plus before what is above zero."""
    text = number(value, digits)
    return text if text.startswith("\N{MINUS SIGN}") else f"+{text}"


def with_interval(value: float, low: float | None, high: float | None, digits: int = 2) -> str:
    """`0.92 [0.90, 0.95]`, or the number alone where there is no interval."""
    text = number(value, digits)
    if low is None or high is None:
        return text
    return f"{text} [{number(low, digits)}, {number(high, digits)}]"


def printable(text: str) -> str:
    """The text with white space made visible where it is the text, and code points our font lacks written out."""
    shown = {"\n": "↵", "\t": "⇥", "\r": "␍"}
    return "".join(shown.get(c) or (c if ord(c) in _glyphs() and c.isprintable() else f"\\u{ord(c):04x}") for c in text)


def token_text(token: str) -> str:
    """A token as print shows it: its spaces visible, control characters and missing glyphs written out."""
    return printable(token).replace(" ", "␣") or "∅"


def shorten(text: str, most: int) -> str:
    """The text in at most so many characters, with an ellipsis where it was cut."""
    return text if len(text) <= most else text[: most - 1] + "…"


@cache
def _glyphs() -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties(family=FONT))).get_charmap())


@cache
def text_width(text: str, size: float, weight: str = "normal") -> float:
    """The width of one line of text in points, as `finish` prints it."""
    font = FontProperties(family=FONT, weight=weight, size=size)
    # Not TextPath, which reads dollar signs as mathematics.
    return float(text_to_path.get_text_width_height_descent(printable(text), font, ismath=False)[0])


def wrapped(text: str, width_cm: float, size: float, weight: str = "normal") -> str:
    """The text broken between words into lines of at most this width; a word that is longer stays whole."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and text_width(longer, size, weight) > width_cm * POINTS_PER_CM:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def finish(figure: Figure, *, name: str, alt: str) -> Picture:
    """Save the figure as one SVG element: same figure, same bytes; role, name and description; ids nobody else has.

    Tick labels are written anew while drawing, so whoever sets them makes them printable; all other text is here.
    """
    alt = require_alt(alt)
    for text in cast("list[Text]", figure.findobj(Text)):
        text.set_text("\n".join(printable(line) for line in text.get_text().split("\n")))
    out = io.StringIO()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    if any("collapsed to zero" in str(warning.message) for warning in caught):
        width, height = figure.get_size_inches() / CM
        raise UserError(
            f"The text of the picture leaves no room in {width:.3g} × {height:.3g} cm; give it a larger size."
        )
    return Picture(_inline(out.getvalue(), name, alt), alt)


def _inline(svg: str, name: str, alt: str) -> str:
    """Matplotlib's SVG file as an element that can stand in a page beside others."""
    body = svg[svg.index("<svg") :].strip()
    body = re.sub(r"\s*<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"\n +", "\n", body)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', body))
    scope = "d" + hashlib.sha256(f"{alt}\0{body}".encode()).hexdigest()[:10]

    def own_id(match: re.Match[str]) -> str:
        return f' id="{scope}-{match[1]}"' if match[1] in used else ""

    body = re.sub(r' id="([^"]*)"', own_id, body)
    body = re.sub(r'(href="#|url\(#)', rf"\g<1>{scope}-", body)
    head, rest = body.split(">", 1)
    head += f' role="img" aria-label="{html.escape(" ".join(alt.split()))}" style="max-width:100%;height:auto"'
    label = f"\n <title>{html.escape(xml_safe(name))}</title>" if name else ""
    return f"{head}>{label}\n <desc>{html.escape(alt)}</desc>{rest}\n"
