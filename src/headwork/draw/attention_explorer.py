"""Interactive attention: pick a head, point at a token, see where it looks. One self-contained HTML fragment."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

import numpy as np
import numpy.typing as npt

from headwork.draw import colour
from headwork.draw.checks import Array, numbers, same_length
from headwork.draw.picture import View, require_alt, xml_safe
from headwork.errors import UserError, unknown

# A byte per cell: 0–254 in proportion to the largest value, 255 for what was not measured.
_LEVELS, _MISSING = 254, 255
_RAMP_STEPS = 33


def attention_view(
    patterns: npt.ArrayLike,
    *,
    tokens: Sequence[str],
    heads: Sequence[str],
    alt: str,
    values_title: str = "attention",
    title: str = "",
    marked: Sequence[str] = (),
    start: str | None = None,
) -> View:
    """An explorer of patterns [head, query, key], one token per position, for mouse, touch and keyboard.

    `values_title` names the values; `marked` are the heads that a claim is about; `start` is the head shown first (the
    first marked one by default). Values are kept to 1/254 of the largest; NaN shows as not measured. Tokens may hold
    any text: it never becomes markup. Raises UserError for empty alt text, negative values, a head that is not among
    `heads`, or sizes that disagree.
    """
    alt = require_alt(alt)
    array = _checked(patterns, tokens, heads)
    for name in [*marked, *([] if start is None else [start])]:
        if name not in heads:
            raise unknown("head", name, heads)
    first = start or (marked[0] if marked else heads[0])
    top = float(np.nanmax(array)) if np.isfinite(array).any() else 0.0
    data = {
        "tokens": [xml_safe(token) for token in tokens],
        "heads": list(heads),
        "marked": [heads.index(name) for name in dict.fromkeys(marked)],
        "start": heads.index(first),
        "top": float(f"{top:.6g}"),
        "cells": base64.b64encode(_quantised(array, top).tobytes()).decode("ascii"),
        "title": values_title,
        "light": _ramp(colour.sequential(_RAMP_STEPS)),
        "dark": _ramp(colour.sequential_dark(_RAMP_STEPS)),
    }
    return View(_fragment(_json_for_script(data), title, alt), alt)


def _checked(patterns: npt.ArrayLike, tokens: Sequence[str], heads: Sequence[str]) -> Array:
    array = numbers(patterns, "The attention patterns", ["head", "query", "key"])
    if array.shape[1] != array.shape[2]:
        raise UserError(
            f"The attention patterns [head, query, key] have shape {array.shape}; queries and keys must agree."
        )
    same_length("head names", len(heads), "heads of the attention patterns", array.shape[0])
    same_length("tokens", len(tokens), "positions of the attention patterns", array.shape[1])
    for name in heads:
        if list(heads).count(name) > 1:
            raise UserError(
                f"The head {name!r} is named {list(heads).count(name)} times; every head needs its own name."
            )
    if (array < 0).any():
        raise UserError(f"The attention patterns hold a negative number ({np.nanmin(array):g}); use heatmap for those.")
    return array


def _quantised(array: Array, top: float) -> npt.NDArray[np.uint8]:
    """Each value as a byte."""
    share = np.nan_to_num(array, nan=0.0) / (top or 1.0)
    levels = np.rint(share * _LEVELS).astype(np.uint8)
    return np.where(np.isnan(array), np.uint8(_MISSING), levels)


def _ramp(rgb: Array) -> list[list[int]]:
    return (rgb * 255).round().astype(int).tolist()


def _json_for_script(data: object) -> str:
    """JSON that no text inside can end: neither `</script>` nor `<!--` survives, whatever a token says."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _fragment(data: str, title: str, alt: str) -> str:
    """The fragment; its class and its script are scoped by a hash of what it shows."""
    scope = "hw" + hashlib.sha256(f"{title}\0{alt}\0{data}".encode()).hexdigest()[:12]
    style = _asset("attention_explorer.css").replace("ROOT", f".{scope}")
    script = _asset("attention_explorer.js").replace("ROOT", scope)
    heading = f'<p class="title">{html.escape(title)}</p>' if title else ""
    name = html.escape(" ".join(alt.split()))
    return (
        f'<div class="{scope}" data-headwork="{scope}" role="group" aria-label="{name}">\n'
        f"<style>{style}</style>\n{heading}<noscript><p>{html.escape(alt)}</p></noscript>\n"
        f'<script type="application/json">{data}</script>\n<script>{script}</script>\n</div>\n'
    )


@cache
def _asset(name: str) -> str:
    return files("headwork.draw").joinpath(name).read_text(encoding="utf-8")
