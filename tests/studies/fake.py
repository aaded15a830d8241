"""A made-up finding and a zoo of tiny networks, each as strong as its first embedding weight says."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from headwork.findings.claim import ClaimCard, Reference, SubClaim
from headwork.findings.registry import Factor, Finding, Grid
from headwork.model.card import ModelCard
from headwork.model.checkpoints import save
from headwork.model.config import TransformerConfig
from headwork.model.initialise import initialise

ARCHITECTURE = TransformerConfig(n_layers=1, d_model=4, n_heads=1, d_head=4, d_vocab=5, n_ctx=6, positions="rotary")
SETTINGS = {"architecture.n_layers": 1, "steps": 10, "width": 4}
STRONG, WEAK = 1.0, 0.0


def claim(**changed: Any) -> SubClaim:
    """A sub-claim that its quantity is above its matched control, unless told otherwise."""
    values: dict[str, Any] = {
        "id": "effect",
        "statement": "It has an effect.",
        "kind": "cause",
        "central": True,
        "quantity": "effect",
        "null": "effect_matched",
        "unit": "nats",
        "replicate": "sequence",
        "threshold": 0.0,
        "threshold_source": "its null",
        "null_meaning": "another part of the network",
    }
    return SubClaim(**{**values, **changed})


CLAIMS = (
    claim(id="behaviour", kind="behaviour", quantity="behaviour", null=None),
    claim(),
    claim(id="share", quantity="kept", ratio_of="whole", null=None, threshold=0.5, threshold_on="value"),
    claim(
        id="copying", kind="representation", central=False, quantity="copying", null="copying_null", replicate=None,
        threshold=0.5, threshold_on="value",
    ),
)  # fmt: skip


def card(*claims: SubClaim, **changed: Any) -> ClaimCard:
    values: dict[str, Any] = {
        "id": "made-up",
        "title": "A made-up finding",
        "claim": "Networks are strong.",
        "references": (Reference(key="a", authors="A.", year=2020, title="T", venue="V", url="https://example.org"),),
        "scope": "class",
        "networks": "networks",
        "data": "none",
        "subclaims": claims or CLAIMS,
    }
    return ClaimCard(**{**values, **changed})


FINDING = Finding(
    id="made-up",
    card=card(),
    module="tests.studies.fake_finding",
    model="zoo:strong",
    settings={"seed": 0, "method": "mild"},
    controls={"weak": "zoo:weak"},
    factors=(
        Factor("steps", "steps", "Does it take ten steps?", {1: "not reproduced", 10: "reproduced"}),
        Factor("width", "width", "Does width matter?", {4: "reproduced", 8: "reproduced"}),
    ),
    grid=Grid("effect", "method", "effects", "effects_matched", "method"),
)


def finding(**changed: Any) -> Finding:
    return dataclasses.replace(FINDING, **changed)


def add(
    zoo: Path, name: str, strength: float, seed: int = 0, training: Mapping[str, Any] | None = None, **changed: Any
) -> Path:
    """A network of this strength; `changed` are training settings, `training` replaces all that its card says."""
    stated = {"seed": seed, "settings": {**SETTINGS, **changed}} if training is None else training
    model = initialise(ARCHITECTURE, seed)
    with torch.no_grad():
        model.embed.weight[0, 0] = strength
        model.embed.weight[1, 1] = sum(map(ord, name))  # no two have the same weights
    return save(model, zoo / name, ModelCard(name=name, training=stated))


def fill(zoo: Path, seeds: int = 3) -> None:
    """The finding's zoo: `strong`, `weak` after one step, `wide`, each from several seeds."""
    for seed in range(seeds):
        end = f"-s{seed}" if seed else ""
        add(zoo, f"strong{end}", STRONG + seed / 100, seed)
        add(zoo, f"weak{end}", WEAK + seed / 100, seed, steps=1)
        add(zoo, f"wide{end}", STRONG + seed / 100, seed, width=8)
