"""Where networks come from: `zoo:NAME`, `hf:ORG/NAME`, `artifact:NAME`, or the path of a folder or checkpoint file.

`locate` says what a SPEC stands for without importing torch, so that a finished result is found quickly; `load` makes
the network.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from headwork.errors import UserError, nearest, unknown
from headwork.model.artifacts import artifact, artifacts, at_hand, fetch, tokenizer_of
from headwork.model.card import ModelCard
from headwork.model.config import TransformerConfig
from headwork.model.files import kind_of, read_json, sha256_of
from headwork.model.folder import CONFIG, WEIGHTS, read_record
from headwork.model.hub import snapshot
from headwork.model.importing import read_network
from headwork.model.layouts import hub_layout, is_hub
from headwork.model.layouts.recognise import AUTHORS, settings_among, settings_beside, settings_names
from headwork.model.shards import hub_weights, weights_sha256

if TYPE_CHECKING:
    import torch

    from headwork.model.layouts.converted import Built, Converted
    from headwork.model.tokenizer import Tokenizer
    from headwork.model.transformer import Transformer

Kind = Literal["zoo", "hf", "artifact", "folder", "file"]
DEVICES = ("cpu", "cuda")
_ACCEPTED = "a model is given as zoo:NAME, hf:ORG/NAME, artifact:NAME or the path of a model folder or checkpoint file"
_CHECKPOINTS = (".json", ".bin", ".v")
"""Suffixes of checkpoint files in the authors' own layouts, beside PyTorch's and numpy's, which their bytes show."""
ZOO = Path(__file__).parent / "zoo"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Located:
    """What a SPEC stands for.

    `sha256` is that of the weights; `path` a folder or file, None for an artefact that has to be fetched first;
    `layout` and `config` say how to read it, None and empty for Headwork's own model folders, which alone have their
    `architecture` known without opening the weights.
    """

    spec: str
    kind: Kind
    sha256: str
    card: ModelCard
    path: Path | None
    layout: str | None = None
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    architecture: TransformerConfig | None = None

    def identity(self) -> dict[str, Any]:
        """Plain data that fixes the network and what is known of its training data, wherever its files lie."""
        architecture = None if self.architecture is None else self.architecture.to_dict()
        return {
            "sha256": self.sha256,
            "layout": self.layout,
            "config": dict(self.config),
            "architecture": architecture,
            "data": None if self.card.data is None else dict(self.card.data),
        }


def load(spec: str, device: str = "cpu", dtype: torch.dtype | None = None) -> Any:
    """The network that a SPEC stands for, on a device, in float32 unless `dtype` says otherwise, with its card.

    It is a `Transformer`, or where the authors' network is none an `Adapted` (see `headwork.model.adapter`): which of
    them, only the SPEC can tell. Raises `UserError` for an unknown SPEC or device, and for weights that are missing,
    damaged or not what they should be.
    """
    check_device(device)
    found = locate(spec)
    if found.layout is None:
        from headwork.model.checkpoints import load as load_folder

        assert found.path is not None  # noqa: S101 - only artefacts can be elsewhere, and they have a layout
        model = load_folder(found.path, dtype)
        model.card = found.card
        return model.to(device)
    path = fetch(artifact(found.card.name)) if found.kind == "artifact" else found.path
    assert path is not None  # noqa: S101 - as above
    read = read_network(path, found.layout, {**_settings(found), **found.config})
    card = dataclasses.replace(
        found.card,
        training={**read.training, **found.card.training},
        data=found.card.data or read.data,
        inferred=read.inferred,
    )
    model = _assembled(read, card, found.spec, device, dtype)
    model.tokenizer_source = _tokenizer_source(found, path)
    return model


def load_transformer(spec: str, device: str = "cpu", dtype: torch.dtype | None = None) -> Transformer:
    """The network that a SPEC stands for, where a transformer is needed.

    Raises `UserError` as `load` does, and for a network that is none.
    """
    from headwork.model.transformer import Transformer

    model = load(spec, device, dtype)
    if not isinstance(model, Transformer):
        raise UserError(
            f"{spec} is no transformer, which this needs, but a {type(model.module).__name__} with the sites "
            f"{', '.join(model.sites)}."
        )
    return model


def _assembled(read: Converted | Built, card: ModelCard, where: str, device: str, dtype: torch.dtype | None) -> Any:
    """The network itself, its weights checked."""
    from headwork.model.layouts.converted import Converted

    if isinstance(read, Converted):
        from headwork.model.checkpoints import assemble, check_weights

        check_weights(read.state, read.architecture, where)
        return assemble(read.architecture, read.state, card, dtype).to(device)
    from headwork.model.adapter import adapt

    module = read.module.to(device=device, dtype=dtype)
    example = read.example.to(device)
    adapted = adapt(module.eval(), example.to(dtype) if dtype and example.is_floating_point() else example)
    adapted.card = card
    return adapted


def _settings(found: Located) -> dict[str, Any]:
    """The settings that an artefact's authors ship beside it; those of a file are in its `config` already."""
    if found.kind != "artifact":
        return {}
    wanted = artifact(found.card.name)
    name = settings_among(Path(wanted.file).name, wanted.beside)
    return {} if name is None else read_json(fetch(wanted.part(name)))


def _tokenizer_source(found: Located, path: Path) -> Callable[[], Tokenizer] | None:
    """What reads the tokenizer of a network in another layout when it is asked for; None where it has none."""

    def read() -> Tokenizer:
        from headwork.model.tokenizer import read_tokenizer

        return read_tokenizer(path if published is None else fetch(published))

    from headwork.model.tokenizer import has_tokenizer

    published = tokenizer_of(artifact(found.card.name)) if found.kind == "artifact" else None
    return read if published is not None or (path.is_dir() and has_tokenizer(path)) else None


def locate(spec: str) -> Located:
    """What a SPEC stands for, without torch; a network of the hub is downloaded if it is not in the hub's cache.

    Raises `UserError` that names the nearest valid SPEC.
    """
    kind, _, name = spec.partition(":")
    if kind == "zoo":
        if name not in zoo_names():
            raise unknown("zoo model", name, zoo_names())
        return _own(spec, "zoo", ZOO / name)
    if kind == "artifact":
        wanted = artifact(name)
        card = ModelCard(
            name=name,
            spec=spec,
            sha256=wanted.sha256,
            description=wanted.description,
            source=wanted.url,
            licence=wanted.licence,
            data=wanted.data,
        )
        return Located(
            spec=spec,
            kind="artifact",
            sha256=wanted.sha256,
            card=card,
            path=at_hand(wanted),
            layout=wanted.layout,
            config=wanted.config,
        )
    if kind == "hf":
        repo, _, revision = name.partition("@")
        found = snapshot(repo, revision or None)
        return _hub(spec, "hf", found.folder, repo, f"huggingface.co/{repo} at {found.commit}")
    return _folder(spec)


def zoo_names() -> list[str]:
    """The networks inside the package."""
    return sorted(path.parent.name for path in ZOO.glob(f"*/{CONFIG}"))


def check_device(device: str) -> None:
    """Raise `UserError` unless this is a device that the machine has."""
    if device not in DEVICES:
        raise unknown("device", device, DEVICES)
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UserError("This machine has no CUDA device that PyTorch can use; take --device cpu.")


def _folder(spec: str) -> Located:
    if not spec.strip():
        raise UserError(f"No model is named: {_ACCEPTED}.")
    path = Path(spec).expanduser()
    if path.is_file():
        return _file(spec, path)
    if not path.is_dir():
        raise _not_a_folder(spec)
    if (path / CONFIG).is_file() and is_hub(read_json(path / CONFIG)):
        return _hub(spec, "folder", path, path.resolve().name, str(path))
    return _own(spec, "folder", path)


def _file(spec: str, path: Path) -> Located:
    """A checkpoint in one of the authors' own layouts, with the settings beside it. Raises `UserError` for others."""
    kind = kind_of(path)
    settings = path.name in settings_names(path.name) or path.name == CONFIG
    if kind == "safetensors" or (kind == "other" and (settings or path.suffix not in _CHECKPOINTS)):
        raise UserError(
            f"{path} is a file; give the model folder that has it, or import it with `headwork models import`."
        )
    beside = settings_beside(path)
    card = ModelCard(name=path.stem, spec=spec, sha256=sha256_of(path), source=str(path), licence="not stated")
    return Located(
        spec=spec,
        kind="file",
        sha256=card.sha256,
        card=card,
        path=path,
        layout=AUTHORS,
        config={} if beside is None else read_json(beside),
    )


def _own(spec: str, kind: Kind, folder: Path) -> Located:
    record = read_record(folder)
    found = sha256_of(folder / WEIGHTS) if (folder / WEIGHTS).is_file() else record.weights_sha256
    return Located(
        spec=spec,
        kind=kind,
        sha256=found,
        card=dataclasses.replace(record.card, spec=spec),
        path=folder,
        architecture=record.architecture,
    )


def _hub(spec: str, kind: Kind, folder: Path, name: str, source: str) -> Located:
    config = read_json(folder / CONFIG)
    layout = hub_layout(config, spec)
    digest = weights_sha256(hub_weights(folder))
    card = ModelCard(name=name, spec=spec, sha256=digest, source=source, licence="see its page on the hub")
    return Located(spec=spec, kind=kind, sha256=digest, card=card, path=folder, layout=layout, config=config)


def _not_a_folder(spec: str) -> UserError:
    """The error for what is neither a SPEC nor a path: names what may have been meant."""
    if re.fullmatch(r"[A-Za-z]\w+:[^/\\].*", spec):
        scheme, _, name = spec.partition(":")
        close = nearest(scheme, ("zoo", "hf", "artifact"))
        return UserError(f"Unknown model {spec!r}: {_ACCEPTED}{f'; nearest: {close[0]}:{name}' if close else ''}.")
    if "/" in spec or "\\" in spec:
        return UserError(f"There is no model folder {spec}: {_ACCEPTED}.")
    specs = {name: f"zoo:{name}" for name in zoo_names()} | {name: f"artifact:{name}" for name in artifacts()}
    meant = [specs[name] for name in ([spec] if spec in specs else nearest(spec, specs))] or [f"hf:{spec}"]
    return UserError(f"Unknown model {spec!r}: {_ACCEPTED}; nearest: {', '.join(meant)}.")
