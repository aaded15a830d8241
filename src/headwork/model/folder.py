"""A model folder: `config.json` says what the network is, `weights.safetensors` holds its weights. Needs no torch.

A network of text has a `tokenizer.json` beside them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headwork.errors import UserError, unknown
from headwork.model.card import ModelCard
from headwork.model.config import TransformerConfig
from headwork.model.files import read_json

CONFIG = "config.json"
WEIGHTS = "weights.safetensors"
TOKENIZER = "tokenizer.json"
FORMAT = 1

_KINDS: dict[str, type] = {"format": int, "name": str, "architecture": dict, "card": dict, "weights_sha256": str}


@dataclass(frozen=True)
class Record:
    """What `config.json` states. `weights_sha256` is the hash that the weights file must have."""

    name: str
    architecture: TransformerConfig
    card: ModelCard
    weights_sha256: str

    def to_dict(self) -> dict[str, Any]:
        """The contents of `config.json`."""
        return {
            "format": FORMAT,
            "name": self.name,
            "architecture": self.architecture.to_dict(),
            "card": self.card.to_dict(),
            "weights_sha256": self.weights_sha256,
        }


def read_record(folder: Path) -> Record:
    """Read a model folder's `config.json`.

    Raises `UserError` where the folder, the file or a key is missing, a key is unknown, or a value makes no sense.
    """
    if not folder.is_dir():
        raise UserError(f"There is no model folder {folder}.")
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"{folder} is not a model folder: it has no {CONFIG}.")
    values = read_json(path)
    if "format" in values and values["format"] != FORMAT:
        raise UserError(f"{path} has format {values['format']!r}; this version of Headwork reads format {FORMAT}.")
    for key in values:
        if key not in _KINDS:
            raise unknown(f"key in {path}:", key, _KINDS)
    for key, kind in _KINDS.items():
        if key not in values:
            raise UserError(f"{path} lacks the key {key!r}.")
        if not isinstance(values[key], kind):
            raise UserError(f"{path} has {key} = {values[key]!r}; it must be a JSON {_JSON_NAMES[kind]}.")
    try:
        architecture = TransformerConfig.from_dict(values["architecture"])
        card = ModelCard.from_dict(values["card"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return Record(values["name"], architecture, card, values["weights_sha256"])


def read_card(folder: Path | str) -> ModelCard:
    """The card of a model folder, without importing torch or opening the weights. Raises `UserError`."""
    return read_record(Path(folder)).card


_JSON_NAMES = {int: "number", str: "string", dict: "object"}
