"""ACDC finds, edge by edge, what one whole run of the current circuit for every edge finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.architectures import ARCHITECTURES, BATCH, LENGTH, network, prompts
from tests.methods.masked_edges import outputs, slow_logits
from tests.methods.peak import Peak
from torch import Tensor

from headwork.engine.metrics import LogitDifference, Loss, kl_from
from headwork.errors import UserError
from headwork.methods.ablated_outputs import counterfactual, from_reference, zeros
from headwork.methods.ablation_choices import AblationValue
from headwork.methods.acdc import acdc, bytes_per_pair
from headwork.methods.circuit_runs import CircuitRuns
from headwork.methods.graph import graph
from headwork.model.transformer import Transformer
from headwork.tasks.prompt_pairs import PromptPairs

POSITIONS = torch.tensor([4, 2, 3])
NETWORKS = ("gpt2", "neox", "llama", "shortformer", "one-kv-head", "causal-pad")


def case(name: str, shared: int = 0) -> tuple[Transformer, PromptPairs]:
    clean, corrupt = prompts(name, 1), prompts(name, 2)
    corrupt[:, :shared] = clean[:, :shared]
    corrupt[:, -1] = clean[:, -1] % (ARCHITECTURES[name].d_vocab - 1) + 1
    pad = ARCHITECTURES[name].pad_token
    if pad is not None:
        corrupt[clean == pad] = pad
        corrupt[1, 0] = clean[1, 0] % 10 + 1
    return network(name), PromptPairs(clean, corrupt)


def slow_kl(clean: Tensor, positions: Tensor, logits: Tensor) -> float:
    rows = torch.arange(BATCH)
    said, other = (x[rows, positions].log_softmax(-1) for x in (clean, logits))
    return float((said.exp() * (said - other)).sum(-1).mean())


def slow_acdc(
    model: Transformer, pairs: PromptPairs, ablated: dict[str, Tensor], positions: Tensor, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Kept edges and effects, by one pass by hand for every edge."""
    edges = graph(model.config)
    mask, effects = torch.as_tensor(edges.visible.copy()), np.full(edges.visible.shape, np.nan)
    whole = slow_logits(model, pairs.clean, ablated, mask)
    current = slow_kl(whole, positions, whole)
    for reader in range(len(edges.readers) - 1, -1, -1):
        for writer in range(len(edges.writers) - 1, -1, -1):
            if edges.visible[writer, reader]:
                mask[writer, reader] = False
                after = slow_kl(whole, positions, slow_logits(model, pairs.clean, ablated, mask))
                effects[writer, reader] = after - current
                if after - current < threshold:
                    current = after
                else:
                    mask[writer, reader] = True
    return mask.numpy(), effects


@pytest.mark.parametrize("name, shared, threshold", [(n, 3 * (i % 2), 0.02) for i, n in enumerate(NETWORKS)])
def test_the_same_edges_as_a_whole_run_for_every_edge(name: str, shared: int, threshold: float) -> None:
    model, pairs = case(name, shared)
    found = acdc(model, pairs, kl_from(model, pairs.clean, POSITIONS), threshold)
    mask, effects = slow_acdc(model, pairs, outputs(model, pairs.corrupt), POSITIONS, threshold)
    assert 0 < mask.sum() < 0.9 * graph(model.config).edges
    np.testing.assert_array_equal(found.mask, mask)
    np.testing.assert_allclose(found.effects, effects, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name, value", [("gpt2", "zero"), ("shortformer", "mean-by-position")])
def test_other_ablated_values_give_the_same_edges_too(name: str, value: AblationValue) -> None:
    model, pairs = case(name)
    given = from_reference(model, pairs.corrupt, value)
    each = outputs(model, pairs.corrupt)
    ablated = {
        name: torch.zeros_like(out) if value == "zero" else out.mean(0, keepdim=True).expand_as(out)
        for name, out in each.items()
    }
    found = acdc(model, pairs, None, 0.05, ablated=given)
    mask, effects = slow_acdc(model, pairs, ablated, torch.full((BATCH,), LENGTH - 1), 0.05)
    assert 0 < mask.sum() < 0.9 * graph(model.config).edges
    np.testing.assert_array_equal(found.mask, mask)
    np.testing.assert_allclose(found.effects, effects, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    "name", ["bidirectional-pad", "solu-ln-parallel", "all-local", "no-layers", "head-norm-learned"]
)
def test_a_metric_at_many_positions_equals_whole_runs(name: str) -> None:
    """The twin here is the run with one mask, which has a twin by hand of its own."""
    model, pairs = case(name)
    where = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    where[:, 2], where[0, 4], where[1, 3] = True, True, True
    targets = torch.arange(BATCH * LENGTH).view(BATCH, LENGTH) % model.config.outputs
    metric, edges = Loss(targets, where), graph(model.config)
    runs = CircuitRuns(model, pairs.clean, metric, counterfactual(model, pairs.corrupt))
    mask = torch.as_tensor(edges.visible.copy())
    current = float(runs(mask[None]).mean())
    order = [(w, r) for r in reversed(range(len(edges.readers))) for w in reversed(range(len(edges.writers)))]
    for writer, reader in order:
        if edges.visible[writer, reader]:
            mask[writer, reader] = False
            after = float(runs(mask[None]).mean())
            if after - current < 0.01:
                current = after
            else:
                mask[writer, reader] = True
    found = acdc(model, pairs, metric, 0.01)
    np.testing.assert_array_equal(found.mask, mask.numpy())
    assert found.metric == pytest.approx(current, rel=1e-10)


@pytest.mark.parametrize("name", ["gpt2", "one-kv-head"])
def test_how_many_cuts_are_tried_at_once_changes_nothing_but_how_many_are_tried(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, pairs = case(name)
    found = []
    for tokens in (1, 60, 10_000):
        monkeypatch.setattr("headwork.methods.acdc._TOKENS", tokens)
        found.append(acdc(model, pairs, None, 0.02))
    for other in found[1:]:
        np.testing.assert_array_equal(other.mask, found[0].mask)
        np.testing.assert_allclose(other.effects, found[0].effects, rtol=1e-8, atol=1e-10)
    assert found[0].evaluations <= graph(model.config).edges
    assert found[0].evaluations < found[2].evaluations


def test_an_effect_at_the_threshold_is_decided_by_whole_runs() -> None:
    """A threshold that is an edge's effect to the last digit but one: rounding could decide either way."""
    model, pairs = case("gpt2")
    edges = graph(model.config)
    runs = CircuitRuns(model, pairs.clean, kl_from(model, pairs.clean, torch.full((BATCH,), 4)), zeros(model))
    masks = torch.as_tensor(edges.visible.copy()).repeat(2, 1, 1)
    last = edges.writer("m1"), edges.reader("logits")  # the first edge that is tried
    masks[1][last] = False
    # As acdc does it, one mask at a time.
    effect = float(runs(masks[1:])[0].mean()) - float(runs(masks[:1])[0].mean())
    for threshold, kept in ((effect, True), (np.nextafter(effect, 1), False)):
        found = acdc(model, pairs, None, threshold, ablated=zeros(model))
        assert found.confirmed >= 1
        assert found.mask[last] == kept
        assert found.margin <= 1e-15


@pytest.mark.parametrize("name", ["attention-only-learned", "one-kv-head"])
def test_thresholds_near_nothing_and_above_all_keep_what_matters_and_nothing(name: str) -> None:
    model, pairs = case(name)
    edges = graph(model.config)
    none = acdc(model, pairs, None, 1e3)
    assert not none.mask.any()
    assert int((none.effects == 0).sum()) >= edges.edges - len(edges.writers)
    assert none.evaluations <= len(edges.writers)
    values = CircuitRuns(
        model,
        pairs.clean,
        kl_from(model, pairs.clean, torch.full((BATCH,), LENGTH - 1)),
        counterfactual(model, pairs.corrupt),
    )
    assert none.metric == pytest.approx(float(values(torch.zeros(1, *edges.visible.shape)).mean()), rel=1e-10)
    assert acdc(model, pairs, None, 1e-12).metric < 1e-9


def test_the_result_says_how_it_was_found() -> None:
    model, pairs = case("gpt2")
    done: list[int] = []
    found = acdc(model, pairs, None, 0.02, progress=done.append)
    edges = graph(model.config)
    assert sum(done) == edges.edges
    data = found.to_xarray()
    assert data["kept"].dims == data["effect"].dims == ("writer", "reader")
    assert list(data["reader"].values) == [str(r) for r in edges.readers]
    np.testing.assert_array_equal(data["effect"].notnull(), edges.visible)
    np.testing.assert_array_equal(data["kept"], found.effects >= 0.02)
    assert data.attrs["ablation_value"] == "counterfactual"
    assert data.attrs["ablation_set"] == "complement"
    assert data.attrs["metric_name"] == "KLDivergence"
    assert data.attrs["threshold"] == 0.02
    assert data.attrs["start"] == pytest.approx(0, abs=1e-12)
    # Every cut is in the final metric: what was cut rose it by the sum of its effects.
    assert found.metric - found.start == pytest.approx(found.effects[edges.visible & ~found.mask].sum(), rel=1e-9)
    assert found.margin == np.abs(found.effects[edges.visible] - 0.02).min()


@pytest.mark.parametrize("name", ["gpt2", "one-kv-head"])
def test_memory_bounds_how_many_cuts_are_tried_and_what_is_held(name: str) -> None:
    model, pairs = case(name)
    once, each = (BATCH * size for size in bytes_per_pair(model, LENGTH))
    with Peak() as peak:
        found = acdc(model, pairs, None, 0.02, memory=once + each)
    assert peak.most < once + each
    assert found.evaluations <= graph(model.config).edges
    np.testing.assert_array_equal(found.mask, acdc(model, pairs, None, 0.02).mask)
    with pytest.raises(UserError, match="ACDC on 3 pairs of 5 tokens needs about"):
        acdc(model, pairs, None, 0.02, memory=once + each - 1)


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_used_is_named_before_any_work() -> None:
    model, pairs = case("gpt2")
    for threshold in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="a number above 0"):
            acdc(model, pairs, None, threshold)
    with pytest.raises(UserError, match="for 3 prompts, but there are 2"):
        acdc(model, pairs.part(slice(0, 2)), LogitDifference(POSITIONS, POSITIONS, POSITIONS), 0.1)
    with pytest.raises(UserError, match="network of another shape"):
        acdc(model, pairs, None, 0.1, ablated=zeros(network("llama")))


def test_the_network_and_the_given_values_are_left_as_they_were() -> None:
    model, pairs = case("llama")
    values = counterfactual(model, pairs.corrupt)
    before = [x.clone() for x in (*model.parameters(), values.embed, *values.z, *values.mlp_out)]
    acdc(model, pairs, None, 0.02, ablated=values)
    after = (*model.parameters(), values.embed, *values.z, *values.mlp_out)
    assert all(torch.equal(a, b) for a, b in zip(before, after))
