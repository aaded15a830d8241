"""Patching an edge equals a pass by hand in which that one reader reads the other run's output of that one writer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray
from tests.architectures import ARCHITECTURES, BATCH, LENGTH, network, prompts
from tests.methods.masked_edges import outputs, slow_logits
from tests.oracle import oracle_sites
from torch import Tensor

from headwork.engine.metrics import LogitDifference
from headwork.errors import UserError
from headwork.methods.ablated_outputs import counterfactual
from headwork.methods.ablation_choices import Direction
from headwork.methods.circuit_runs import CircuitRuns
from headwork.methods.edge_patching import bytes_per_prompt, edge_patching
from headwork.methods.graph import graph
from headwork.model.transformer import Transformer
from headwork.tasks.prompt_pairs import PromptPairs

POSITIONS, CORRECT, WRONG = torch.tensor([4, 2, 3]), torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0])
METRIC = LogitDifference(POSITIONS, CORRECT, WRONG)
NETWORKS = ("gpt2", "neox", "llama", "qwen3", "shortformer", "one-kv-head", "bidirectional-pad", "head-norm-learned")


def case(name: str, shared: int = 0) -> tuple[Transformer, PromptPairs]:
    clean, corrupt = prompts(name, 1), prompts(name, 2)
    corrupt[:, :shared] = clean[:, :shared]
    corrupt[:, 4] = clean[:, 4] % (ARCHITECTURES[name].d_vocab - 1) + 1
    pad = ARCHITECTURES[name].pad_token
    if pad is not None:
        corrupt[clean == pad] = pad
        corrupt[1, 0] = clean[1, 0] % 10 + 1
    return network(name), PromptPairs(clean, corrupt)


def difference(logits: Tensor) -> Tensor:
    rows = torch.arange(BATCH)
    return logits[rows, POSITIONS, CORRECT] - logits[rows, POSITIONS, WRONG]


def close(found: object, expected: object) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    "name, shared, direction",
    [(name, 2 * (i % 2), "denoising" if i % 4 < 2 else "noising") for i, name in enumerate(NETWORKS)]
    + [("gpt2", 2, "noising"), ("neox", 0, "noising"), ("one-kv-head", 2, "denoising")],
)
def test_every_edge_equals_a_run_with_that_edge_cut(name: str, shared: int, direction: Direction) -> None:
    model, pairs = case(name, shared)
    into, other = (pairs.clean, pairs.corrupt) if direction == "noising" else (pairs.corrupt, pairs.clean)
    found = edge_patching(model, pairs, METRIC, direction=direction, per_example=True)
    edges = graph(model.config)
    masks = torch.ones(1 + edges.edges, *edges.visible.shape, dtype=torch.bool)
    cut = np.argwhere(edges.visible)
    for i, (writer, reader) in enumerate(cut):
        masks[1 + i, writer, reader] = False
    values = CircuitRuns(model, into, METRIC, counterfactual(model, other))(masks)
    expected = np.full((BATCH, *edges.visible.shape), np.nan)
    expected[:, cut[:, 0], cut[:, 1]] = (values[1:] - values[:1]).T.numpy()
    assert np.nanmax(np.abs(expected)) > 1e-3
    close(found, expected)


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama"])
def test_some_edges_equal_the_pass_by_hand_and_all_others_are_blank(name: str) -> None:
    model, pairs = case(name)
    edges = graph(model.config)
    ablated, ones = outputs(model, pairs.corrupt), torch.ones(edges.visible.shape)
    base = difference(slow_logits(model, pairs.clean, ablated, ones))
    chosen = [("embed", "0.1<v>"), ("0.0", "1.1<q>"), ("m0", "1.0<k>"), ("embed", "m0"), ("1.0", "logits")]
    found = edge_patching(model, pairs, METRIC, edges=chosen, per_example=True)
    for writer, reader in chosen:
        mask = ones.clone()
        mask[edges.writer(writer), edges.reader(reader)] = 0
        expected = difference(slow_logits(model, pairs.clean, ablated, mask)) - base
        close(found.sel(writer=writer, reader=reader), expected)
    assert int(found[0].notnull().sum()) == len(chosen)


@pytest.mark.parametrize("name", [name for name, config in ARCHITECTURES.items() if config.norm == "none"])
def test_edges_into_the_logits_add_up_to_the_change_of_a_linear_metric(name: str) -> None:
    model, pairs = case(name)
    change = [difference(oracle_sites(model, tokens)["logits"]) for tokens in (pairs.clean, pairs.corrupt)]
    edges = [(str(w), "logits") for w in graph(model.config).writers]
    found = edge_patching(model, pairs, METRIC, edges=edges, per_example=True)
    close(found.sel(reader="logits").sum("writer"), (change[1] - change[0]).detach())


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_mean_over_prompts_is_labelled(name: str) -> None:
    model, pairs = case(name)
    each = edge_patching(model, pairs, METRIC, per_example=True)
    mean = edge_patching(model, pairs, METRIC)
    edges = graph(model.config)
    assert each.dims == ("prompt", "writer", "reader")
    assert list(mean["writer"].values) == [str(w) for w in edges.writers]
    assert list(mean["reader"].values) == [str(r) for r in edges.readers]
    np.testing.assert_array_equal(mean.notnull(), edges.visible)
    xarray.testing.assert_allclose(mean, each.mean("prompt"), rtol=1e-12)
    assert mean.attrs == {
        "method": "edge patching",
        "metric": "LogitDifference",
        "prompts": BATCH,
        "direction": "noising",
        "units": "units of the metric",
        "ablation_granularity": "edge",
        "ablation_component": "heads by q, k, v and MLPs",
        "ablation_value": "counterfactual",
        "ablation_direction": "noising",
        "ablation_set": "circuit",
        "ablation_positions": "all",
    }


@pytest.mark.parametrize(
    "name, prompts_at_once, copies", [("gpt2", 1, 3), ("gpt2", 2, 1), ("llama", 1, 2), ("causal-pad", 2, 1)]
)
def test_chunking_changes_nothing(name: str, prompts_at_once: int, copies: int) -> None:
    model, pairs = case(name)
    done: list[int] = []
    whole = edge_patching(model, pairs, METRIC)
    once, each = bytes_per_prompt(model, LENGTH)
    memory = prompts_at_once * (once + copies * each)
    cut = edge_patching(model, pairs, METRIC, memory=memory, progress=done.append)
    assert sum(done) == -(-BATCH // prompts_at_once) * graph(model.config).edges
    xarray.testing.assert_allclose(cut, whole, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("unchecked")
def test_what_does_not_exist_or_fit_is_named_before_any_work() -> None:
    model, pairs = case("gpt2")
    with pytest.raises(UserError, match=r"Unknown reader of an edge '0\.5<q>'"):
        edge_patching(model, pairs, METRIC, edges=[("embed", "0.5<q>")])
    with pytest.raises(UserError, match="Unknown writer of an edge 'm7'"):
        edge_patching(model, pairs, METRIC, edges=[("m7", "logits")])
    with pytest.raises(UserError, match=r"no edge from m0 to 0\.0<q>"):
        edge_patching(model, pairs, METRIC, edges=[("m0", "0.0<q>")])
    with pytest.raises(UserError, match="No edge was given"):
        edge_patching(model, pairs, METRIC, edges=[])
    with pytest.raises(UserError, match="Unknown direction 'noise'"):
        edge_patching(model, pairs, METRIC, direction="noise")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="one pair of 5 tokens needs about"):
        edge_patching(model, pairs, METRIC, memory=1000)
    with pytest.raises(UserError, match="The logit difference is for 3 prompts, but there are 2"):
        edge_patching(model, pairs.part(slice(0, 2)), METRIC)
