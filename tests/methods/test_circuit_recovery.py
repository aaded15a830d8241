"""Recovery of a known circuit: AUROC and average precision by their definitions, and what must not change them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import xarray
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.architectures import ARCHITECTURES

from headwork.errors import UserError
from headwork.methods.circuit import Circuit
from headwork.methods.circuit_recovery import auroc, average_precision, circuit_recovery
from headwork.methods.graph import graph

CONFIG = ARCHITECTURES["llama"]
cases = st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=30)


def split(case: list[tuple[int, bool]]) -> tuple[np.ndarray, np.ndarray]:
    scores, truth = np.array([s for s, _ in case], float), np.array([t for _, t in case])
    assume(0 < truth.sum() < len(truth))
    return scores, truth


@given(cases)
def test_auroc_is_the_share_of_pairs_ranked_rightly(case: list[tuple[int, bool]]) -> None:
    scores, truth = split(case)
    wins = [(a > b) + 0.5 * (a == b) for a, b in itertools.product(scores[truth], scores[~truth])]
    assert auroc(scores, truth) == pytest.approx(np.mean(wins), abs=1e-12)


@given(cases)
def test_average_precision_is_the_area_under_its_steps(case: list[tuple[int, bool]]) -> None:
    scores, truth = split(case)
    expected, before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        taken = scores >= threshold
        recall = truth[taken].sum() / truth.sum()
        expected += (recall - before) * truth[taken].mean()
        before = recall
    assert average_precision(scores, truth) == pytest.approx(expected, abs=1e-12)


@given(cases, st.floats(0.1, 10), st.floats(-5, 5))
def test_only_the_order_of_scores_matters(case: list[tuple[int, bool]], slope: float, shift: float) -> None:
    scores, truth = split(case)
    for turned in (slope * scores + shift, np.exp(scores), scores**3, np.arctan(scores)):
        assert auroc(turned, truth) == pytest.approx(auroc(scores, truth), abs=1e-12)
        assert average_precision(turned, truth) == pytest.approx(average_precision(scores, truth), abs=1e-12)


@given(cases, st.randoms(use_true_random=False))
def test_turning_scores_or_truth_turns_auroc_and_the_order_of_candidates_does_not(case: list, random: object) -> None:
    scores, truth = split(case)
    assert auroc(-scores, truth) == pytest.approx(1 - auroc(scores, truth), abs=1e-12)
    assert auroc(scores, ~truth) == pytest.approx(1 - auroc(scores, truth), abs=1e-12)
    order = np.array(case, dtype=object)[:, 0].argsort()
    assert auroc(scores[order], truth[order]) == pytest.approx(auroc(scores, truth), abs=1e-12)
    assert average_precision(scores[order], truth[order]) == pytest.approx(average_precision(scores, truth), abs=1e-12)


def test_perfect_wrong_constant_and_one_sided() -> None:
    truth = np.array([True, False, True, False])
    assert auroc(truth.astype(float), truth) == average_precision(truth.astype(float), truth) == 1
    assert auroc(1.0 - truth, truth) == 0
    assert auroc(np.zeros(4), truth) == average_precision(np.zeros(4), truth) == 0.5
    assert np.isnan(auroc(np.zeros(4), np.ones(4, bool)))
    assert np.isnan(average_precision(np.zeros(4), np.zeros(4, bool)))


def labelled(values: np.ndarray) -> xarray.DataArray:
    known = graph(CONFIG)
    return xarray.DataArray(
        np.where(known.visible, values, np.nan),
        dims=("writer", "reader"),
        coords={"writer": list(map(str, known.writers)), "reader": list(map(str, known.readers))},
    )


def known_circuit(seed: int = 0) -> Circuit:
    known, draw = graph(CONFIG), np.random.default_rng(seed)
    return Circuit(CONFIG, known.visible & (draw.random(known.visible.shape) < 0.2))


def test_a_circuit_recovers_itself_and_permuted_truth_is_chance() -> None:
    truth = known_circuit()
    noisy = truth.edges + 0.3 * np.random.default_rng(1).standard_normal(truth.edges.shape)
    found = circuit_recovery(labelled(noisy), truth, order="highest", permutations=400)
    visible = graph(CONFIG).visible
    assert float(found["auroc"]) == auroc(noisy[visible], truth.edges[visible]) > 0.9
    assert found["null_auroc"].sizes == {"permutation": 400}
    assert abs(float(found["null_auroc"].mean()) - 0.5) < 0.02
    assert abs(float(found["null_average_precision"].mean()) - truth.edges[visible].mean()) < 0.05
    assert float(found["p_value"]) == 1 / 401
    assert found.attrs["in_circuit"] == len(truth)
    assert found.attrs["candidates"] == graph(CONFIG).edges
    lowest = circuit_recovery(labelled(-noisy), truth, order="lowest", permutations=0)
    assert float(lowest["auroc"]) == float(found["auroc"])
    exact = circuit_recovery(labelled(-truth.edges.astype(float)), truth, permutations=1)
    assert float(exact["auroc"]) == float(exact["average_precision"]) == 1


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 999))
def test_random_scores_are_not_significant_too_often(seed: int) -> None:
    draw = np.random.default_rng(seed)
    found = circuit_recovery(labelled(draw.random(graph(CONFIG).visible.shape)), known_circuit(1), permutations=50)
    assert 1 / 51 <= float(found["p_value"]) <= 1
    assert float(found["p_value"]) == (1 + (found["null_auroc"] >= found["auroc"] - 1e-12).sum()) / 51


def test_nodes_are_compared_as_nodes() -> None:
    names = [str(w) for w in graph(CONFIG).writers][1:]
    truth = Circuit.from_nodes(CONFIG, ["0.1", "m1"])
    scores = xarray.DataArray([float(name in ("0.1", "m1")) for name in names], dims="node", coords={"node": names})
    found = circuit_recovery(scores, truth, permutations=10)
    assert float(found["auroc"]) == 1
    assert found.attrs["candidates"] == len(names)


def test_what_cannot_be_compared_is_named() -> None:
    scores = labelled(np.zeros(graph(CONFIG).visible.shape))
    wrong = [
        (scores, Circuit.empty(CONFIG), "has 0 of"),
        (scores, Circuit.whole(CONFIG), "some must be in it and some not"),
        (scores, Circuit.from_nodes(CONFIG, ["m0"]), "The circuit is of nodes; the scores are of edges"),
        (scores, Circuit.from_names(ARCHITECTURES["gpt2"], ["embed->m0"]), "another architecture"),
    ]
    for given_scores, truth, says in wrong:
        with pytest.raises(UserError, match=says):
            circuit_recovery(given_scores, truth)
    with pytest.raises(UserError, match="-1 permutations"):
        circuit_recovery(scores, known_circuit(), permutations=-1)
