"""Learned edge masks: gates as published, the gradient that trains them, and what comes out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from tests.architectures import network, prompts
from tests.methods.masked_edges import outputs, slow_logits

from headwork.engine.metrics import KLDivergence, LogitDifference, kl_from
from headwork.errors import UserError
from headwork.methods import edge_masks as module
from headwork.methods.circuit import Circuit
from headwork.methods.circuit_metric import circuit_metric
from headwork.methods.circuit_runs import bytes_per_prompt
from headwork.methods.circuit_selection import top_n
from headwork.methods.edge_masks import edge_masks, hard_concrete, open_probability
from headwork.methods.graph import graph
from headwork.tasks.prompt_pairs import PromptPairs

METRIC = LogitDifference(torch.tensor([4, 2, 3]), torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0]))


def pairs(name: str) -> PromptPairs:
    return PromptPairs(prompts(name, 1), prompts(name, 2))


@pytest.mark.parametrize("log_alpha", [-3.0, -0.5, 0.0, 2.0])
def test_gates_are_open_and_shut_as_often_as_the_formula_says(log_alpha: float) -> None:
    count = 40_000
    uniform = torch.rand(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gates = hard_concrete(torch.full((count,), log_alpha, dtype=torch.float64), uniform)
    assert gates.min() >= 0
    assert gates.max() <= 1
    probability = float(open_probability(torch.tensor([log_alpha], dtype=torch.float64)))
    # Four standard errors of a share.
    assert float((gates > 0).double().mean()) == pytest.approx(probability, abs=4 * (0.25 / count) ** 0.5)
    u = 0.37
    s = 1 / (1 + math.exp(-(math.log(u) - math.log(1 - u) + log_alpha) / (2 / 3)))
    one = hard_concrete(torch.tensor([log_alpha], dtype=torch.float64), torch.tensor([u], dtype=torch.float64))
    assert float(one) == pytest.approx(min(1, max(0, s * 1.2 - 0.1)))
    # The further open, the more of each draw.
    assert (hard_concrete(torch.full((count,), log_alpha + 1, dtype=torch.float64), uniform) >= gates).all()


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama"])
def test_the_loss_and_its_gradient_equal_a_slow_twin(name: str) -> None:
    model, data = network(name), pairs(name)
    known = graph(model.config)
    where = np.flatnonzero(known.visible)
    measure = circuit_metric(model, data, METRIC, recorded=True)
    whole, empty = measure([Circuit.whole(model.config), Circuit.empty(model.config)])
    scale = float(np.abs(whole - empty).mean())
    task = module._Task(measure.runs, torch.from_numpy(whole), scale, where, known.visible.shape)
    gates = torch.rand(len(where), generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def slowly(values: torch.Tensor) -> float:
        mask = torch.zeros(known.visible.shape, dtype=torch.float64)
        mask[torch.from_numpy(known.visible)] = values
        logits = slow_logits(model, data.clean, outputs(model, data.corrupt), mask).detach()
        rows = torch.arange(3)
        found = logits[rows, METRIC.positions, METRIC.correct] - logits[rows, METRIC.positions, METRIC.wrong]
        return float(np.abs(found.numpy() - whole).mean() / scale)

    loss, gradient = task(gates)
    assert loss == pytest.approx(slowly(gates), rel=1e-9)
    for edge in range(0, len(where), 7):
        step = torch.zeros_like(gates)
        step[edge] = 1e-5
        slope = (slowly(gates + step) - slowly(gates - step)) / 2e-5
        assert float(gradient[edge]) == pytest.approx(slope, rel=1e-4, abs=1e-7)


def test_the_result_is_labelled_repeatable_and_about_as_large_as_asked() -> None:
    model, data, done = network("gpt2"), pairs("gpt2"), []
    edges = graph(model.config).edges
    first = edge_masks(model, data, METRIC, fraction=0.3, progress=done.append)
    assert done == [1] * 300
    kept = int(first["chosen"].sum())
    assert kept == first.attrs["size"] == int(0.3 * edges)
    assert Circuit(model.config, first["chosen"].values) == top_n(
        model.config, first["log_alpha"], kept, order="highest"
    )
    assert (first["log_alpha"].notnull() == graph(model.config).visible).all()
    assert first["loss"].sizes == first["open"].sizes == {"step": 300}
    assert abs(float(first["open"][-1]) - kept) < 0.1 * edges
    assert float(first["open"][0]) > 0.95 * edges
    probability = open_probability(torch.from_numpy(first["log_alpha"].values)).numpy()
    np.testing.assert_allclose(first["probability"], probability)
    assert first.attrs["ablation_direction"] == "noising"
    short: dict[str, Any] = {"n": 9, "steps": 5}
    same, again = (edge_masks(model, data, METRIC, seed=2, **short) for _ in range(2))
    np.testing.assert_array_equal(same["log_alpha"], again["log_alpha"])
    other = edge_masks(model, data, METRIC, seed=3, **short)
    assert float(np.abs(other["log_alpha"] - same["log_alpha"]).max()) > 1e-3


def test_the_model_is_left_alone_and_gradients_may_be_off_outside() -> None:
    model, data = network("gpt2"), pairs("gpt2")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    expected = edge_masks(model, data, METRIC, 5, steps=3)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    with torch.no_grad():
        inside = edge_masks(model, data, METRIC, 5, steps=3)
    np.testing.assert_array_equal(inside["log_alpha"], expected["log_alpha"])


@pytest.mark.parametrize("value", ["counterfactual", "zero", "mean", "mean-by-position", "resample"])
def test_chunks_of_prompts_give_the_same_gates(value: str) -> None:
    model, data = network("gpt2"), pairs("gpt2")
    options: dict[str, Any] = {"n": 9, "steps": 4, "value": value}
    each = bytes_per_prompt(model, data.clean.shape[1], recorded=True)
    whole = edge_masks(model, data, METRIC, **options)
    cut = edge_masks(model, data, METRIC, memory=each, **options)
    np.testing.assert_allclose(cut["log_alpha"], whole["log_alpha"], rtol=1e-8)
    np.testing.assert_allclose(cut["loss"], whole["loss"], rtol=1e-9)


def test_a_divergence_from_the_network_itself_is_a_loss_too() -> None:
    model, data = network("gpt2"), pairs("gpt2")
    metric = kl_from(model, data.clean, METRIC.positions)
    assert isinstance(metric, KLDivergence)
    found = edge_masks(model, data, metric, fraction=0.5, steps=60)
    # At first nearly everything is open, and the loss is a share of what ablating everything costs.
    assert 0 <= float(found["loss"][0]) < 0.5


def test_what_cannot_be_trained_is_named() -> None:
    model, data = network("gpt2"), pairs("gpt2")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({}, "give one of the two"),
        ({"n": 10_000}, "10000 edges was asked for"),
        ({"n": 5, "steps": 0}, "steps = 0"),
        ({"n": 5, "rate": 0.0}, "rate = 0.0"),
        ({"n": 5, "warm_up": 2.0}, "warm_up = 2.0"),
        ({"n": 5, "memory": 1000}, "the limit is"),
    ]
    for options, says in wrong:
        with pytest.raises(UserError, match=says):
            edge_masks(model, data, METRIC, **options)
    with torch.no_grad():
        model.unembed.weight[:] = model.unembed.weight[0]
    with pytest.raises(UserError, match="nothing to keep"):
        edge_masks(model, data, METRIC, 5)
