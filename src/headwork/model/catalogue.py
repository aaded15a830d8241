"""What networks there are and what is known about one, without torch wherever the files alone can tell."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headwork.errors import UserError
from headwork.model.artifacts import artifacts, at_hand
from headwork.model.card import ModelCard
from headwork.model.config import TransformerConfig
from headwork.model.folder import WEIGHTS, read_record
from headwork.model.sites import sites
from headwork.model.sources import ZOO, Kind, load, load_transformer, locate, zoo_names


@dataclass(frozen=True, kw_only=True)
class ZooModel:
    """A network inside the package. `loss`: nats per token on fresh sequences; `bytes`: size of the weights file."""

    spec: str
    recipe: str | None
    seed: int | None
    layers: int
    positions: str
    parameters: int
    loss: float | None
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class PublishedModel:
    """A network that its authors published. `here`: no download is needed."""

    spec: str
    description: str
    source: str
    url: str
    licence: str
    here: bool
    sha256: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class Description:
    """All that is known about one network.

    Sizes and architecture are None where it has to be fetched first, the architecture also where it is no transformer.
    """

    spec: str
    kind: Kind
    card: ModelCard
    architecture: TransformerConfig | None
    parameters: int | None
    other_sites: tuple[str, ...] = ()
    """The sites of a network that is no transformer."""

    @property
    def sites(self) -> int | None:
        """How many sites it has."""
        if self.architecture is None:
            return len(self.other_sites) or None
        return len(sites(self.architecture))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        architecture = None if self.architecture is None else dataclasses.asdict(self.architecture)
        return {
            **self.card.to_dict(),
            "spec": self.spec,
            "kind": self.kind,
            "architecture": architecture,
            "parameters": self.parameters,
            "sites": self.sites,
        }


def zoo() -> list[ZooModel]:
    """The networks inside the package, by name."""
    return [_zoo_model(name) for name in zoo_names()]


def published() -> list[PublishedModel]:
    """The networks that their authors published, in the order of the table."""
    return [
        PublishedModel(
            spec=f"artifact:{known.id}",
            description=known.description,
            source=f"github.com/{known.repo}",
            url=known.url,
            licence=known.licence,
            here=all(at_hand(part) is not None for part in known.parts),
            sha256=known.sha256,
        )
        for known in artifacts().values()
    ]


def describe(spec: str) -> Description:
    """What is known about the network that a SPEC stands for; an artefact that is not here is not fetched for it.

    Raises `UserError` as `load` does.
    """
    found = locate(spec)
    if found.architecture is not None and found.path is not None:
        return Description(
            spec=spec,
            kind=found.kind,
            card=found.card,
            architecture=found.architecture,
            parameters=_parameters(found.path / WEIGHTS),
        )
    if found.path is None:
        return Description(spec=spec, kind=found.kind, card=found.card, architecture=None, parameters=None)
    from headwork.model.transformer import Transformer

    model = load(spec)
    transformer = isinstance(model, Transformer)
    return Description(
        spec=spec,
        kind=found.kind,
        card=model.card or found.card,
        architecture=model.config if transformer else None,
        parameters=sum(p.numel() for p in model.parameters()),
        other_sites=() if transformer else tuple(model.sites),
    )


def architecture_of(spec: str) -> TransformerConfig:
    """The architecture of the network that a SPEC stands for; weights are read, or fetched, only where it needs them.

    Raises `UserError` as `load_transformer` does.
    """
    return locate(spec).architecture or load_transformer(spec).config


def _zoo_model(name: str) -> ZooModel:
    record = read_record(ZOO / name)
    weights = ZOO / name / WEIGHTS
    training = record.card.training
    return ZooModel(
        spec=f"zoo:{name}",
        recipe=training.get("recipe"),
        seed=training.get("seed"),
        layers=record.architecture.n_layers,
        positions=record.architecture.positions,
        parameters=_parameters(weights),
        loss=training.get("loss"),
        bytes=weights.stat().st_size,
    )


def _parameters(weights: Path) -> int:
    """How many numbers a weights file holds, read from its header. Raises `UserError` where it is damaged."""
    import safetensors

    try:
        with safetensors.safe_open(weights, framework="np") as file:
            return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{weights} is truncated or corrupt, or not safetensors ({error}).") from error
