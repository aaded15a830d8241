"""The clock and the pizza: planted patterns are told apart, single circles equal networks with cut embeddings."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.architectures import network
from tests.methods import adders

from headwork.errors import UserError
from headwork.methods.clock_and_pizza import circle_logits, circle_patterns, logit_patterns
from headwork.methods.key_frequencies import keys_of
from headwork.methods.number_pairs import pair_activations, right_answers
from headwork.tasks.modular_addition import ModularAddition


@pytest.mark.parametrize("p", [12, 13, 59])
def test_planted_patterns_are_told_apart(p: int) -> None:
    shape = np.array([abs(math.cos(math.pi * 3 * d / p)) for d in range(p)])
    overlap = shape.mean() ** 2 / (shape**2).mean()
    assert p < 59 or overlap == pytest.approx(8 / math.pi**2, abs=1e-3)
    clock = logit_patterns(5 * adders.clock(p, 3), [3]).sel(frequency=3)
    assert float(clock["clock"]) == pytest.approx(1)
    assert float(clock["pizza"]) == pytest.approx(overlap)
    assert float(clock["pizza_part"]) == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(clock["amplitude"], 5)
    pizza = logit_patterns(5 * adders.pizza(p, 3), [3]).sel(frequency=3)
    assert float(pizza["pizza"]) == pytest.approx(1)
    assert float(pizza["clock"]) == pytest.approx(overlap)
    assert float(pizza["pizza_part"]) == pytest.approx(1)
    assert float(pizza["by_distance"]) == pytest.approx(1)
    np.testing.assert_allclose(pizza["amplitude"], 5 * shape, atol=1e-9)


def test_a_mixture_is_placed_between() -> None:
    p, k = 13, 2
    found = logit_patterns(2 * adders.clock(p, k) + 3 * adders.pizza(p, k) + adders.clock(p, 5), [k, 5])
    assert found["frequency"].values.tolist() == [k, 5]
    one = found.sel(frequency=k)
    assert (float(one["constant"]), float(one["slope"])) == (pytest.approx(2), pytest.approx(3))
    mean = np.mean([abs(math.cos(math.pi * k * d / p)) for d in range(p)])
    assert float(one["pizza_part"]) == pytest.approx(3 * mean / (2 + 3 * mean))
    assert float(found["both"].sum()) == pytest.approx(1)
    assert max(float(one["clock"]), float(one["pizza"])) < float(one["both"])


@pytest.mark.parametrize("p", [7, 12])
def test_shares_equal_inner_products_written_out(p: int) -> None:
    logits, k = adders.noise(p, p, p) + adders.pizza(p, 2), 2
    values = logits - logits.mean(2, keepdim=True)
    values = values - values.mean((0, 1))
    found = logit_patterns(logits, [k]).sel(frequency=k)
    a, b, _ = adders.angles(p, 1)
    patterns = {
        "clock": adders.clock(p, k),
        "pizza": adders.pizza(p, k),
        "accompanying": (a - b).cos() * adders.clock(p, 1),
    }
    for name, pattern in patterns.items():
        slow = float((pattern * values).sum() ** 2 / pattern.square().sum() / values.square().sum())
        assert float(found[name]) == pytest.approx(slow)


@pytest.mark.parametrize(("half", "whole"), [(3, 6), (5, 3)])
def test_an_accompanying_circle_shows_at_half_its_frequency(half: int, whole: int) -> None:
    a, b, _ = adders.angles(13, half)  # twice 5 is 10, which modulo 13 is 3 read backwards
    found = logit_patterns(-(a - b).cos() * adders.clock(13, half), [whole]).sel(frequency=whole)
    assert float(found["accompanying"]) == pytest.approx(1)
    assert float(found["both"]) == pytest.approx(0, abs=1e-9)
    assert np.isnan(logit_patterns(adders.clock(12, 3), [3])["accompanying"]).all()


def test_circles_that_are_turned_against_each_other_need_a_shift() -> None:
    logits = adders.pizza(13, 3, shift=2.5)
    assert logit_patterns(logits, [3])["pizza"].sel(frequency=3) < 0.95
    found = logit_patterns(logits, [3], shifted=True).sel(frequency=3)
    assert float(found["pizza"]) == pytest.approx(1)
    assert float(found["shift"]) == pytest.approx(2.5)


@pytest.mark.parametrize("name", adders.NETWORKS)
@pytest.mark.parametrize("task", [adders.SMALL, adders.SUBTRACTS, adders.OWN], ids=["adds", "subtracts", "own words"])
def test_one_circle_equals_a_network_with_a_cut_embedding(name: str, task: ModularAddition) -> None:
    model, cut, p = adders.small(name), network(name), task.modulus
    untied = torch.nn.Parameter(cut.unembed.weight.data.clone())
    table = cut.embed.weight.data.clone()
    for start in {0, task.second}:
        values = table[start : start + p].clone()
        kept = values.mean(0).expand(p, -1).clone()
        for turn in (math.cos, math.sin):
            wave = torch.tensor([turn(2 * math.pi * x / p) for x in range(p)], dtype=torch.float64)
            kept += torch.outer(wave, wave @ values) / (wave @ wave)
        table[start : start + p] = kept
    cut.unembed.weight, cut.embed.weight = untied, torch.nn.Parameter(table)
    expected = pair_activations(cut, task).logits
    torch.testing.assert_close(circle_logits(model, 1, task=task), expected)
    found = circle_patterns(model, [1], task=task)
    right = (expected.argmax(2) == right_answers(p)).double().mean()
    assert float(found["accuracy"].sel(frequency=1)) == pytest.approx(float(right))
    shifted = logit_patterns(expected, [1], shifted=task.second > 0)
    np.testing.assert_allclose(found["pizza"], shifted["pizza"])


@pytest.mark.usefixtures("unchecked")
def test_what_has_no_pattern_is_refused() -> None:
    with pytest.raises(UserError, match="logits are the same for all pairs"):
        logit_patterns(torch.ones(5, 5, 5), [1])
    with pytest.raises(UserError, match="Frequency 3 does not exist modulo 5; there are 1–2"):
        logit_patterns(adders.clock(5, 1), [3])
    with pytest.raises(UserError, match="Frequency 4 does not exist modulo 7"):
        circle_patterns(adders.small("gpt2"), [4], task=adders.SMALL)


# Measured on single circles: share of variance of the clock's pattern and of the pizza's, by frequency.
CIRCLES = {
    "pizza-l8k1hzciux": {13: (0.987, 0.819), 16: (0.975, 0.803), 21: (0.796, 0.982)},
    "pizza-p99zdpze5l": {17: (0.773, 0.997), 3: (0.776, 0.997), 15: (0.771, 0.995)},
    "pizza-q9rsl94xlv": {12: (0.986, 0.807), 4: (0.894, 0.872), 21: (0.726, 0.733), 19: (0.749, 0.944)},
    "pizza-18c9ev5v5p": {28: (0.776, 0.996), 7: (0.792, 0.999), 23: (0.778, 0.998)},
    "pizza-dy65ktpiij": {11: (0.762, 0.959), 24: (0.556, 0.738)},
    "nanda-mod113": {37: (0.775, 0.964)},
    "nanda-mod113-no-wd": {36: (0.913, 0.952)},
}


@pytest.mark.artifacts
@pytest.mark.usefixtures("artifacts")
@pytest.mark.parametrize("name", CIRCLES)
def test_the_authors_circles_are_clocks_and_pizzas(name: str) -> None:
    found = circle_patterns(adders.published(name), list(CIRCLES[name]))
    for k, (clock, pizza) in CIRCLES[name].items():
        assert float(found["clock"].sel(frequency=k)) == pytest.approx(clock, abs=2e-3)
        assert float(found["pizza"].sel(frequency=k)) == pytest.approx(pizza, abs=2e-3)


@pytest.mark.artifacts
@pytest.mark.usefixtures("artifacts")
def test_model_b_has_an_accompanying_circle_for_each_pizza_and_looks_like_a_clock_as_a_whole() -> None:
    accompanying = circle_patterns(adders.published("pizza-p99zdpze5l"), [25, 6, 29])
    assert (accompanying["accompanying"] > 0.98).all()
    logits = adders.every_pair_of("pizza-p99zdpze5l").logits
    whole = logit_patterns(logits, keys_of(adders.frequencies_of("pizza-p99zdpze5l")))
    assert float(whole["clock"].sum()) == pytest.approx(0.9948, abs=1e-3)
    assert float(whole["pizza"].sum()) == pytest.approx(0.8319, abs=1e-3)
    assert (whole["by_distance"] > 0.94).all()
