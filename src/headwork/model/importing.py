"""Checkpoints in other layouts: read and converted in memory, or turned into a model folder once and for all."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwork.errors import UserError
from headwork.model.card import ModelCard
from headwork.model.files import kind_of, read_json
from headwork.model.layouts import builder, converter, reader
from headwork.model.layouts.recognise import AUTHORS, recognise
from headwork.model.shards import hub_weights, weight_files, weights_sha256

if TYPE_CHECKING:
    from headwork.model.layouts.converted import Built, Converted


def import_checkpoint(
    file: Path | str,
    layout: str,
    out: Path | str,
    config: Path | str | Mapping[str, Any] | None = None,
    data: Path | str | Mapping[str, Any] | None = None,
    tokenizer: Path | str | None = None,
) -> Path:
    """Convert a checkpoint file, or a folder of the hub, into the model folder `out`, and return its path.

    `config` holds settings that the file does not state, `data` the training distribution; each is a mapping or a JSON
    file. `tokenizer` is what `read_tokenizer` takes; a folder's own tokenizer is found without it. The same import
    again changes nothing. Raises `UserError` where the file, the layout, the settings or the tokenizer are no good, or
    `out` holds something else.
    """
    from headwork.model.checkpoints import assemble, check_weights, save
    from headwork.model.tokenizer import has_tokenizer, read_tokenizer

    file = Path(file)
    converted = read_checkpoint(file, layout, _mapping(config) or {})
    weights = file if file.is_file() else hub_weights(file)
    card = ModelCard(
        name=file.stem if file.is_file() else file.name,
        description=f"imported from the {layout} layout",
        source=f"{weights.name}, sha256 {weights_sha256(weights)}",
        licence="not stated",
        training=converted.training,
        data=_mapping(data) or converted.data,
        inferred=converted.inferred,
    )
    check_weights(converted.state, converted.architecture, str(file))
    model = assemble(converted.architecture, converted.state, card)
    if tokenizer is not None or (file.is_dir() and has_tokenizer(file)):
        model.tokenizer_source = functools.partial(read_tokenizer, tokenizer or file)
    return save(model, Path(out), card)


def read_checkpoint(file: Path, layout: str, config: Mapping[str, Any]) -> Converted:
    """Read and convert a checkpoint file, or a folder of the hub with its own `config.json`, which `config` overrules.

    Raises `UserError`.
    """
    convert = converter(layout)
    if file.is_dir():
        files = weight_files(hub_weights(file))
        return convert(_merged(files, layout), {**read_json(file / "config.json"), **config})
    return convert(_read_weights(file, layout), config)


def read_network(file: Path, layout: str, config: Mapping[str, Any]) -> Converted | Built:
    """Read a checkpoint as `read_checkpoint` does, also of a network that is no transformer.

    The layout `authors` stands for the one that the file's tensors show. Raises `UserError`.
    """
    if layout == AUTHORS:
        state = _read_weights(file, layout)
        layout = recognise(state, str(file))
    elif builder(layout) is None:
        return read_checkpoint(file, layout, config)
    else:
        state = _read_weights(file, layout)
    build = builder(layout)
    return converter(layout)(state, config) if build is None else build(state, config)


def _merged(files: tuple[Path, ...], layout: str) -> dict[str, Any]:
    """All tensors of the files. Raises `UserError` where two files hold the same."""
    found: dict[str, Any] = {}
    for file in files:
        tensors = _read_weights(file, layout)
        if twice := sorted(found.keys() & tensors.keys()):
            raise UserError(f"{file} holds the tensor {twice[0]}, and so does another file beside it.")
        found |= tensors
    return found


def _read_weights(path: Path, layout: str) -> Mapping[str, Any]:
    from headwork.model.checkpoints import read_safetensors
    from headwork.model.layouts.torch_file import read_state

    kind, read = kind_of(path), reader(layout, path.suffix)
    if kind in ("other", "npz") and read is not None:
        return read(path)
    return read_safetensors(path) if kind == "safetensors" else read_state(path)


def _mapping(given: Path | str | Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if given is None else dict(given) if isinstance(given, Mapping) else read_json(Path(given))
