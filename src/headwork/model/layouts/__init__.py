"""Checkpoint layouts: one file each, which turns the tensors of others into an architecture and our weights.

A layout is a module with a function `convert(state, config) -> Converted`, and a function `read(path)` where its files
are neither safetensors nor PyTorch's. To add one, write the file and name it here. It is imported when it is used, by
an import statement that the hash of a result's code can follow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwork.errors import UserError, unknown

if TYPE_CHECKING:
    from headwork.model.layouts.converted import Converted

    Convert = Callable[[Mapping[str, Any], Mapping[str, Any]], Converted]
    Read = Callable[[Path], Mapping[str, Any]]


def _transformer_lens() -> Convert:
    from headwork.model.layouts.transformer_lens import convert

    return convert


def _nanda() -> Convert:
    from headwork.model.layouts.nanda import convert

    return convert


def _gpt2() -> Convert:
    from headwork.model.layouts.gpt2 import convert

    return convert


def _gpt_neo() -> Convert:
    from headwork.model.layouts.gpt_neo import convert

    return convert


def _gpt_neox() -> Convert:
    from headwork.model.layouts.gpt_neox import convert

    return convert


def _llama() -> Convert:
    from headwork.model.layouts.llama import convert

    return convert


def _llama2c() -> Convert:
    from headwork.model.layouts.llama2c import convert

    return convert


LAYOUTS: Mapping[str, Callable[[], Convert]] = {
    "transformer-lens": _transformer_lens,
    "nanda": _nanda,
    "gpt2": _gpt2,
    "gpt-neo": _gpt_neo,
    "gpt-neox": _gpt_neox,
    "llama": _llama,
    "llama2.c": _llama2c,
}
"""The name a user gives, and where to get the function that reads the layout."""

HUB_LAYOUTS: Mapping[str, str] = {
    "gpt2": "gpt2",
    "gpt_neo": "gpt-neo",
    "gpt_neox": "gpt-neox",
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "llama",
    "qwen3": "llama",
}
"""The `model_type` in a Hugging Face `config.json`, and the layout that reads such a folder."""


def converter(layout: str) -> Convert:
    """The function that reads a layout: takes what the file holds and the settings beside it.

    Raises `UserError` for an unknown layout.
    """
    if layout not in LAYOUTS:
        raise unknown("checkpoint layout", layout, LAYOUTS)
    return LAYOUTS[layout]()


def reader(layout: str) -> Read | None:
    """The function that reads the layout's own files; None where they are safetensors or PyTorch's."""
    if layout == "llama2.c":
        from headwork.model.layouts.llama2c import read

        return read
    return None


_TRANSFORMER_LENS_KEYS = {"act_fn", "d_head", "n_heads", "n_layers"}


def is_hub(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is of the hub: Hugging Face's, or TransformerLens's for its own toy networks there."""
    return "model_type" in config or config.keys() >= _TRANSFORMER_LENS_KEYS


def hub_layout(config: Mapping[str, Any], where: str) -> str:
    """The layout for a configuration of the hub. Raises `UserError` for a family that is not read yet."""
    if "model_type" not in config and is_hub(config):
        return "transformer-lens"
    family = str(config.get("model_type"))
    if family not in HUB_LAYOUTS:
        raise UserError(
            f"{where} is of the architecture family {family!r}; families that Headwork reads: {', '.join(HUB_LAYOUTS)}."
        )
    return HUB_LAYOUTS[family]
