"""The predictor that copies by distance equals a softmax over the vocabulary by hand, and cannot do induction."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from headwork.methods.distance_copying import DistanceCopying, fit_distance_copying
from headwork.tasks.repeated_sequences import RepeatedBatch, RepeatedSequences, followers


def slow(weights: list[float], row: list[int], alphabet: tuple[int, int]) -> list[float]:
    """The loss of the next token at every position but the last, by a softmax over every token of the alphabet."""
    losses = []
    for query in range(len(row) - 1):
        logits = dict.fromkeys(range(*alphabet), 0.0)
        for distance in range(query + 1):
            if row[query - distance] in logits:
                logits[row[query - distance]] += weights[distance]
        total = sum(math.exp(value) for value in logits.values())
        losses.append(math.log(total) - logits[row[query + 1]])
    return losses


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.integers(2, 6), min_size=7, max_size=7), min_size=1, max_size=3),
    st.lists(st.floats(-3, 3), min_size=8, max_size=8),
    st.sampled_from([0, 1, 2, 7]),
)
def test_losses_equal_a_softmax_over_the_vocabulary(rows: list[list[int]], weights: list[float], bos: int) -> None:
    rows = [[bos, *row] for row in rows]
    predictor = DistanceCopying(torch.tensor(weights, dtype=torch.float64), (2, 7))
    losses = predictor.losses(torch.tensor(rows))
    for row, found in zip(rows, losses):
        expected = torch.tensor(slow(weights, row, (2, 7)), dtype=torch.float64)
        torch.testing.assert_close(found[:-1], expected, rtol=1e-9, atol=1e-9)


def sample(distribution: RepeatedSequences, count: int, seed: int = 0) -> RepeatedBatch:
    return distribution.sample(count, torch.Generator().manual_seed(seed))


VARIED = RepeatedSequences(vocab=40, length=36, segment=(4, 10), copies=(3, 3))
FIXED = RepeatedSequences(vocab=40, length=36, segment=(12, 12), copies=(3, 3), placement="fixed")


def test_without_weights_every_token_is_as_likely() -> None:
    batch = sample(VARIED, 4)
    losses = DistanceCopying(torch.zeros(36, dtype=torch.float64), VARIED.alphabet).losses(batch.tokens)
    torch.testing.assert_close(losses, torch.full_like(losses, math.log(40)))


def test_a_fixed_distance_is_predicted_without_induction() -> None:
    found = fit_distance_copying((batch := sample(FIXED, 128)).tokens, batch.predictable, FIXED.alphabet)
    fresh = sample(FIXED, 128, 1)
    assert float(found.losses(fresh.tokens)[fresh.predictable].mean()) < 0.1
    assert int(found.weights.argmax()) in (11, 23)


def induction_losses(batch: RepeatedBatch, vocab: int) -> Tensor:
    """What a predictor does that trusts the token after the latest earlier copy to nine tenths."""
    length = batch.tokens.shape[1]
    right = torch.zeros_like(batch.tokens, dtype=torch.bool)
    seen = followers(batch.tokens)
    for query in range(length - 1):
        latest = torch.where(seen[:, query], torch.arange(length), -1).amax(1)
        guess = batch.tokens.gather(1, latest.clamp(min=0)[:, None])[:, 0]
        right[:, query] = (latest >= 0) & (guess == batch.tokens[:, query + 1])
    return -(0.9 * right + 0.1 / vocab).log()


def test_at_varied_distances_induction_beats_it_by_far() -> None:
    varied = RepeatedSequences(vocab=128, length=48, segment=(5, 15), copies=(3, 3))
    found = fit_distance_copying((batch := sample(varied, 256)).tokens, batch.predictable, varied.alphabet)
    fresh = sample(varied, 256, 1)
    by_distance = float(found.losses(fresh.tokens)[fresh.predictable].mean())
    by_content = float(induction_losses(fresh, 128)[fresh.predictable].mean())
    assert by_content + 1 < by_distance < math.log(128)


def test_every_start_leads_to_the_fitted_loss() -> None:
    batch = sample(VARIED, 128)
    fitted = fit_distance_copying(batch.tokens, batch.predictable, VARIED.alphabet)
    best = float(fitted.losses(batch.tokens)[batch.predictable].mean())
    for seed in range(2):
        weights = torch.randn(36, generator=torch.Generator().manual_seed(seed)).requires_grad_()
        optimizer = torch.optim.LBFGS([weights], max_iter=150, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()  # noqa: B023 – called before the loop goes on
            copying = DistanceCopying(weights, VARIED.alphabet)  # noqa: B023
            loss = copying.losses(batch.tokens)[batch.predictable].mean() + 1e-5 * weights.square().sum()  # noqa: B023
            loss.backward()
            return loss

        optimizer.step(closure)
        other = DistanceCopying(weights.detach(), VARIED.alphabet)
        assert abs(float(other.losses(batch.tokens)[batch.predictable].mean()) - best) < 2e-3
