"""Metrics: one number per example, read from the final residual stream, unembedding only what is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headwork.model.transformer import NO_TAP, Transformer


class Metric(Protocol):
    """`resid` is the stream after the last block from position `start` on; every read position is among them."""

    def __call__(
        self, model: Transformer, resid: Float[Tensor, "batch pos d_model"], start: int
    ) -> Float[Tensor, " batch"]: ...

    def reads(self, length: int) -> int:
        """The first position that is read: edits only after it change nothing."""
        ...


@dataclass(frozen=True, eq=False)
class LogitDifference:
    """logit[correct] − logit[wrong] at one position of each example. Only those two tokens are unembedded."""

    positions: Int[Tensor, " batch"]
    correct: Int[Tensor, " batch"]
    wrong: Int[Tensor, " batch"]

    def __call__(
        self, model: Transformer, resid: Float[Tensor, "batch pos d_model"], start: int
    ) -> Float[Tensor, " batch"]:
        rows = torch.arange(len(self.positions), device=resid.device)
        final = model.ln_final(resid[rows, self.positions - start][:, None], NO_TAP, "ln_final")[:, 0]
        weight, bias = model.unembed.weight, model.unembed.bias
        difference = (final * (weight[self.correct] - weight[self.wrong])).sum(-1)
        return difference if bias is None else difference + bias[self.correct] - bias[self.wrong]

    def reads(self, length: int) -> int:
        return int(self.positions.min())


@dataclass(frozen=True, eq=False)
class Loss:
    """Mean cross-entropy in nats of `targets` at the positions in `where`; only those positions are unembedded.

    `targets[b, p]` is the token that position p should predict. Every example needs at least one position.
    """

    targets: Int[Tensor, "batch pos"]
    where: Bool[Tensor, "batch pos"]

    def __call__(
        self, model: Transformer, resid: Float[Tensor, "batch pos d_model"], start: int
    ) -> Float[Tensor, " batch"]:
        where = self.where[:, start:]
        losses = token_losses(model.logits(resid[where][None])[0], self.targets[:, start:][where])
        total = losses.new_zeros(len(where)).index_add(0, where.nonzero()[:, 0], losses)
        return total / where.sum(1)

    def reads(self, length: int) -> int:
        return int(self.where.any(0).nonzero()[0])


def token_losses(logits: Float[Tensor, "n vocab"], targets: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Cross-entropy in nats of each target."""
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none")
