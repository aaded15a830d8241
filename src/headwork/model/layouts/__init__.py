"""Checkpoint layouts: one file each, which turns the tensors of others into an architecture and our weights.

A layout is a module with a function `convert(state, config) -> Converted`, or `build(state, config) -> Built` for a
network that is no transformer, and a function `read(path)` where its files are neither safetensors nor PyTorch's. To
add one, write the file and name it here. It is imported when it is used, by an import statement that the hash of a
result's code can follow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwork.errors import UserError, unknown
from headwork.model.layouts.recognise import AUTHORS

if TYPE_CHECKING:
    from headwork.model.layouts.converted import Built, Converted

    Build = Callable[[Mapping[str, Any], Mapping[str, Any]], Built]
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


def _clock_pizza() -> Convert:
    from headwork.model.layouts.clock_pizza import convert

    return convert


def _group_transformer() -> Convert:
    from headwork.model.layouts.group_composition import convert

    return convert


def _max_of_two() -> Convert:
    from headwork.model.layouts.max_of_two import convert

    return convert


def _llm_viz() -> Convert:
    from headwork.model.layouts.llm_viz import convert

    return convert


def _group_mlp() -> Build:
    from headwork.model.layouts.group_composition import build

    return build


def _casper_cnn() -> Build:
    from headwork.model.layouts.casper_cnn import build

    return build


LAYOUTS: Mapping[str, Callable[[], Convert]] = {
    "transformer-lens": _transformer_lens,
    "nanda": _nanda,
    "gpt2": _gpt2,
    "gpt-neo": _gpt_neo,
    "gpt-neox": _gpt_neox,
    "llama": _llama,
    "llama2.c": _llama2c,
    "clock-pizza": _clock_pizza,
    "group-transformer": _group_transformer,
    "max-of-two": _max_of_two,
    "llm-viz": _llm_viz,
}
"""The name a user gives, and where to get the function that reads the layout."""

MODULES: Mapping[str, Callable[[], Build]] = {"group-mlp": _group_mlp, "casper-cnn": _casper_cnn}
"""The same for networks that are no transformers."""

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

    Raises `UserError` for an unknown layout, and for one of networks that are no transformers.
    """
    if layout in MODULES:
        raise UserError(
            f"The layout {layout} is of networks that are no transformers; they are not converted into model folders "
            "but loaded from the authors' own files: give the file's path as the model."
        )
    if layout not in LAYOUTS:
        raise unknown("checkpoint layout", layout, LAYOUTS)
    return LAYOUTS[layout]()


def builder(layout: str) -> Build | None:
    """The function that reads the layout of a network that is no transformer; None for the layouts of transformers."""
    return MODULES[layout]() if layout in MODULES else None


def reader(layout: str, suffix: str = "") -> Read | None:
    """The function that reads the layout's own files; None where they are safetensors or PyTorch's.

    Where the layout is yet to be recognised, the file's suffix decides.
    """
    if layout == "llama2.c" or (layout == AUTHORS and suffix == ".bin"):
        from headwork.model.layouts.llama2c import read

        return read
    if layout == "max-of-two" or (layout == AUTHORS and suffix in (".npz", ".v")):
        from headwork.model.layouts.max_of_two import read as read_arrays

        return read_arrays
    if layout == "llm-viz" or (layout == AUTHORS and suffix == ".json"):
        from headwork.model.layouts.llm_viz import read as read_letters

        return read_letters
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
