"""The best log-linear predictor that copies by distance alone: what repeats give away without matching tokens.

It knows which token stood at every distance before the current position, but cannot compare the current token with
earlier ones, so it cannot do induction: p(x) ∝ exp Σ_d w_d · [the token d positions back is x]. Where the distance
between copies is fixed, it predicts repeats perfectly; a network that only does as well shows no induction.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class DistanceCopying:
    """The fitted weights: `weights[d]` in nats for the token d positions back.

    It predicts the tokens of `alphabet` (the first, and one after the last); others, such as a BOS, are not copied.
    """

    weights: Float[Tensor, " distance"]
    alphabet: tuple[int, int]

    def losses(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos"]:
        """Cross-entropy in nats of the next token at every position (of the first token, at the last)."""
        return _Sequences(tokens, self.alphabet, self.weights.dtype).losses(self.weights)


def fit_distance_copying(
    tokens: Int[Tensor, "batch pos"], where: Bool[Tensor, "batch pos"], alphabet: tuple[int, int], iterations: int = 40
) -> DistanceCopying:
    """Fit by L-BFGS to the mean cross-entropy at the positions in `where`; the problem is convex."""
    sequences = _Sequences(tokens, alphabet, torch.float32)
    weights = torch.zeros(tokens.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=iterations, line_search_fn="strong_wolfe")

    def closure() -> Float[Tensor, ""]:
        optimizer.zero_grad()
        # A small ridge keeps the weights of distances that always or never help finite.
        loss = sequences.losses(weights)[where].mean() + 1e-5 * weights.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return DistanceCopying(weights.detach(), alphabet)


class _Sequences:
    """What the losses need of the sequences and the weights do not change."""

    def __init__(self, tokens: Int[Tensor, "batch pos"], alphabet: tuple[int, int], dtype: torch.dtype) -> None:
        length = tokens.shape[1]
        low, high = alphabet
        copied = ((tokens >= low) & (tokens < high))[:, None]
        self.seen = torch.ones(length, length, dtype=dtype).tril()
        self.distance = (torch.arange(length)[:, None] - torch.arange(length)).clamp(min=0)
        self.same = (tokens[:, :, None] == tokens[:, None, :]).to(dtype)
        # Every token in the context counts once, however often it stands there.
        self.share = self.seen * copied / (self.seen @ self.same).clamp(min=1)
        self.absent = high - low - self.share.sum(-1)
        self.is_next = (tokens.roll(-1, 1)[:, :, None] == tokens[:, None, :]).to(dtype)

    def losses(self, weights: Float[Tensor, " distance"]) -> Float[Tensor, "batch pos"]:
        by_distance = weights[self.distance] * self.seen
        normaliser = ((by_distance @ self.same).exp() * self.share).sum(-1) + self.absent
        return normaliser.log() - torch.einsum("qk,bqk->bq", by_distance, self.is_next)
