"""Which of the authors' layouts a checkpoint file has, by what it holds, so that it loads without being known by name.

Settings that an author ships beside a file are found by name: `cfg.json`, `config.json`, and `config_ID.json` beside
`model_ID.pt`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from headwork.errors import UserError

AUTHORS = "authors"
"""Stands for the layout that `recognise` finds."""


def settings_names(file: str) -> tuple[str, ...]:
    """The names that the settings of a checkpoint file of this name may have, the most particular first."""
    own = re.fullmatch(r"model_(.+)\.\w+", file)
    return (*([f"config_{own[1]}.json"] if own else []), "cfg.json", "config.json")


def settings_among(file: str, names: Iterable[str]) -> str | None:
    """Which of these files beside it has the settings of a checkpoint file; None where none has."""
    return next((name for name in settings_names(file) if name in set(names)), None)


def settings_beside(path: Path) -> Path | None:
    """The file with the settings of a checkpoint file; None where there is none."""
    return next((found for name in settings_names(path.name) if (found := path.with_name(name)).is_file()), None)


def recognise(state: Mapping[str, Any], where: str) -> str:
    """The name of the layout that these tensors have. Raises `UserError` where it is none that is known."""
    bare = state.get("model")
    if isinstance(bare, Mapping):
        return "llama2.c" if "model_args" in state else "nanda"
    if {"W_x", "W_y", "W", "W_U"} <= state.keys():
        return "group-mlp"
    if {"x_embed", "y_embed", "embed.W_E"} <= state.keys():
        return "group-transformer"
    if "L0_attn_W_Q" in state:
        return "max-of-two"
    if "transformer.wte.weight" in state and "config" in state:
        return "llm-viz"
    if {"conv1.weight", "conv2.weight", "fc1.weight", "fc2.weight"} <= state.keys():
        return "casper-cnn"
    if "embed.W_E" in state:
        # Both Zhong's and TransformerLens's; Zhong joins the heads' output matrices into one.
        output = getattr(state.get("blocks.0.attn.W_O"), "ndim", 3)
        return "clock-pizza" if output == 2 else "transformer-lens"
    names = ", ".join(sorted(map(str, state))[:3]) or "nothing"
    raise UserError(
        f"{where} holds {names}, which is none of the authors' layouts; if it is another, import it with "
        f"`headwork models import {where} --layout LAYOUT --out DIR`."
    )
