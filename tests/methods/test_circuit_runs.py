"""Runs with only some edges live equal a pass by hand in which each reader mixes what it reads, edge by edge."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tests.architectures import ARCHITECTURES, BATCH, LENGTH, network, prompts
from tests.methods.masked_edges import outputs, slow_logits
from tests.oracle import oracle_sites
from torch import Tensor

from headwork.engine.metrics import KLDivergence, LogitDifference, kl_from
from headwork.errors import UserError
from headwork.methods.ablated_outputs import counterfactual, from_reference, zeros
from headwork.methods.circuit_runs import CircuitRuns, bytes_per_prompt
from headwork.methods.graph import graph
from headwork.model.transformer import Transformer

POSITIONS, CORRECT, WRONG = torch.tensor([4, 2, 3]), torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0])
METRIC = LogitDifference(POSITIONS, CORRECT, WRONG)
NETWORKS = ("attention-only-rotary-half", "gpt2", "neox", "llama", "qwen3", "shortformer", "one-kv-head", "causal-pad")


def case(name: str, shared: int = 0) -> tuple[Transformer, Tensor, Tensor]:
    clean, corrupt = prompts(name, 1), prompts(name, 2)
    corrupt[:, :shared] = clean[:, :shared]
    return network(name), clean, corrupt


def random_masks(model: Transformer, count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, *graph(model.config).visible.shape, generator=torch.Generator().manual_seed(seed)) < 0.5


def logits(model: Transformer, runs: CircuitRuns, masks: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.stack([model.logits(resid) for resid in runs.resid(masks)])


def difference(logits: Tensor) -> Tensor:
    rows = torch.arange(len(logits))
    return logits[rows, POSITIONS, CORRECT] - logits[rows, POSITIONS, WRONG]


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected.to(found), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shared", [0, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_random_circuits_equal_the_slow_twin(name: str, shared: int) -> None:
    model, clean, corrupt = case(name, shared)
    masks = random_masks(model, 3)
    runs = CircuitRuns(model, clean, METRIC, counterfactual(model, corrupt))
    ablated = outputs(model, corrupt)
    expected = torch.stack([slow_logits(model, clean, ablated, mask) for mask in masks])
    assert (expected - expected[:1]).abs().max() > 1e-3
    close(logits(model, runs, masks), expected)
    close(runs(masks), torch.stack([difference(one) for one in expected]))


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama"])
def test_shares_of_edges_between_none_and_all_equal_the_slow_twin(name: str) -> None:
    model, clean, corrupt = case(name)
    masks = torch.rand(2, *graph(model.config).visible.shape, dtype=torch.float64)
    runs = CircuitRuns(model, clean, METRIC, counterfactual(model, corrupt))
    expected = torch.stack([slow_logits(model, clean, outputs(model, corrupt), mask) for mask in masks])
    close(logits(model, runs, masks), expected)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_all_edges_live_is_the_plain_run_and_none_the_corrupt_run(name: str) -> None:
    model, clean, corrupt = case(name)
    runs = CircuitRuns(model, clean, METRIC, counterfactual(model, corrupt))
    masks = torch.ones(2, *graph(model.config).visible.shape, dtype=torch.bool)
    masks[1] = False
    expected = torch.stack([oracle_sites(model, tokens)["logits"] for tokens in (clean, corrupt)])
    close(logits(model, runs, masks), expected)


@pytest.mark.parametrize("value", ["zero", "mean", "mean-by-position", "resample"])
@pytest.mark.parametrize("name", ["gpt2", "neox", "one-kv-head"])
def test_values_from_a_reference_equal_the_slow_twin(name: str, value: str) -> None:
    model, clean, _ = case(name)
    reference = torch.cat([prompts(name, 3), prompts(name, 4)])
    each = outputs(model, reference)
    if value == "resample":
        chosen = torch.randint(len(reference), (BATCH,), generator=torch.Generator().manual_seed(5))
        ablated = {name: out[chosen] for name, out in each.items()}
    elif value == "zero":
        ablated = {name: torch.zeros_like(out[:BATCH]) for name, out in each.items()}
    else:
        axes = (0, 1) if value == "mean" else (0,)
        ablated = {name: out.mean(axes, keepdim=True).expand(BATCH, LENGTH, -1) for name, out in each.items()}
    given = from_reference(model, reference, value, BATCH, torch.Generator().manual_seed(5))  # type: ignore[arg-type]
    masks = random_masks(model, 2)
    expected = torch.stack([slow_logits(model, clean, ablated, mask) for mask in masks])
    close(logits(model, CircuitRuns(model, clean, METRIC, given), masks), expected)


@pytest.mark.parametrize("shared", [0, 3])
@pytest.mark.parametrize("name", ["gpt2", "neox", "llama", "shortformer"])
def test_gradients_in_the_masks_equal_differences_of_runs(name: str, shared: int) -> None:
    model, clean, corrupt = case(name, shared)
    runs = CircuitRuns(model, clean, METRIC, counterfactual(model, corrupt))
    masks = torch.rand(1, *graph(model.config).visible.shape, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(runs(masks).sum(), masks)
    direction = torch.randn(masks.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    step = 1e-5
    with torch.no_grad():
        change = (runs(masks + step * direction) - runs(masks - step * direction)).sum() / (2 * step)
    close((gradient * direction).sum(), change, 1e-6)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_nothing_is_recorded_where_the_masks_need_no_gradient() -> None:
    model, clean, corrupt = case("gpt2")
    runs = CircuitRuns(model, clean, METRIC, counterfactual(model, corrupt))
    masks = random_masks(model, 2)
    assert not runs(masks).requires_grad
    with torch.no_grad():
        assert not runs(masks.double().requires_grad_()).requires_grad


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_chunking_changes_nothing_and_a_limit_below_one_variant_is_refused(name: str) -> None:
    model, clean, corrupt = case(name)
    values, masks = counterfactual(model, corrupt), random_masks(model, 5)
    whole = CircuitRuns(model, clean, METRIC, values)(masks)
    one = BATCH * bytes_per_prompt(model, LENGTH)
    close(CircuitRuns(model, clean, METRIC, values, memory=2 * one)(masks), whole)
    with pytest.raises(UserError, match="3 prompts of 5 tokens with separate edges needs about"):
        CircuitRuns(model, clean, METRIC, values, memory=one - 1)
    recorded = BATCH * bytes_per_prompt(model, LENGTH, recorded=True)
    runs = CircuitRuns(model, clean, METRIC, values, memory=2 * recorded)
    runs(masks[:2].double().requires_grad_())
    with pytest.raises(UserError, match="3 masks with gradient do not fit into the memory together; 2 would"):
        runs(masks[:3].double().requires_grad_())


def test_a_divergence_is_read_like_any_metric() -> None:
    model, clean, corrupt = case("llama")
    metric = kl_from(model, clean, POSITIONS)
    runs = CircuitRuns(model, clean, metric, counterfactual(model, corrupt))
    masks = torch.ones(2, *graph(model.config).visible.shape, dtype=torch.bool)
    masks[1] = False
    found = runs(masks)
    close(found[0], torch.zeros(BATCH))
    rows = torch.arange(BATCH)
    said, other = (oracle_sites(model, t)["logits"][rows, POSITIONS].log_softmax(-1) for t in (clean, corrupt))
    close(found[1], (said.exp() * (said - other)).sum(-1))


@pytest.mark.usefixtures("unchecked")
def test_what_does_not_fit_is_named() -> None:
    model, clean, corrupt = case("gpt2")
    values = counterfactual(model, corrupt)
    with pytest.raises(UserError, match=r"are for 3 prompts; there are 2 here"):
        CircuitRuns(model, clean[:2], METRIC, values)
    with pytest.raises(UserError, match=r"are for 5 positions; there are 4 here"):
        CircuitRuns(model, clean[:, :4], METRIC, values)
    with pytest.raises(UserError, match="network of another shape"):
        CircuitRuns(model, clean, METRIC, zeros(network("llama")))
    with pytest.raises(UserError, match="The logit difference is for 3 prompts, but there are 2"):
        CircuitRuns(model, clean[:2], METRIC, zeros(model))
    bad = KLDivergence(POSITIONS, torch.full((BATCH, 11), torch.nan))
    with pytest.raises(UserError, match="The metric gave nan for prompt 0"):
        CircuitRuns(model, clean, bad, values)(random_masks(model, 1))
    runs = CircuitRuns(model, clean, METRIC, values)
    with pytest.raises(UserError, match=r"The masks have shape \[7, 15\]; this network needs \[variants, 7, 15\]"):
        runs(random_masks(model, 1)[0])


def test_the_network_and_the_values_are_left_as_they_were() -> None:
    model, clean, corrupt = case("neox")
    values = counterfactual(model, corrupt)
    before = [x.clone() for x in (values.embed, *values.z, *values.mlp_out)]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    CircuitRuns(model, clean, METRIC, values)(random_masks(model, 2))
    assert all(torch.equal(a, b) for a, b in zip(before, (values.embed, *values.z, *values.mlp_out)))
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert dataclasses.is_dataclass(values)
