"""What the report needs to know of a picture."""

from __future__ import annotations

import re

_WIDTH = re.compile(r'<svg[^>]*?\swidth="([\d.]+)(pt|px|)"')


def natural_width(svg: str) -> float | None:
    """The width in points that the picture was drawn for; None where it says none."""
    found = _WIDTH.search(svg)
    if found is None:
        return None
    return float(found[1]) * (1.0 if found[2] == "pt" else 0.75)
