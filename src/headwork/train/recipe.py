"""A recipe: everything that decides what a training run gives, as data."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import Any

from headwork.errors import UserError
from headwork.model.config import TransformerConfig
from headwork.tasks.repeated_sequences import RepeatedSequences


@dataclass(frozen=True)
class Recipe:
    """Next-token training with AdamW on sequences drawn fresh for every step.

    The learning rate rises linearly over `warmup` steps and falls by a cosine to zero at the last one. `batch` counts
    sequences. `weights_std` is the spread of the initial weights (None: 1/√d_model).
    """

    name: str
    description: str
    architecture: TransformerConfig
    data: RepeatedSequences
    steps: int
    batch: int = 64
    learning_rate: float = 1e-2
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.98)
    warmup: int = 100
    weights_std: float | None = None

    def settings(self) -> dict[str, Any]:
        """All that changes the result, flat: what a follow-up may change one key of."""
        flat: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in ("name", "description"):
                continue
            if dataclasses.is_dataclass(value) and not isinstance(value, type):
                flat |= {f"{field.name}.{f.name}": getattr(value, f.name) for f in dataclasses.fields(value)}
            else:
                flat[field.name] = value
        return flat

    def check_seed(self, seed: int) -> None:
        """Raises `UserError` for a seed that cannot be used."""
        if not 0 <= seed < 2**31:
            raise UserError(f"A seed is a whole number from 0 to {2**31 - 1}; given was {seed}.")


def derived_seed(seed: int, purpose: str) -> int:
    """A seed for one purpose (weights, data, evaluation …), independent of the others drawn from the same seed."""
    return int.from_bytes(hashlib.sha256(f"{purpose}:{seed}".encode()).digest()[:6], "big")
