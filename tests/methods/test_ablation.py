"""Ablated heads take the values that the method's name says, and matched sets match."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.architectures import network, prompts
from tests.methods.hand import NETWORKS, logits_with
from tests.oracle import oracle_sites
from torch import Tensor

from headwork.engine.run import run
from headwork.errors import UserError
from headwork.methods import batches
from headwork.methods.ablation import VALUES, Ablation, Value, ablate, matched_sets
from headwork.model.sites import Head

LISTED = list[Head]


def slow_values(value: Value, z: Tensor, paired: Tensor) -> Tensor:
    """What z `[prompt, pos, head, d_head]` becomes, for every prompt and position."""
    prompts_, length = z.shape[:2]
    new = torch.zeros_like(z)
    for b in range(prompts_):
        for p in range(length):
            if value == "mean":
                new[b, p] = sum(z[i, j] for i in range(prompts_) for j in range(length)) / (prompts_ * length)
            if value == "mean-by-position":
                new[b, p] = sum(z[i, p] for i in range(prompts_)) / prompts_
            if value == "resample":
                new[b, p] = z[int(paired[b]), p]
    return new


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("name", NETWORKS)
def test_ablation_equals_a_full_run_with_values_by_hand(name: str, value: Value) -> None:
    model, reference, tokens = network(name), prompts(name, 1), prompts(name, 2)
    method = Ablation(model, reference, torch.Generator().manual_seed(5))
    heads = [Head(1, 1), Head(0, 0), Head(1, 0)]
    edits = ablate(heads, method.values(value, len(tokens)))
    paired = torch.randint(len(reference), (len(tokens),), generator=torch.Generator().manual_seed(5))
    sites = oracle_sites(model, reference)
    wanted: dict[str, dict[int, Tensor]] = {}
    for head in heads:
        site = f"blocks.{head.layer}.attn.z"
        wanted.setdefault(site, {})[head.head] = slow_values(value, sites[site], paired)[:, :, head.head]
    expected = logits_with(model, tokens, wanted)
    assert (expected - run(model, tokens).logits).abs().max() > 1e-3
    torch.testing.assert_close(run(model, tokens, edits=edits).logits, expected, rtol=1e-9, atol=1e-9)


def test_resampling_takes_all_heads_from_one_prompt() -> None:
    model, reference = network("gpt2"), prompts("gpt2", 1)
    z = Ablation(model, reference, torch.Generator().manual_seed(0)).z
    found = Ablation(model, reference, torch.Generator().manual_seed(0)).values("resample", 20)
    sources = [
        {i for i in range(len(reference)) if all(torch.equal(found[site][row], z[site][i]) for site in z)}
        for row in range(20)
    ]
    assert all(len(source) == 1 for source in sources)
    assert len(set.union(*sources)) > 1


@pytest.mark.parametrize("value", VALUES)
def test_a_chunk_takes_its_own_prompts(value: Value) -> None:
    model, tokens = network("neox"), prompts("neox", 2)
    values = Ablation(model, prompts("neox", 1), torch.Generator().manual_seed(3)).values(value, len(tokens))
    heads = [Head(0, 1), Head(1, 0)]
    whole = run(model, tokens, edits=ablate(heads, values)).logits
    parts = [run(model, tokens[part], edits=ablate(heads, values, part)).logits for part in (slice(0, 1), slice(1, 3))]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-10, atol=1e-10)


def test_reference_values_do_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    model, reference = network("gpt2"), prompts("gpt2", 1)
    whole = Ablation(model, reference, torch.Generator()).z
    monkeypatch.setattr(batches, "BYTES_PER_CHUNK", 1)
    parts = Ablation(model, reference, torch.Generator()).z
    for site, z in whole.items():
        torch.testing.assert_close(parts[site], z, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_value_names_the_nearest() -> None:
    model, reference = network("gpt2"), prompts("gpt2", 1)
    with pytest.raises(UserError, match="Unknown ablation value 'means': the nearest valid ones are mean"):
        Ablation(model, reference, torch.Generator()).values("means", 3)  # type: ignore[arg-type]


@st.composite
def choices(draw: st.DrawFn) -> tuple[LISTED, LISTED]:
    """Chosen heads and a pool to draw from, which may overlap and repeat."""
    layers, count = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    everyone = [Head(layer, head) for layer in range(layers) for head in range(count)]
    chosen = draw(st.lists(st.sampled_from(everyone), unique=True, max_size=5))
    return chosen, draw(st.lists(st.sampled_from(everyone)))


def per_layer(heads: LISTED | tuple[Head, ...]) -> dict[int, int]:
    return {layer: sum(h.layer == layer for h in heads) for layer in {h.layer for h in heads}}


@settings(deadline=None, max_examples=200)
@given(choices(), st.integers(0, 1000), st.integers(1, 12))
def test_matched_sets_match(given_heads: tuple[LISTED, LISTED], seed: int, most: int) -> None:
    chosen, outside = given_heads
    sets = matched_sets(chosen, outside, np.random.default_rng(seed), most)
    free = set(outside) - set(chosen)
    possible = math.prod(
        math.comb(sum(h.layer == layer for h in free), count) for layer, count in per_layer(chosen).items()
    )
    assert len(sets) == (min(most, possible) if chosen else 0)
    assert len({frozenset(s) for s in sets}) == len(sets)
    for one in sets:
        assert per_layer(one) == per_layer(chosen)
        assert len(set(one)) == len(one)
        assert set(one) <= free
    assert sets == matched_sets(chosen, outside, np.random.default_rng(seed), most)


def test_many_possible_sets_are_drawn_from_all_of_them() -> None:
    chosen = [Head(layer, head) for layer in range(6) for head in range(8)]
    outside = [Head(layer, head) for layer in range(6) for head in range(8, 40)]
    sets = matched_sets(chosen, outside, np.random.default_rng(0))
    assert len(sets) == 12
    for layer in range(6):
        parts = [{h.head for h in one if h.layer == layer} for one in sets]
        assert len({frozenset(part) for part in parts}) == 12
        # Twelve draws of 8 out of 32 leave a head out of all with probability 0.03; the first 5000 in order leave 15.
        assert len(set.union(*parts)) > 25
