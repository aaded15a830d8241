"""Attribution patching equals finite differences of patched full runs; and what theory says of sums and limits."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pytest
import torch
import xarray
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.architectures import ARCHITECTURES, BATCH, LENGTH, network
from tests.methods.peak import Peak
from tests.methods.test_activation_patching import METRIC, START, PutAt, metric_of, pairs
from tests.oracle import oracle_sites
from torch import Tensor

from headwork.engine.metrics import LogitDifference, Loss
from headwork.engine.run import bytes_kept
from headwork.errors import UserError
from headwork.methods.activation_patching import activation_patching
from headwork.methods.cells import By
from headwork.methods.edge_attribution import bytes_per_pair, edge_attribution
from headwork.methods.node_attribution import Between, node_attribution
from headwork.model.initialise import initialise
from headwork.model.transformer import Transformer
from headwork.tasks.prompt_pairs import PromptPairs

NETWORKS = ("gpt2", "neox", "llama", "qwen3", "shortformer", "bidirectional-pad")
CASES: tuple[tuple[str, By], ...] = (
    ("resid_pre", "position"),
    ("resid_mid", "layer"),
    ("attn.z", "head-position"),
    ("attn.q", "head"),
    ("attn.k", "head-position"),
    ("attn.pattern", "head"),
    ("mlp_out", "position"),
)


def slowly(
    model: Transformer, data: PromptPairs, base: dict[str, Tensor], other: dict[str, Tensor], site: str, by: By
) -> Tensor:
    """The derivative of each cell's patching effect (noising) as the patch begins, by central differences."""
    nudge = 1e-4
    heads = model.config.kv_heads if site in ("attn.k", "attn.v") else model.config.n_heads
    where = list(range(LENGTH)) if "position" in by else [slice(None)]
    which = list(range(heads)) if "head" in by else [slice(None)]
    found = []
    for layer in range(model.config.n_layers):
        name = f"blocks.{layer}.{site}"
        change = other[name] - base[name]
        for position in where:
            for head in which:
                with torch.no_grad():
                    ahead, behind = (
                        metric_of(model(data.clean, PutAt(name, base[name] + step * change, head, position)))
                        for step in (nudge, -nudge)
                    )
                found.append((ahead - behind) / (2 * nudge))
    shape = [model.config.n_layers, *([LENGTH] if "position" in by else []), *([heads] if "head" in by else [])]
    return torch.stack(found).view(*shape, BATCH)


@pytest.mark.parametrize("name", NETWORKS)
def test_attribution_equals_finite_differences_of_patched_runs(name: str) -> None:
    model, data = network(name), pairs(name)
    config = model.config
    base, other = oracle_sites(model, data.clean), oracle_sites(model, data.corrupt)
    for site, by in CASES:
        if (config.attention_only and "mlp" in site) or (site == "resid_mid" and (config.parallel or not config.d_mlp)):
            continue
        found = node_attribution(model, data, METRIC, site=site, by=by, direction="noising")["effect"]
        expected = slowly(model, data, base, other, site, by).numpy()
        assert np.abs(expected).max() > 1e-3
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6, err_msg=f"{site} by {by}")


@pytest.mark.parametrize("name", ["gpt2", "llama", "bidirectional-pad"])
def test_the_dataset_has_the_axes_of_activation_patching(name: str) -> None:
    model, data = network(name), pairs(name)
    choices: tuple[dict[str, Any], ...] = (
        {},
        {"site": "attn.v", "by": "head-position", "heads": [1], "positions": [4, 3]},
        {"site": "attn.z", "by": "head", "direction": "noising", "layers": [1]},
        {"site": "attn.pattern", "by": "position", "heads": [1]},
        {"site": "attn_out", "by": "layer", "positions": [3]},
    )
    for options in choices:
        patched = activation_patching(model, data, METRIC, **options)
        found = node_attribution(model, data, METRIC, **options)
        for variable in patched.variables:
            assert found[variable].dims == patched[variable].dims
            assert found[variable].attrs == patched[variable].attrs
        for same in ("clean", "corrupt", *patched.coords):
            if same in ("clean", "corrupt"):
                np.testing.assert_allclose(found[same], patched[same], rtol=0, atol=1e-10)
            else:
                assert found[same].equals(patched[same])
        ours = {"method": "attribution patching", "steps": 1, "between": "inputs"}
        assert found.attrs == patched.attrs | ours


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_what_is_not_separated_is_summed_over_what_was_chosen(name: str) -> None:
    model, data = network(name), pairs(name)
    every = node_attribution(model, data, METRIC, site="attn.pattern", by="head-position")["effect"]
    heads = node_attribution(model, data, METRIC, site="attn.pattern", by="head", positions=[4, 2])["effect"]
    where = node_attribution(model, data, METRIC, site="attn.pattern", by="position", heads=[1])["effect"]
    layers = node_attribution(model, data, METRIC, site="attn.pattern", by="layer")["effect"]
    np.testing.assert_allclose(heads, every.sel(position=[4, 2]).sum("position"), rtol=0, atol=1e-12)
    np.testing.assert_allclose(where, every.sel(head=1), rtol=0, atol=1e-12)
    np.testing.assert_allclose(layers, every.sum(["head", "position"]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["attention-only-rotary-half", "mix-causal", "one-kv-head", "solu-ln-parallel"])
def test_attribution_is_exact_where_the_metric_is_linear_in_the_site(name: str) -> None:
    model, data = network(name), pairs(name)
    assert model.config.norm == "none"
    last = [model.config.n_layers - 1]
    # In a block that is not parallel an MLP stands between attention and the logits.
    straight = model.config.attention_only or model.config.parallel
    sites: tuple[tuple[str, By, bool], ...] = (
        ("resid_post", "position", True),
        ("attn.z", "head-position", straight),
        ("attn.result", "head", straight),
        ("mlp_out", "position", not model.config.attention_only),
        ("mlp.post", "layer", not model.config.attention_only),
    )
    for site, by, linear in sites:
        if not linear:
            continue
        patched = activation_patching(model, data, METRIC, site=site, by=by, layers=last)
        found = node_attribution(model, data, METRIC, site=site, by=by, layers=last)
        assert np.abs(patched["effect"]).max() > 1e-2
        for variable in ("effect", "normalised", "normalised_by_prompt"):
            np.testing.assert_allclose(found[variable], patched[variable], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["gpt2", "neox", "qwen3"])
def test_the_error_falls_with_the_square_of_the_difference_between_the_runs(name: str) -> None:
    model, data = network(name), pairs(name)
    other = torch.where(data.clean == 9, 10, 9)
    data = PromptPairs(data.clean.clone(), torch.where(torch.arange(LENGTH) == START, other, data.clean))
    model.unembed.weight = torch.nn.Parameter(model.unembed.weight.detach().clone())
    embedding = model.embed.weight.detach().clone()
    off = []
    for size in (1e-2, 1e-3):
        with torch.no_grad():
            # Tokens 9 and 10 lie `size` from every token that they replace.
            model.embed.weight[:] = embedding[3] + size * embedding
        patched = activation_patching(model, data, METRIC, site="attn.z", by="head")["effect"]
        found = node_attribution(model, data, METRIC, site="attn.z", by="head")["effect"]
        off.append(float(np.abs(found - patched).max() / np.abs(patched).max()))
    assert off[1] < 0.2 * off[0]
    assert off[1] < 0.05


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_edges_out_of_a_node_add_up_to_its_attribution(name: str, steps: int) -> None:
    model, data = network(name), pairs(name)
    edges = edge_attribution(
        model, data.clean, data.corrupt, METRIC, variant="inputs", steps=steps, per_example=True
    ).sum("reader")
    heads = node_attribution(model, data, METRIC, site="attn.z", by="head", direction="noising", steps=steps)["effect"]
    writers = [f"{layer}.{head}" for layer in range(model.config.n_layers) for head in range(model.config.n_heads)]
    flat = heads.stack(writer=["layer", "head"]).transpose("prompt", "writer")
    np.testing.assert_allclose(flat, edges.sel(writer=writers), rtol=1e-9, atol=1e-9)
    if not model.config.attention_only:
        mlps = node_attribution(model, data, METRIC, site="mlp_out", by="layer", direction="noising", steps=steps)
        expected = edges.sel(writer=[f"m{layer}" for layer in range(model.config.n_layers)])
        np.testing.assert_allclose(mlps["effect"].transpose("prompt", "layer"), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name, site, layer", [("gpt2", "attn.q", 0), ("neox", "resid_pre", 1), ("qwen3", "attn.v", 1)])
def test_between_activations_a_layers_estimate_becomes_the_effect_of_patching_it(
    name: str, site: str, layer: int
) -> None:
    """Integrated gradients are complete (Sundararajan et al. 2017)."""
    model, data = network(name), pairs(name)
    options: dict[str, Any] = {"site": site, "by": "layer", "layers": [layer]}
    patched = activation_patching(model, data, METRIC, **options)["effect"]
    few, many = (
        node_attribution(model, data, METRIC, steps=steps, between="activations", **options)["effect"]
        for steps in (30, 60)
    )
    assert np.abs(many - patched).max() < 0.6 * np.abs(few - patched).max()
    # The error of the sum falls as 1/steps; what is left when that is taken out falls with its square.
    np.testing.assert_allclose(2 * many - few, patched, rtol=0, atol=0.01 * np.abs(patched).max())


def test_between_inputs_the_first_streams_estimate_becomes_the_whole_difference() -> None:
    model, data = network("gpt2"), pairs("gpt2")
    for steps, atol in ((20, 0.2), (80, 0.05)):
        found = node_attribution(model, data, METRIC, by="layer", layers=[0], steps=steps)
        np.testing.assert_allclose(found["normalised_by_prompt"], 1, atol=atol)
        np.testing.assert_allclose(found["normalised"], 1, atol=atol)


@pytest.mark.parametrize("name", ["bidirectional-pad", "causal-pad", "bidirectional-local-pad", "all-local"])
def test_keys_that_a_query_may_not_see_are_no_change(name: str) -> None:
    model, data = network(name), pairs(name)
    for between in get_args(Between):
        found = node_attribution(model, data, METRIC, site="attn.attn_scores", by="head", steps=2, between=between)
        assert found["effect"].notnull().all()
        assert np.abs(found["effect"]).max() > 1e-3


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(NETWORKS), st.sampled_from(CASES), st.integers(START, LENGTH - 1), st.sampled_from([1, 3]))
def test_values_shared_by_the_two_runs_change_nothing(name: str, case: tuple[str, By], first: int, read: int) -> None:
    model, data = network(name), pairs(name)
    site = case[0] if case[0].startswith(("attn", "resid_pre")) else "resid_post"
    by: By = "head-position" if site.startswith("attn.") else "position"
    late = torch.arange(LENGTH) >= first
    rows = slice(0, 1)
    one = PromptPairs(data.clean[rows], torch.where(late, data.corrupt, data.clean)[rows])
    metric = LogitDifference(torch.tensor([read]), METRIC.correct[rows], METRIC.wrong[rows])
    found = node_attribution(model, one, metric, site=site, by=by)["effect"]
    if model.config.causal:
        assert (found.sel(position=slice(0, first - 1)) == 0).all()
        assert (found == 0).all() == (read < first)


@pytest.mark.parametrize("between", get_args(Between))
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_limit_on_memory_changes_no_number(name: str, between: Between) -> None:
    model, data = network(name), pairs(name)
    options: dict[str, Any] = {"site": "attn.z", "by": "head", "steps": 2, "between": between}
    whole = node_attribution(model, data, METRIC, **options)
    sites = [f"blocks.{layer}.attn.z" for layer in range(model.config.n_layers)]
    least = bytes_per_pair(model, LENGTH, START, START) + 4 * bytes_kept(model, 1, LENGTH, sites)
    for memory in (least, 2 * least):
        done: list[int] = []
        found = node_attribution(model, data, METRIC, memory=memory, progress=done.append, **options)
        assert len(done) > 1
        assert sum(done) == BATCH
        np.testing.assert_allclose(found["effect"], whole["effect"], rtol=0, atol=1e-10)
    with pytest.raises(UserError, match=r"on one pair of 5 tokens needs about [\d.]+ MB beside the weights"):
        node_attribution(model, data, METRIC, memory=least - 1, **options)


@pytest.mark.parametrize("between", get_args(Between))
@pytest.mark.parametrize("site", ["attn.pattern", "attn.result"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_memory_stays_under_the_limit(name: str, site: str, between: Between) -> None:
    length = 64
    model = initialise(dataclasses.replace(ARCHITECTURES[name], n_ctx=length), 0).double()
    clean, corrupt = (torch.full((3, length), token) for token in (1, 2))
    data = PromptPairs(clean, corrupt)
    metric = Loss(torch.ones_like(clean), torch.ones_like(clean, dtype=torch.bool))
    options: dict[str, Any] = {"site": site, "by": "layer", "steps": 2, "between": between}
    sites = [f"blocks.{layer}.{site}" for layer in range(model.config.n_layers)]
    need = bytes_per_pair(model, length) + 4 * bytes_kept(model, 1, length, sites)
    with Peak() as peak:
        node_attribution(model, data, metric, memory=need, **options)
    assert peak.most < need
    assert need < 4 * peak.most


def test_weights_without_gradients_give_the_same_estimates() -> None:
    model, data = network("gpt2"), pairs("gpt2")
    expected = node_attribution(model, data, METRIC)
    with torch.no_grad():
        inside = node_attribution(model, data, METRIC)
    assert inside.identical(expected)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    frozen = node_attribution(model.requires_grad_(False), data, METRIC)
    np.testing.assert_allclose(frozen["effect"], expected["effect"], rtol=1e-12)


def test_a_result_can_be_saved(tmp_path: Any) -> None:
    found = node_attribution(network("gpt2"), pairs("gpt2"), METRIC, layers=[1])
    found.to_netcdf(tmp_path / "attribution.nc", engine="h5netcdf")
    xarray.testing.assert_identical(xarray.load_dataset(tmp_path / "attribution.nc", engine="h5netcdf"), found)


@dataclass(frozen=True)
class Own:
    """A metric of one's own."""

    how: str

    def __call__(self, model: Transformer, resid: Tensor, start: int) -> Tensor:
        total = resid[:, -1].sum(-1)
        if self.how == "steep":
            return (total - total.detach()).abs().sqrt()
        return {"flat": torch.ones(len(resid)), "nan": total * torch.nan, "wide": resid.sum(-1)}[self.how]

    def reads(self, length: int) -> int:
        return length - 1


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_used_is_refused() -> None:
    metrics = {
        "flat": "The metric has no gradient",
        "nan": "The metric gave nan for prompt a",
        "wide": r"The metric gave \[3, 3\] for 3 prompts",
        "steep": "The metric's gradient is not finite for prompt a",
    }
    for how, says in metrics.items():
        with pytest.raises(UserError, match=says):
            node_attribution(network("gpt2"), pairs("gpt2"), Own(how))
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"site": "attn.zz"}, "Unknown site to patch 'attn.zz': .*attn.z"),
        ({"by": "head"}, "site resid_pre has no heads"),
        ({"positions": [5]}, "position 5 does not exist"),
        ({"direction": "noise"}, "Unknown direction 'noise': .*noising"),
        ({"between": "input"}, "Unknown way between the runs 'input': .*inputs"),
        ({"steps": 0}, "steps = 0; it needs 1 or more"),
    ]
    for options, says in wrong:
        with pytest.raises(UserError, match=says):
            node_attribution(network("gpt2"), pairs("gpt2"), METRIC, **options)
    short = LogitDifference(torch.tensor([4]), torch.tensor([0]), torch.tensor([1]))
    with pytest.raises(UserError, match="is for 1 prompts, but there are 3"):
        node_attribution(network("gpt2"), pairs("gpt2"), short)
