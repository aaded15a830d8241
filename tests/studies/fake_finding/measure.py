"""The procedure: the network's strength is its first embedding weight, seen through noise on every sequence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import xarray

from headwork.findings.measurement import Measurement, Progress, no_progress
from headwork.model.transformer import Transformer

SEQUENCES = 16
measured: list[str] = []
"""The networks measured so far, in order."""


def interrupt(model: str, progress: Callable[[float], None]) -> None:
    """What a test may replace to make a measurement fail, or wait."""


def measure(model: Transformer, settings: Mapping[str, Any], progress: Progress = no_progress) -> Measurement:
    assert model.card is not None
    name = model.card.name
    progress("start", 0.0)
    interrupt(name, lambda share: progress("waiting", share))
    strength = float(model.embed.weight[0, 0].detach())
    noise = np.random.default_rng(settings["seed"]).normal(0, 0.1, (3, SEQUENCES))
    methods = ["mild", "harsh"]
    dataset = xarray.Dataset(
        {
            "behaviour": ("sequence", strength - 0.5 + noise[0]),
            "effect": ("sequence", strength + noise[1]),
            "effect_matched": ("sequence", 0.2 + noise[2]),
            "kept": ("sequence", strength * (1 + noise[1])),
            "whole": ("sequence", np.ones(SEQUENCES)),
            "copying": ((), strength),
            "copying_null": ((), 0.3),
            "method": methods,
            "effects": (("method", "sequence"), np.stack([strength + noise[1], 2 * strength + noise[1]])),
            "effects_matched": (("method", "sequence"), np.stack([0.2 + noise[2]] * 2)),
            "discovery_effect": ("layer", [99.0]),
        },
        coords={"sequence": range(SEQUENCES)},
    )
    measured.append(name)
    progress("done", 1.0)
    return Measurement(dataset, {"strong": ["0.0"]}, {"generator": "none"}, "Made up.", "as stated", [f"on {name}"])
