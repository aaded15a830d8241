"""What drawing returns: a static picture (SVG) or an interactive view (an HTML fragment), each with its alt text."""

from __future__ import annotations

import html
import os
from dataclasses import dataclass
from pathlib import Path

from headwork.errors import UserError


def require_alt(alt: str) -> str:
    """The alt text, stripped. Raises UserError where it is empty: a picture that cannot be read aloud is unfinished."""
    if not alt.strip():
        raise UserError("A picture needs alt text that says what it shows, and the one given is empty.")
    return xml_safe(alt.strip())


def xml_safe(text: str) -> str:
    """The text with characters that XML 1.0 forbids (control characters, lone surrogates) replaced by U+FFFD."""
    return "".join(
        c if c in "\t\n\r" or " " <= c < "\ud800" or "\ue000" <= c <= "\ufffd" or c > "\uffff" else "\ufffd"
        for c in text
    )


@dataclass(frozen=True)
class Picture:
    """A static picture: `svg` is one `<svg>` element that can stand inline in a page, or alone in a file."""

    svg: str
    alt: str

    def _repr_svg_(self) -> str:
        return self.svg

    def _repr_html_(self) -> str:
        return self.svg

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the picture as an SVG file and return its path. Raises UserError where the file cannot be written."""
        return write_whole(path, '<?xml version="1.0" encoding="utf-8"?>\n' + self.svg)


@dataclass(frozen=True)
class View:
    """An interactive view. `html` is a fragment with its own style and script; several can stand in one page."""

    html: str
    alt: str

    def _repr_html_(self) -> str:
        return self.html

    def page(self) -> str:
        """The view as a whole HTML page."""
        return _PAGE.format(title=html.escape(self.alt), body=self.html)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the view as a whole page and return its path. Raises UserError where the file cannot be written."""
        return write_whole(path, self.page())


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>body {{ margin: 0 auto; padding: 1rem; max-width: 60rem; }}</style>
</head>
<body>
{body}
</body>
</html>
"""


def write_whole(path: str | os.PathLike[str], text: str) -> Path:
    """Write a text file so that a reader sees the old file or the whole new one, never a part."""
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"Cannot write the picture to {target}: {error.strerror or error}.") from error
    return target
