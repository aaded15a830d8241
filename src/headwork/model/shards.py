"""The weights in a folder of the Hugging Face hub: one file, or several with an index that says what lies where."""

from __future__ import annotations

import hashlib
from pathlib import Path

from headwork.errors import UserError
from headwork.model.files import read_json, sha256_of

INDEX = "model.safetensors.index.json"
HUB_WEIGHTS = ("model.safetensors", INDEX, "pytorch_model.bin", "model_final.pth")
"""What is looked for in a folder of the hub, the better format first; the last is TransformerLens's own toys'."""


def hub_weights(folder: Path) -> Path:
    """The weights, or the index of the files that hold them. Raises `UserError` where there are none."""
    for name in HUB_WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder} has no weights: neither {' nor '.join(HUB_WEIGHTS)} is there.")


def weight_files(weights: Path) -> tuple[Path, ...]:
    """The files that hold the weights: the file itself, or those that an index names.

    Raises `UserError` where the index is damaged, or names a file that is not there or lies elsewhere.
    """
    if weights.name != INDEX:
        return (weights,)
    places = read_json(weights).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise UserError(f"{weights} lacks a weight_map of tensors to files.")
    names = sorted(set(places.values()))
    for name in names:
        if name != Path(name).name:
            raise UserError(f"{weights} names the file {name!r}, which is outside its folder.")
        if not (weights.parent / name).is_file():
            raise UserError(f"{weights} names the file {name}, which is not there.")
    return tuple(weights.parent / name for name in names)


def weights_sha256(weights: Path) -> str:
    """The sha256 of the weights file; of several, that of their sha256s, in the order of their names."""
    digests = [sha256_of(file) for file in weight_files(weights)]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
