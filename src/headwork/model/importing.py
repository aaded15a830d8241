"""Checkpoints in other layouts: read and converted in memory, or turned into a model folder once and for all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwork.errors import UserError
from headwork.model.card import ModelCard
from headwork.model.files import kind_of, read_json, sha256_of
from headwork.model.layouts import converter

if TYPE_CHECKING:
    from headwork.model.layouts.converted import Converted

HUB_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""The weights in a folder of the Hugging Face hub, the better format first."""


def import_checkpoint(
    file: Path | str,
    layout: str,
    out: Path | str,
    config: Path | str | Mapping[str, Any] | None = None,
    data: Path | str | Mapping[str, Any] | None = None,
) -> Path:
    """Convert a checkpoint file, or a folder of the hub, into the model folder `out`, and return its path.

    `config` holds settings that the file does not state, `data` the training distribution; each is a mapping or a JSON
    file. The same import again changes nothing. Raises `UserError` where the file, the layout or the settings are no
    good, or `out` holds something else.
    """
    from headwork.model.checkpoints import assemble, check_weights, save

    file = Path(file)
    converted = read_checkpoint(file, layout, _mapping(config) or {})
    weights = file if file.is_file() else hub_weights(file)
    card = ModelCard(
        name=file.stem if file.is_file() else file.name,
        description=f"imported from the {layout} layout",
        source=f"{weights.name}, sha256 {sha256_of(weights)}",
        licence="not stated",
        training=converted.training,
        data=_mapping(data) or converted.data,
        inferred=converted.inferred,
    )
    check_weights(converted.state, converted.architecture, str(file))
    return save(assemble(converted.architecture, converted.state, card), Path(out), card)


def read_checkpoint(file: Path, layout: str, config: Mapping[str, Any]) -> Converted:
    """Read and convert a checkpoint file, or a folder of the hub with its own `config.json`, which `config` overrules.

    Raises `UserError`.
    """
    convert = converter(layout)
    if file.is_dir():
        return convert(_read_weights(hub_weights(file)), {**read_json(file / "config.json"), **config})
    return convert(_read_weights(file), config)


def hub_weights(folder: Path) -> Path:
    """The weights in a folder of the hub. Raises `UserError` where there are none."""
    for name in HUB_WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder} has no weights: neither {' nor '.join(HUB_WEIGHTS)} is there.")


def _read_weights(path: Path) -> dict[str, Any]:
    from headwork.model.checkpoints import read_safetensors
    from headwork.model.layouts.torch_file import read_state

    return read_safetensors(path) if kind_of(path) == "safetensors" else read_state(path)


def _mapping(given: Path | str | Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if given is None else dict(given) if isinstance(given, Mapping) else read_json(Path(given))
