"""Networks to disk and back: model folders of safetensors, never pickle; nothing is used before it is checked."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors
import torch
from safetensors.torch import save as to_bytes
from torch import Tensor

from headwork.errors import UserError
from headwork.model.card import ModelCard
from headwork.model.config import TransformerConfig
from headwork.model.files import kind_of, pickled, sha256_of
from headwork.model.folder import CONFIG, TOKENIZER, WEIGHTS, Record, read_record
from headwork.model.outline import outline
from headwork.model.transformer import Transformer
from headwork.store.atomic import plain_errors, write_file, write_folder

if TYPE_CHECKING:
    from headwork.model.tokenizer import Tokenizer

TIED = "unembed.weight"
"""The parameter that a network with tied embeddings shares with `embed.weight`; it is not written."""


def save(model: Transformer, folder: Path | str, card: ModelCard) -> Path:
    """Write a model folder in one step and return its path; the hashes on the card are filled in.

    The network's tokenizer goes with it, where it has one. Saving the same network with the same card again changes
    nothing. Raises `UserError` where the folder already holds something else or cannot be written.
    """
    folder = Path(folder)
    weights = to_bytes(_own_state(model), metadata={"format": "pt"})
    digest = hashlib.sha256(weights).hexdigest()
    tokenizer = b"" if model.tokenizer_source is None else model.tokenizer.to_json().encode()
    card = dataclasses.replace(
        card, sha256=digest, tokenizer=hashlib.sha256(tokenizer).hexdigest() if tokenizer else ""
    )
    record = Record(card.name, model.config, card, digest)
    config = json.dumps(record.to_dict(), indent=2, ensure_ascii=False) + "\n"
    with plain_errors(folder):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    if not folder.exists():
        with write_folder(folder) as temporary:
            write_file(temporary / WEIGHTS, weights)
            if tokenizer:
                write_file(temporary / TOKENIZER, tokenizer)
            write_file(temporary / CONFIG, config)
    if not _holds(folder, config, record):
        raise UserError(f"{folder} already holds something else; choose another folder or remove it.")
    return folder


def load(folder: Path | str, dtype: torch.dtype | None = None) -> Transformer:
    """Read a model folder; the network is on the CPU, in float32 unless `dtype` says otherwise, and carries its card.

    Names, shapes, types, finiteness and the sha256 of all weights are checked before a network is made of them. Raises
    `UserError` that names what is wrong.
    """
    folder = Path(folder)
    if folder.is_file():
        raise pickled(folder) if kind_of(folder) == "torch" else UserError(f"{folder} is a file, not a model folder.")
    record = read_record(folder)
    path = folder / WEIGHTS
    if not path.is_file():
        raise UserError(f"{folder} has no {WEIGHTS}.")
    state = read_safetensors(path)
    check_weights(state, record.architecture, str(path))
    found = sha256_of(path)
    if found != record.weights_sha256:
        raise UserError(
            f"{path} has the sha256 {found}, but {CONFIG} records {record.weights_sha256}: the weights are not those "
            "that the folder describes."
        )
    model = assemble(record.architecture, state, record.card, dtype)
    if record.card.tokenizer:
        model.tokenizer_source = functools.partial(_own_tokenizer, folder / TOKENIZER, record.card.tokenizer)
    return model


def _own_tokenizer(path: Path, digest: str) -> Tokenizer:
    """The tokenizer of a model folder. Raises `UserError` where it is not the one that the card records."""
    from headwork.model.tokenizer import read_tokenizer

    found = sha256_of(path)
    if found != digest:
        raise UserError(f"{path} has the sha256 {found}, but {CONFIG} records {digest}.")
    return read_tokenizer(path)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file. Raises `UserError` where it is pickled, truncated or corrupt."""
    if kind_of(path) == "torch":
        raise pickled(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            # Cloned, since what safetensors hands out stays mapped to the file, and changes or crashes with it.
            return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is truncated or corrupt, or not safetensors ({error}).") from error


def check_weights(state: Mapping[str, Tensor], config: TransformerConfig, where: str) -> None:
    """Hold weights against an architecture. Raises `UserError` that names the first tensor that is amiss."""
    # A block has at least two matrices, so an absurd depth is found before that many blocks are made.
    expected = _shapes(config) if 2 * config.n_layers <= len(state) else None
    if expected is None:
        raise UserError(f"{where} holds {len(state)} tensors, too few for {config.n_layers} layers.")
    for name in sorted(set(state) - set(expected)):
        raise UserError(f"{where} holds a tensor {name} that this architecture does not have.")
    for name, shape in expected.items():
        if name not in state:
            raise UserError(f"{where} lacks the tensor {name} of shape {list(shape)}.")
        check_tensor(name, state[name], shape, where)


def check_tensor(name: str, tensor: Tensor, shape: tuple[int, ...], where: str) -> None:
    """Raise `UserError` unless a tensor has this shape, floating-point entries, and no NaN or infinity."""
    if tuple(tensor.shape) != shape:
        raise UserError(f"{where}: {name} has shape {list(tensor.shape)}, but {list(shape)} is expected.")
    if not tensor.is_floating_point():
        raise UserError(f"{where}: {name} is of type {tensor.dtype}; weights must be floating-point numbers.")
    if not tensor.isfinite().all():
        kind = "NaN" if tensor.isnan().any() else "infinite"
        raise UserError(f"{where}: {name} has {kind} entries; all weights must be finite.")


def assemble(
    config: TransformerConfig, state: Mapping[str, Tensor], card: ModelCard, dtype: torch.dtype | None = None
) -> Transformer:
    """A network of weights that `check_weights` has passed, in `dtype` (float32 by default), ready to be run."""
    model = outline(config)
    weights = {name: tensor.to(dtype or torch.float32).contiguous() for name, tensor in state.items()}
    if config.tied:
        weights[TIED] = weights["embed.weight"]
    model.load_state_dict(weights, assign=True)
    if config.tied:
        model.unembed.weight = model.embed.weight
    model.card = card
    return model.eval()


def _own_state(model: Transformer) -> dict[str, Tensor]:
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if model.config.tied:
        del state[TIED]
    return state


def _shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """The names and shapes that a weights file for this architecture has."""
    try:
        state = outline(config).state_dict()
    except (RuntimeError, TypeError, OverflowError) as error:  # sizes beyond what a tensor can have
        raise UserError("The sizes in the model's configuration are too large for any tensor.") from error
    return {name: tuple(tensor.shape) for name, tensor in state.items() if not (config.tied and name == TIED)}


def _holds(folder: Path, config: str, record: Record) -> bool:
    """Whether a folder is the very model folder that would be written."""
    digests = {WEIGHTS: record.weights_sha256}
    if record.card.tokenizer:
        digests[TOKENIZER] = record.card.tokenizer
    if not folder.is_dir() or {path.name for path in folder.iterdir()} != {CONFIG, *digests}:
        return False
    same = all(sha256_of(folder / name) == digest for name, digest in digests.items())
    return same and (folder / CONFIG).read_bytes() == config.encode()
