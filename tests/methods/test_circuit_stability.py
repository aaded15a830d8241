"""Bootstrap over prompts: identical prompts give one circuit, and Jaccard is what its definition says."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import xarray
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tests.architectures import ARCHITECTURES

from headwork.errors import UserError
from headwork.methods.circuit import Circuit
from headwork.methods.circuit_selection import selected
from headwork.methods.circuit_stability import circuit_stability, jaccard, similarity
from headwork.methods.graph import graph

CONFIG = ARCHITECTURES["gpt2"]


def by_prompt(values: np.ndarray) -> xarray.DataArray:
    known = graph(CONFIG)
    return xarray.DataArray(
        np.where(known.visible, values, np.nan),
        dims=("prompt", "writer", "reader"),
        coords={"writer": list(map(str, known.writers)), "reader": list(map(str, known.readers))},
    )


def noisy(prompts: int, spread: float, seed: int = 0) -> xarray.DataArray:
    draw = np.random.default_rng(seed)
    shape = graph(CONFIG).visible.shape
    return by_prompt(draw.standard_normal(shape) + spread * draw.standard_normal((prompts, *shape)))


@given(arrays.arrays(bool, (2, 6)))
def test_jaccard_is_both_over_either(sets: np.ndarray) -> None:
    one, other = (set(np.flatnonzero(row)) for row in sets)
    expected = len(one & other) / len(one | other) if one | other else 1.0
    assert jaccard(sets[:1], sets[1:])[0, 0] == pytest.approx(expected)
    assert jaccard(sets, sets)[0, 0] == 1


def test_similarity_of_circuits() -> None:
    one = Circuit.from_names(CONFIG, ["embed->m0", "m0->logits", "m1->logits"])
    other = Circuit.from_names(CONFIG, ["embed->m0", "m0->m1", "m1->logits"])
    assert similarity(one, other) == pytest.approx(0.5)
    assert similarity(one, one) == similarity(Circuit.empty(CONFIG), Circuit.empty(CONFIG)) == 1


@settings(deadline=None, max_examples=15)
@given(st.integers(2, 6), st.integers(0, 40), st.sampled_from(["top-n", "greedy"]))
def test_identical_prompts_give_one_circuit(prompts: int, n: int, selection: str) -> None:
    scores = noisy(1, 0).isel(prompt=[0] * prompts)
    found = circuit_stability(CONFIG, scores, n, selection=selection, resamples=5)  # type: ignore[arg-type]
    assert float(found["jaccard"]) == float(found["jaccard_low"]) == float(found["jaccard_high"]) == 1
    assert (found["jaccard_with_all"] == 1).all()
    assert set(np.unique(found["chosen"].values[graph(CONFIG).visible])) <= {0.0, 1.0}


@pytest.mark.parametrize("selection", ["top-n", "greedy"])
def test_resampling_equals_a_slow_twin(selection: str) -> None:
    scores = noisy(7, 2.0)
    found = circuit_stability(CONFIG, scores, 10, selection=selection, resamples=12, seed=3)  # type: ignore[arg-type]
    draw, circuits = np.random.default_rng(3), []
    for _ in range(12):
        rows = draw.integers(7, size=7)
        mean = sum(scores[int(i)] for i in rows) / 7
        circuits.append(selected(CONFIG, mean, 10, selection, "absolute"))  # type: ignore[arg-type]
    pairs = [
        len(set(a.names) & set(b.names)) / len(set(a.names) | set(b.names))
        for a, b in itertools.combinations(circuits, 2)
    ]
    assert float(found["jaccard"]) == pytest.approx(np.mean(pairs))
    assert 0 < float(found["jaccard_low"]) <= float(found["jaccard"]) <= float(found["jaccard_high"]) <= 1
    assert float(found["jaccard_low"]) == pytest.approx(np.quantile(pairs, 0.025))
    for writer, reader in [("embed", "m0"), ("m0", "logits"), ("0.1", "1.0<q>")]:
        share = np.mean([f"{writer}->{reader}" in c.names for c in circuits])
        assert float(found["chosen"].sel(writer=writer, reader=reader)) == pytest.approx(share)
    assert float(found["chosen"].sum()) == pytest.approx(10)
    assert found["chosen"].isnull().sum() == (~graph(CONFIG).visible).sum()


def test_noisier_scores_are_less_stable_and_prompts_of_a_group_are_drawn_together() -> None:
    means = [
        float(circuit_stability(CONFIG, noisy(12, spread), 10, resamples=30)["jaccard"]) for spread in (0.1, 1.0, 5.0)
    ]
    assert means == sorted(means, reverse=True)
    assert means[0] - means[2] > 0.3
    twice = noisy(6, 2.0).isel(prompt=[i // 2 for i in range(12)])
    grouped = circuit_stability(CONFIG, twice, 10, groups=[str(i // 2) for i in range(12)], resamples=9)
    alone = circuit_stability(CONFIG, noisy(6, 2.0), 10, resamples=9)
    xarray.testing.assert_allclose(grouped["jaccard"], alone["jaccard"])
    assert grouped.attrs["resampled"] == "groups"


def test_every_prompt_of_a_drawn_group_counts() -> None:
    scores, names = noisy(5, 2.0), ["a", "b", "a", "c", "b"]
    found = circuit_stability(CONFIG, scores, 10, groups=names, resamples=4, seed=1)
    draw, circuits = np.random.default_rng(1), []
    for _ in range(4):
        rows = [i for g in draw.integers(3, size=3) for i in range(5) if names[i] == "abc"[g]]
        circuits.append(selected(CONFIG, scores[rows].mean("prompt"), 10, "top-n", "absolute"))
    pairs = [similarity(one, other) for one, other in itertools.combinations(circuits, 2)]
    assert float(found["jaccard"]) == pytest.approx(np.mean(pairs))


def test_what_cannot_be_resampled_is_named() -> None:
    scores = noisy(3, 1.0)
    wrong = [
        (scores[0], {}, "the scores of each prompt"),
        (scores[:1], {}, "resamples 1 prompts 100 times"),
        (scores, {"resamples": 1}, "resamples 3 prompts 1 times"),
        (scores, {"groups": ["a", "a", "a"]}, "resamples 1 groups"),
        (scores, {"groups": ["a"]}, "1 groups were given for 3 prompts"),
    ]
    for given_scores, options, says in wrong:
        with pytest.raises(UserError, match=says):
            circuit_stability(CONFIG, given_scores, 5, **options)
