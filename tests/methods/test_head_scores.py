"""Attention scores equal loops over sequences, heads, queries and keys."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.architectures import network, prompts
from tests.methods.hand import NETWORKS
from tests.oracle import oracle_sites
from torch import Tensor

from headwork.methods import batches
from headwork.methods.batches import chunks
from headwork.methods.head_scores import Looking, attention_to, previous_token
from headwork.model.config import TransformerConfig


def random_look(batch: int, length: int, seed: int) -> Looking:
    generator = torch.Generator().manual_seed(seed)
    keys = torch.rand(batch, length, length, generator=generator) < 0.4
    queries = torch.rand(batch, length, generator=generator) < 0.6
    queries[0] = False
    return Looking(keys, queries)


def slow(pattern: Tensor, look: Looking) -> list[float]:
    """One head's score on each sequence, from its pattern `[batch, query, key]`."""
    scores = []
    for b in range(len(pattern)):
        queries = [q for q in range(pattern.shape[1]) if look.queries[b, q]]
        found = [sum(float(pattern[b, q, k]) for k in range(pattern.shape[2]) if look.keys[b, q, k]) for q in queries]
        scores.append(sum(found) / len(found) if found else math.nan)
    return scores


@pytest.mark.parametrize("chunk_bytes", [batches.BYTES_PER_CHUNK, 1])
@pytest.mark.parametrize("name", NETWORKS)
def test_scores_equal_the_loops(name: str, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "BYTES_PER_CHUNK", chunk_bytes)
    model, tokens = network(name), prompts(name)
    looks = {"random": random_look(*tokens.shape, seed=1), "previous": previous_token(tokens)}
    found = attention_to(model, tokens, looks)
    sites = oracle_sites(model, tokens)
    for look, scores in found.items():
        assert scores.shape == (model.config.n_layers, model.config.n_heads, len(tokens))
        for layer in range(model.config.n_layers):
            for head in range(model.config.n_heads):
                expected = slow(sites[f"blocks.{layer}.attn.pattern"][:, head], looks[look])
                torch.testing.assert_close(scores[layer, head], torch.tensor(expected), equal_nan=True)
    assert found["random"][:, :, 0].isnan().all()
    assert not found["previous"].isnan().any()


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 9))
def test_the_previous_token_is_one_back(batch: int, length: int) -> None:
    look = previous_token(torch.zeros(batch, length, dtype=torch.long))
    for b in range(batch):
        for query in range(length):
            assert [k for k in range(length) if look.keys[b, query, k]] == ([query - 1] if query else [])
            assert bool(look.queries[b, query]) == (query > 0)


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(1, 400), st.integers(1, 8), st.integers(0, 4), st.integers(2, 60_000))
def test_chunks_cover_the_batch_within_bounds(batch: int, length: int, heads: int, layers: int, vocab: int) -> None:
    config = TransformerConfig(
        n_layers=layers, d_model=4, n_heads=heads, d_head=2, d_vocab=vocab, n_ctx=400, positions="rotary"
    )
    parts = list(chunks(config, batch, length))
    assert [i for part in parts for i in range(batch)[part]] == list(range(batch))
    for part in parts:
        size = part.stop - part.start
        numbers = size * length * (vocab + length * heads * layers)
        assert size == 1 or 4 * numbers <= batches.BYTES_PER_CHUNK
