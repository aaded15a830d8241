"""Metrics: one number per example, read from the final residual stream, unembedding only what is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headwork.errors import UserError
from headwork.model.transformer import NO_TAP, Transformer


@runtime_checkable
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

    def __post_init__(self) -> None:
        shapes = {len(x) if x.dim() == 1 else tuple(x.shape) for x in (self.positions, self.correct, self.wrong)}
        if len(shapes) != 1 or min(int(x.min()) for x in (self.positions, self.correct, self.wrong)) < 0:
            raise UserError(
                "A logit difference needs a position, a correct and a wrong token for each example, 0 or more."
            )

    def __call__(
        self, model: Transformer, resid: Float[Tensor, "batch pos d_model"], start: int
    ) -> Float[Tensor, " batch"]:
        rows = torch.arange(len(self.positions), device=resid.device)
        final = model.ln_final(resid[rows, self.positions - start][:, None], NO_TAP, "ln_final")[:, 0]
        weight, bias = model.unembed.weight, model.unembed.bias
        difference = (final * (weight[self.correct] - weight[self.wrong])).sum(-1)
        return difference if bias is None else difference + bias[self.correct] - bias[self.wrong]

    def reads(self, length: int) -> int:
        if int(self.positions.max()) >= length:
            raise UserError(
                f"The logit difference reads position {int(self.positions.max())}; the prompts have 0–{length - 1}."
            )
        return int(self.positions.min())


@dataclass(frozen=True, eq=False)
class Loss:
    """Mean cross-entropy in nats of `targets` at the positions in `where`; only those positions are unembedded.

    `targets[b, p]` is the token that position p should predict. Every example needs at least one position.
    """

    targets: Int[Tensor, "batch pos"]
    where: Bool[Tensor, "batch pos"]

    def __post_init__(self) -> None:
        if self.targets.shape != self.where.shape:
            raise UserError(f"A loss has targets {list(self.targets.shape)} but positions {list(self.where.shape)}.")
        empty = (~self.where.any(1)).nonzero()
        if len(empty):
            raise UserError(f"A loss needs at least one position in every example; example {int(empty[0])} has none.")

    def __call__(
        self, model: Transformer, resid: Float[Tensor, "batch pos d_model"], start: int
    ) -> Float[Tensor, " batch"]:
        where, targets = (x[:, start:].to(resid.device) for x in (self.where, self.targets))
        losses = token_losses(model.logits(resid[where][None])[0], targets[where])
        total = losses.new_zeros(len(where)).index_add(0, where.nonzero()[:, 0], losses)
        return total / where.sum(1)

    def reads(self, length: int) -> int:
        if self.where.shape[1] != length:
            raise UserError(f"The loss is over prompts of {self.where.shape[1]} tokens; these have {length}.")
        return int(self.where.any(0).nonzero()[0])


@dataclass(frozen=True, eq=False)
class KLDivergence:
    """KL(reference ‖ network) in nats at one position of each example; `reference` are log-probabilities."""

    positions: Int[Tensor, " batch"]
    reference: Float[Tensor, "batch d_vocab_out"]

    def __post_init__(self) -> None:
        if self.positions.dim() != 1 or self.reference.dim() != 2 or len(self.positions) != len(self.reference):
            raise UserError(
                f"A KL divergence needs a position and a row of log-probabilities for each example; given were "
                f"{list(self.positions.shape)} and {list(self.reference.shape)}."
            )

    def __call__(
        self, model: Transformer, resid: Float[Tensor, "batch pos d_model"], start: int
    ) -> Float[Tensor, " batch"]:
        rows = torch.arange(len(self.positions), device=resid.device)
        found = model.logits(resid[rows, self.positions.to(resid.device) - start][:, None])[:, 0].log_softmax(-1)
        reference = self.reference.to(found)
        return (reference.exp() * (reference - found)).sum(-1)

    def reads(self, length: int) -> int:
        if int(self.positions.max()) >= length:
            raise UserError(
                f"The KL divergence reads position {int(self.positions.max())}; the prompts have 0–{length - 1}."
            )
        return int(self.positions.min())


@dataclass(frozen=True, eq=False)
class _Weighted:
    """What metrics over several tokens have: at one position of each example, `weights` for `tokens`.

    A weight of 0 pads rows that have fewer tokens than others.
    """

    positions: Int[Tensor, " batch"]
    tokens: Int[Tensor, "batch n"]
    weights: Float[Tensor, "batch n"]

    def __post_init__(self) -> None:
        one_each = len(self.positions) == len(self.tokens) == len(self.weights)
        if not one_each or self.tokens.shape != self.weights.shape or min(self.positions.min(), self.tokens.min()) < 0:
            raise UserError(
                f"A {self._name()} needs a position, a row of tokens and a row of weights for each example, 0 or more; "
                f"given were {list(self.positions.shape)}, {list(self.tokens.shape)} and {list(self.weights.shape)}."
            )

    @classmethod
    def _name(cls) -> str:
        return "logit contrast" if cls is LogitContrast else "probability difference"

    def _read(self, resid: Float[Tensor, "batch pos d_model"], start: int) -> Float[Tensor, "batch one d_model"]:
        rows = torch.arange(len(self.positions), device=resid.device)
        return resid[rows, self.positions.to(resid.device) - start][:, None]

    def reads(self, length: int) -> int:
        if int(self.positions.max()) >= length:
            raise UserError(
                f"The {self._name()} reads position {int(self.positions.max())}; the prompts have 0–{length - 1}."
            )
        return int(self.positions.min())


class LogitContrast(_Weighted):
    """Σ over `tokens` of weight · logit at one position of each example; only those tokens are unembedded.

    With weights 1/n for right answers and −1/m for wrong ones it is the difference of their mean logits.
    """

    def __call__(
        self, model: Transformer, resid: Float[Tensor, "batch pos d_model"], start: int
    ) -> Float[Tensor, " batch"]:
        final = model.ln_final(self._read(resid, start), NO_TAP, "ln_final")[:, 0]
        tokens, weights = self.tokens.to(resid.device), self.weights.to(final)
        direction = torch.einsum("bn,bnd->bd", weights, model.unembed.weight[tokens])
        value = (final * direction).sum(-1)
        bias = model.unembed.bias
        return value if bias is None else value + (weights * bias[tokens]).sum(-1)


class ProbabilityDifference(_Weighted):
    """Σ over `tokens` of weight · probability at one position of each example (Hanna et al. 2023).

    With weights 1 for right answers and −1 for wrong ones it is how much more probable the right ones are together.
    """

    def __call__(
        self, model: Transformer, resid: Float[Tensor, "batch pos d_model"], start: int
    ) -> Float[Tensor, " batch"]:
        probability = model.logits(self._read(resid, start))[:, 0].softmax(-1)
        return (self.weights.to(probability) * probability.gather(1, self.tokens.to(resid.device))).sum(-1)


def kl_from(model: Transformer, tokens: Int[Tensor, "batch pos"], positions: Int[Tensor, " batch"]) -> KLDivergence:
    """The divergence from what this network itself says on `tokens`, at one position of each."""
    with torch.no_grad():
        at = torch.arange(len(tokens), device=tokens.device), positions.to(tokens.device)
        logits = model.logits(model.stream(tokens)[at][:, None])[:, 0]
    return KLDivergence(positions, logits.log_softmax(-1))


def token_losses(logits: Float[Tensor, "n vocab"], targets: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Cross-entropy in nats of each target."""
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none")
