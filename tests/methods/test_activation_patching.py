"""Activation patching equals a slow twin: the oracle's activations put into a full run, the metric from logits."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pytest
import torch
import xarray
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.architectures import BATCH, LENGTH, network, prompts
from tests.oracle import oracle_sites
from torch import Tensor

from headwork.engine.metrics import LogitDifference
from headwork.engine.run import observe, run
from headwork.errors import UserError
from headwork.methods import activation_patching as module
from headwork.methods.activation_patching import By, Direction, activation_patching
from headwork.model.transformer import NO_TAP, Transformer
from headwork.tasks.prompt_pairs import PromptPairs

# Two that are parallel or share keys, one that looks ahead, and one of each way to place tokens.
NETWORKS = ("gpt2", "neox", "llama", "one-kv-head", "attention-only-rotary-half", "shortformer", "bidirectional-pad")
WITHOUT_HEADS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "mlp.post")
WITH_HEADS = ("attn.z", "attn.q", "attn.k", "attn.v", "attn.pattern")
METRIC = LogitDifference(torch.tensor([4, 2, 3]), torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0]))
START = 2


def pairs(name: str, seed: int = 1) -> PromptPairs:
    """Prompts that differ from `START` on, with padding where the architecture has it."""
    clean = prompts(name, seed)
    late = (torch.arange(LENGTH) >= START) & (clean != 0)
    return PromptPairs(clean, torch.where(late, clean % 10 + 1, clean), ("a", "b", "c"))


def metric_of(logits: Tensor) -> Tensor:
    each = zip(logits, METRIC.positions, METRIC.correct, METRIC.wrong)
    return torch.stack([one[p, c] - one[p, w] for one, p, c, w in each])


class PutAt:
    """Puts a value at some heads and positions of one site."""

    def __init__(self, site: str, value: Tensor, head: Any, position: Any) -> None:
        self.site, self.value, self.head, self.position = site, value, head, position

    def given(self, site: str) -> Tensor | None:
        return None

    def wants(self, site: str) -> bool:
        return site == self.site

    def __call__(self, site: str, value: Tensor) -> Tensor:
        if site != self.site:
            return value
        new = value.clone()
        if value.dim() == 3:
            new[:, self.position] = self.value[:, self.position]
        elif "pattern" in site:
            new[:, self.head, self.position] = self.value[:, self.head, self.position]
        else:
            new[:, self.position, self.head] = self.value[:, self.position, self.head]
        return new


def slowly(model: Transformer, data: PromptPairs, site: str, by: By, direction: Direction) -> Tensor:
    """The effects [layer, position, head, prompt], axes that `by` does not separate left out."""
    into, source = (data.corrupt, data.clean) if direction == "denoising" else (data.clean, data.corrupt)
    known = oracle_sites(model, source)
    base = metric_of(oracle_sites(model, into)["logits"])
    heads = model.config.kv_heads if site in ("attn.k", "attn.v") else model.config.n_heads
    everything = [slice(None)]
    where = list(range(LENGTH)) if "position" in by else everything
    which = list(range(heads)) if "head" in by else everything
    effects = []
    for layer in range(model.config.n_layers):
        name = f"blocks.{layer}.{site}"
        for position in where:
            for head in which:
                with torch.no_grad():
                    logits = model(into, PutAt(name, known[name], head, position))
                effects.append(metric_of(logits) - base)
    shape = [model.config.n_layers, *([LENGTH] if "position" in by else []), *([heads] if "head" in by else [])]
    return torch.stack(effects).view(*shape, BATCH)


CASES: tuple[tuple[str, By], ...] = (
    *((site, "position") for site in WITHOUT_HEADS),
    *((site, "head-position") for site in WITH_HEADS),
    ("resid_mid", "layer"),
    ("attn.z", "position"),
    ("attn.v", "head"),
    ("attn.pattern", "head"),
    ("attn.k", "layer"),
)


@pytest.mark.parametrize("name", NETWORKS)
def test_patching_equals_the_slow_twin(name: str) -> None:
    model, data = network(name), pairs(name)
    for direction, (site, by) in zip(itertools.cycle(get_args(Direction)), CASES):
        config = model.config
        if (config.attention_only and "mlp" in site) or (site == "resid_mid" and (config.parallel or not config.d_mlp)):
            continue
        found = activation_patching(model, data, METRIC, site=site, by=by, direction=direction)
        head = "kv_head" if site in ("attn.k", "attn.v") else "head"
        dims = {"layer": ("layer",), "position": ("layer", "position"), "head": ("layer", head)}
        assert found["normalised"].dims == dims.get(by, ("layer", "position", head))
        assert found["effect"].dims == (*found["normalised"].dims, "prompt")
        expected = slowly(model, data, site, by, direction).numpy()
        np.testing.assert_allclose(found["effect"].values, expected, rtol=0, atol=1e-9, err_msg=f"{site} by {by}")
        gap = (found["clean"] - found["corrupt"]).values * (1 if direction == "denoising" else -1)
        np.testing.assert_allclose(found["normalised_by_prompt"], expected / gap, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(found["normalised"], expected.mean(-1) / gap.mean(), rtol=1e-6, atol=1e-8)


def test_what_is_measured_can_be_asked_for_by_name() -> None:
    model, data = network("llama"), pairs("llama")
    found = activation_patching(model, data, METRIC, site="attn.v", by="head-position")
    assert found["effect"].sel(layer=1, kv_head=1, position=3, prompt="b").dims == ()
    assert found.sizes == {"layer": 2, "position": LENGTH, "kv_head": 2, "prompt": BATCH}
    described = {"site": "attn.v", "direction": "denoising", "metric": "LogitDifference", "by": "head-position"}
    assert described.items() <= found.attrs.items()
    for name, tokens in (("clean", data.clean), ("corrupt", data.corrupt)):
        np.testing.assert_allclose(found[name], metric_of(run(model, tokens).logits), rtol=0, atol=1e-10)


def test_a_result_can_be_saved(tmp_path: Any) -> None:
    found = activation_patching(network("gpt2"), pairs("gpt2"), METRIC, layers=[1])
    found.to_netcdf(tmp_path / "patching.nc", engine="h5netcdf")
    xarray.testing.assert_identical(xarray.load_dataset(tmp_path / "patching.nc", engine="h5netcdf"), found)


@pytest.mark.parametrize("name", NETWORKS)
def test_patching_everything_gives_the_other_run(name: str) -> None:
    model, data = network(name), pairs(name)
    whole = activation_patching(model, data, METRIC, site="resid_pre", by="layer")
    np.testing.assert_allclose(whole["normalised"], 1, atol=1e-9)
    np.testing.assert_allclose(whole["normalised_by_prompt"], 1, atol=1e-7)


@pytest.mark.parametrize("name", NETWORKS)
def test_noising_is_denoising_with_the_roles_swapped(name: str) -> None:
    model, data = network(name), pairs(name)
    swapped = PromptPairs(data.corrupt, data.clean, data.labels)
    swaps: tuple[tuple[str, By], ...] = (("resid_pre", "position"), ("attn.pattern", "head-position"))
    for site, by in swaps:
        noising = activation_patching(model, data, METRIC, site=site, by=by, direction="noising")
        denoising = activation_patching(model, swapped, METRIC, site=site, by=by, direction="denoising")
        for variable in ("effect", "normalised", "normalised_by_prompt"):
            np.testing.assert_array_equal(noising[variable], denoising[variable])
        np.testing.assert_array_equal(noising["clean"], denoising["corrupt"])


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(NETWORKS), st.sampled_from(WITH_HEADS), st.integers(0, 50), st.integers(START, LENGTH - 1))
def test_pairs_that_differ_late_are_not_changed_by_the_same_values_before(
    name: str, site: str, seed: int, first: int
) -> None:
    """What two runs share, up to `first`, is patched with itself: nothing changes, exactly."""
    model, clean = network(name), prompts(name, seed)
    late = (torch.arange(LENGTH) >= first) & (clean != 0)
    data = PromptPairs(clean[:1], torch.where(late, clean % 10 + 1, clean)[:1])
    metric = LogitDifference(METRIC.positions[:1], METRIC.correct[:1], METRIC.wrong[:1])
    found = activation_patching(model, data, metric, site=site, by="head-position")
    if model.config.causal:
        assert found.attrs["first_position"] == first
        assert (found["effect"].sel(position=slice(0, first - 1)) == 0).all()
    else:
        assert found.attrs["first_position"] == 0


@pytest.mark.parametrize("name", NETWORKS)
def test_patching_a_run_with_itself_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = network(name), pairs(name)
    monkeypatch.setattr(module, "observe", lambda model, tokens, sites: observe(model, data.corrupt, sites))
    itself: tuple[tuple[str, By], ...] = (("resid_pre", "position"), ("attn.v", "head"), ("attn.pattern", "layer"))
    for site, by in itself:
        found = activation_patching(model, data, METRIC, site=site, by=by)
        np.testing.assert_allclose(found["effect"], 0, atol=1e-11)
        assert found["normalised"].isnull().all()


def test_values_that_are_the_same_in_both_runs_change_nothing() -> None:
    """Patterns that are constant by construction carry nothing from one run into the other."""
    model, data = network("constant-attention-pad"), pairs("constant-attention-pad")
    found = activation_patching(model, data, METRIC, site="attn.pattern", by="layer")
    np.testing.assert_allclose(found["effect"], 0, atol=1e-12)


def test_positions_before_the_first_difference_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    patched: list[tuple[int, ...]] = []
    real = module.sweep

    def spying(model: Any, base: Any, variants: Any, metric: Any, progress: Any) -> Tensor:
        patched.extend(edit.positions for edit in variants)
        return real(model, base, variants, metric, progress)

    monkeypatch.setattr(module, "sweep", spying)
    model, data = network("gpt2"), pairs("gpt2")
    activation_patching(model, data, METRIC, layers=[0])
    assert patched == [(2,), (3,), (4,)]
    patched.clear()
    activation_patching(model, data, METRIC, site="attn.z", by="head", layers=[1])
    assert patched == [(2, 3, 4)] * 2


def test_layers_heads_and_positions_restrict_what_is_patched() -> None:
    model, data = network("gpt2"), pairs("gpt2")
    every = activation_patching(model, data, METRIC, site="attn.z", by="head-position")
    some = activation_patching(
        model, data, METRIC, site="attn.z", by="head-position", layers=[1], heads=[1], positions=[4, 1]
    )
    chosen = every.sel(layer=[1], head=[1], position=[4, 1])
    np.testing.assert_allclose(some["effect"], chosen["effect"], rtol=0, atol=1e-12)
    together = activation_patching(model, data, METRIC, site="attn.z", by="position", heads=[1], positions=[4])
    np.testing.assert_allclose(together["effect"], every["effect"].sel(head=1, position=[4]), rtol=0, atol=1e-12)
    assert (together.attrs["patched_heads"], together.attrs["patched_positions"]) == ([1], [4])
    before = activation_patching(model, data, METRIC, by="layer", positions=[0, 1])
    assert (before["effect"] == 0).all()


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama"])
def test_a_limit_on_memory_changes_no_number(name: str) -> None:
    model, data = network(name), pairs(name)
    done: list[int] = []
    whole = activation_patching(model, data, METRIC, site="attn.z", by="head")
    least = _least(model, data)
    for memory in (least, 2 * least, 10 * least):
        done.clear()
        found = activation_patching(model, data, METRIC, site="attn.z", by="head", memory=memory, progress=done.append)
        np.testing.assert_allclose(found["effect"], whole["effect"], rtol=0, atol=1e-10)
        assert sum(done) % (model.config.n_layers * model.config.n_heads) == 0
    with pytest.raises(UserError, match=r"Patching one prompt of 5 tokens needs about [\d.]+ MB beside the weights"):
        activation_patching(model, data, METRIC, site="attn.z", by="head", memory=least - 1)


def _least(model: Transformer, data: PromptPairs) -> int:
    """The smallest limit that is accepted, by bisection."""
    low, high = 0, 2**24
    while high - low > 1:
        middle = (low + high) // 2
        try:
            module.room(model, BATCH, LENGTH, "blocks.{l}.attn.z", middle)
            high = middle
        except UserError:
            low = middle
    return high


def test_a_pair_without_a_difference_in_the_metric_has_no_normalised_effect() -> None:
    model, data = network("gpt2"), pairs("gpt2")
    metric = LogitDifference(torch.tensor([4, 1, 3]), METRIC.correct, METRIC.wrong)
    found = activation_patching(model, data, metric, by="layer")
    alone = found["normalised_by_prompt"].isnull().all("layer")
    assert alone.values.tolist() == [False, True, False]
    np.testing.assert_allclose(found["normalised"], 1, atol=1e-9)
    early = LogitDifference(torch.tensor([1, 1, 0]), METRIC.correct, METRIC.wrong)
    assert activation_patching(model, data, early, by="layer")["normalised"].isnull().all()


@dataclass(frozen=True)
class Wrong:
    """A metric that gives what it should not."""

    value: Any

    def __call__(self, model: Transformer, resid: Tensor, start: int) -> Any:
        return self.value

    def reads(self, length: int) -> int:
        return 0


@dataclass(frozen=True)
class BrokenByPatch:
    """A metric that is finite on the two runs, and on no other stream."""

    known: Tensor

    def __call__(self, model: Transformer, resid: Tensor, start: int) -> Tensor:
        final = model.ln_final(resid, NO_TAP, "ln_final")[:, -1, 0]
        met = torch.isclose(final[:, None], self.known, atol=1e-9).any(1)
        return torch.where(met, final, torch.nan)

    def reads(self, length: int) -> int:
        return length - 1


@pytest.mark.usefixtures("unchecked")
def test_wrong_metrics_are_plain_errors_before_any_patch() -> None:
    model, data = network("gpt2"), pairs("gpt2")
    done: list[int] = []
    for value, says in [
        (torch.tensor([1.0, torch.nan, 2.0]), "gave nan for prompt b"),
        (torch.tensor([1.0, 2.0, -torch.inf]), "gave -inf for prompt c"),
        (torch.zeros(2), r"gave \[2\] for 3 prompts"),
        (torch.zeros(3, 5), r"gave \[3, 5\] for 3 prompts"),
        (1.5, "gave float for 3 prompts"),
    ]:
        with pytest.raises(UserError, match=says):
            activation_patching(model, data, Wrong(value), progress=done.append)
    for positions, correct, says in [
        ([4, 2, 5], [0, 1, 2], "reads position 5; the prompts have 0–4"),
        ([4, 2, 3], [0, 1, 11], "reads token 11; this network has logits for tokens 0–10"),
        ([4, 2], [0, 1], "is for 2 prompts, but there are 3"),
    ]:
        metric = LogitDifference(torch.tensor(positions), torch.tensor(correct), torch.zeros(len(correct)).long())
        with pytest.raises(UserError, match=says):
            activation_patching(model, data, metric, progress=done.append)
    assert not done


def test_a_metric_that_fails_on_a_patched_run_is_named() -> None:
    model, data = network("gpt2"), pairs("gpt2")
    finals = [oracle_sites(model, tokens)["ln_final.normalized"][:, -1, 0] for tokens in (data.clean, data.corrupt)]
    with pytest.raises(UserError, match="gave nan for prompt"):
        activation_patching(model, data, BrokenByPatch(torch.stack(finals, 1)), site="attn.z", by="head")


@pytest.mark.usefixtures("unchecked")
def test_what_does_not_exist_is_refused() -> None:
    wrong: list[tuple[str, dict[str, Any], str]] = [
        ("gpt2", {"site": "attn.zz"}, "Unknown site to patch 'attn.zz': .*attn.z"),
        ("neox", {"site": "resid_mid"}, "Unknown site to patch 'resid_mid'"),
        ("no-layers", {}, "there is none to choose from"),
        ("gpt2", {"by": "heads"}, "Unknown way to patch by 'heads': .*head"),
        ("gpt2", {"by": "head"}, "site resid_pre has no heads; its axes are batch, pos, d_model"),
        ("gpt2", {"by": "layer", "heads": [0]}, "site resid_pre has no heads"),
        ("gpt2", {"direction": "noise"}, "Unknown direction 'noise': .*noising"),
        ("gpt2", {"site": "attn.z", "by": "head", "heads": [0, 2]}, "attn.z has heads 0–1; head 2 does not exist"),
        ("llama", {"site": "attn.k", "by": "head", "heads": [2]}, "attn.k has heads 0–1; head 2 does not exist"),
        ("gpt2", {"positions": [5]}, "The prompts have positions 0–4; position 5 does not exist"),
        ("gpt2", {"positions": [-1]}, "position -1 does not exist"),
        ("gpt2", {"layers": [2]}, "The network has layers 0–1; layer 2 does not exist"),
        ("gpt2", {"layers": []}, "at least one is needed"),
        ("gpt2", {"positions": [3, 3]}, "each once"),
    ]
    for name, options, says in wrong:
        with pytest.raises(UserError, match=says):
            activation_patching(network(name), pairs(name), METRIC, **options)
