"""What the finding is measured on: the network's own distribution at varied distances, and nulls that are fair."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from headwork.errors import UserError
from headwork.findings.induction_heads.prompts import (
    decoys,
    distribution_for,
    draw,
    induction,
    random_place,
    stated_distribution,
)
from headwork.methods.head_scores import Looking
from headwork.model.card import ModelCard
from headwork.model.config import TransformerConfig
from headwork.model.initialise import initialise
from headwork.model.transformer import Transformer
from headwork.tasks.repeated_sequences import RepeatedBatch, RepeatedSequences, followers

VARIED = RepeatedSequences(vocab=60, length=40, segment=(5, 12), copies=(3, 3))
FIXED = RepeatedSequences(vocab=60, length=40, segment=(20, 20), placement="fixed")


def network(data: dict[str, Any] | None = None, **changes: Any) -> Transformer:
    fields: dict[str, Any] = {
        "n_layers": 1,
        "d_model": 4,
        "n_heads": 1,
        "d_head": 4,
        "d_vocab": 60,
        "n_ctx": 40,
    } | changes
    model = initialise(TransformerConfig(**fields), 0)
    model.card = ModelCard(name="test", data=data)
    return model


def test_a_stated_distribution_is_used_as_it_is() -> None:
    found, note, status = distribution_for(network(VARIED.to_dict()))
    assert (found, status) == (VARIED, "as stated")
    assert "own training distribution" in note


@pytest.mark.parametrize(
    "stated",
    [
        FIXED,
        RepeatedSequences(vocab=60, length=40, segment=(20, 20)),
        RepeatedSequences(60, 40, (9, 9), (2, 2), "adjacent"),
    ],
)
def test_a_fixed_distance_is_varied_and_said_so(stated: RepeatedSequences) -> None:
    model = network(stated.to_dict())
    found, note, status = distribution_for(model)
    assert status == "changed"
    assert "one fixed distance" in note
    assert found.varies
    assert (found.vocab, found.length, found.copies) == (stated.vocab, stated.length, stated.copies)
    assert stated_distribution(model) == stated


@pytest.mark.parametrize("data", [None, {}, {"generator": "modular-addition", "p": 113}])
def test_without_one_a_default_is_inferred(data: dict[str, Any] | None) -> None:
    model = network(data, d_vocab=200, n_ctx=100)
    found, note, status = distribution_for(model)
    assert status == "inferred"
    assert "states no distribution" in note
    assert found == RepeatedSequences(vocab=200, length=64, segment=(8, 20), copies=(3, 3))
    model.card = None
    assert distribution_for(model)[0] == found


@settings(deadline=None, max_examples=40)
@given(st.integers(15, 80), st.integers(3, 300))
def test_the_default_varies_and_fits_whatever_the_network(n_ctx: int, vocab: int) -> None:
    found, _, _ = distribution_for(network(d_vocab=vocab, n_ctx=n_ctx))
    assert found.varies
    assert found.length <= n_ctx
    assert found.vocab == vocab


@pytest.mark.parametrize(
    "model, sentence",
    [
        (network(causal=False), "needs a causal network .* this one is bidirectional"),
        (network(d_vocab_out=5), "this one answers with 5 classes"),
        (network(n_layers=0), "this one has no layers"),
        (network(n_ctx=14), "at least 15 tokens over 3 symbols; this network reads 14 over 60"),
        (network(d_vocab=2), "this network reads 40 over 2"),
        (network(VARIED.to_dict(), d_vocab=59), r"\(60 tokens, length 40\) does not fit the network \(59 tokens"),
        (network(VARIED.to_dict(), n_ctx=39), r"does not fit the network \(60 tokens, length 39\)"),
        (network(VARIED.to_dict() | {"segment": "long"}), "segment = 'long'"),
        (network(VARIED.to_dict() | {"segmnt": 3}), "Unknown key in the training distribution"),
        (network(RepeatedSequences(60, 4, (2, 2)).to_dict()), "to vary they need 5 or more"),
    ],
)
def test_networks_that_cannot_be_asked_are_refused(model: Transformer, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        distribution_for(model)


def test_sequences_are_the_seed_s_and_held_out_ones_are_others() -> None:
    prompts = draw(VARIED, 12, 20, 7)
    draw.cache_clear()
    again = draw(VARIED, 12, 20, 7)
    for part in ("discovery", "held_out", "replaced"):
        assert torch.equal(getattr(prompts, part).tokens, getattr(again, part).tokens)
    assert torch.equal(prompts.baseline.weights, again.baseline.weights)
    assert (len(prompts.discovery.tokens), len(prompts.held_out.tokens)) == (12, 20)
    seen = {tuple(row) for row in prompts.discovery.tokens.tolist()}
    assert not seen & {tuple(row) for row in prompts.held_out.tokens.tolist()}
    assert not torch.equal(draw(VARIED, 12, 20, 8).discovery.tokens, prompts.discovery.tokens)


def sample(distribution: RepeatedSequences, count: int, seed: int = 0) -> RepeatedBatch:
    return distribution.sample(count, torch.Generator().manual_seed(seed))


def score(pattern: Tensor, look: Looking) -> Tensor:
    """Per sequence, attention summed over keys, averaged over queries; the pattern is `[#batch, query, key]`."""
    summed = (pattern * look.keys).sum(-1) * look.queries
    return summed.sum(1) / look.queries.sum(1)


def null(pattern: Tensor, batch: RepeatedBatch) -> Tensor:
    return torch.stack([score(pattern, decoys(batch, shift)) for shift in range(1, 9)]).nanmean(0)


def at_distance(distance: int, length: int) -> Tensor:
    """Attention to one distance, whatever stands there; to the first position where there is none."""
    pattern = torch.zeros(1, length, length)
    for query in range(length):
        pattern[0, query, max(0, query - distance)] = 1
    return pattern


@pytest.mark.parametrize("distribution", [VARIED, FIXED.with_varied_distance()])
def test_attention_by_distance_scores_no_more_than_its_null(distribution: RepeatedSequences) -> None:
    batch = sample(distribution, 1500)
    look, nulls = induction(batch), [decoys(batch, shift) for shift in range(1, 9)]
    for distance in range(0, distribution.length, 3):
        pattern = at_distance(distance, distribution.length)
        expected = torch.stack([score(pattern, one) for one in nulls]).nanmean(0)
        assert abs(float((score(pattern, look) - expected).nanmean())) < 0.02


def test_attention_by_content_scores_far_above_its_null() -> None:
    batch = sample(VARIED, 500)
    seen = followers(batch.tokens).float()
    pattern = seen / seen.sum(-1, keepdim=True).clamp(min=1)
    found = score(pattern, induction(batch))
    torch.testing.assert_close(found, torch.ones(500))
    assert float(null(pattern, batch).nanmean()) < 0.1


def test_attention_to_all_alike_scores_its_null() -> None:
    batch = sample(VARIED, 3000)
    pattern = torch.ones(40, 40).tril()[None]
    pattern = pattern / pattern.sum(-1, keepdim=True)
    assert abs(float((score(pattern, induction(batch)) - null(pattern, batch)).nanmean())) < 0.005


def test_decoys_are_another_sequence_s_places_at_shared_positions() -> None:
    batch = sample(VARIED, 6)
    for shift in (1, 4):
        look = decoys(batch, shift)
        for row in range(6):
            other = (row - shift) % 6
            assert torch.equal(look.keys[row], followers(batch.tokens)[other])
            assert torch.equal(look.queries[row], batch.predictable[row] & batch.predictable[other])


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 4), st.integers(3, 12), st.integers(0, 2**31))
def test_a_random_place_is_earlier_than_the_previous_token(size: int, length: int, seed: int) -> None:
    batch = RepeatedBatch(*(torch.zeros(size, length, dtype=torch.long) for _ in range(3)))
    look = random_place(batch, torch.Generator().manual_seed(seed))
    for row in range(size):
        for query in range(length):
            keys = look.keys[row, query].nonzero()[:, 0].tolist()
            assert bool(look.queries[row, query]) == (query >= 2)
            assert len(keys) == (query >= 2)
            assert all(key < query - 1 for key in keys)


def test_random_places_are_all_alike() -> None:
    batch = RepeatedBatch(*(torch.zeros(6000, 8, dtype=torch.long) for _ in range(3)))
    counts = random_place(batch, torch.Generator().manual_seed(0)).keys.sum(0)
    for query in range(2, 8):
        expected = 6000 / (query - 1)
        assert (counts[query, : query - 1] - expected).abs().max() < 5 * expected**0.5
