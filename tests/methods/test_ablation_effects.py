"""Effects of ablation equal a slow twin: values by hand, put into a full run, the metric from its logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
import pytest
import torch
import xarray
from tests.architectures import ARCHITECTURES, BATCH, LENGTH, network, prompts
from tests.methods.peak import Peak
from tests.methods.test_activation_patching import METRIC, START, metric_of, pairs
from tests.oracle import oracle_sites
from torch import Tensor

from headwork.engine.metrics import LogitDifference, Loss, Metric
from headwork.engine.run import bytes_kept
from headwork.errors import UserError
from headwork.methods import ablation_effects as module
from headwork.methods.ablation_choices import AblationValue
from headwork.methods.ablation_effects import ablation_effects
from headwork.methods.ablation_source import partners
from headwork.methods.room import copies_that_fit
from headwork.model.initialise import initialise
from headwork.model.sites import Head
from headwork.model.transformer import Transformer
from headwork.tasks.prompt_pairs import PromptPairs

NETWORKS = ("gpt2", "neox", "llama", "bidirectional-pad")
VALUES = get_args(AblationValue)


class PutMany:
    """Puts `values[site, head]` into a full run where `mask` is true; head −1 is all of a site."""

    def __init__(self, values: Mapping[tuple[str, int], Tensor], mask: Tensor) -> None:
        self.values, self.mask = values, mask

    def given(self, site: str) -> Tensor | None:
        return None

    def wants(self, site: str) -> bool:
        return False

    def __call__(self, site: str, value: Tensor) -> Tensor:
        new = value.clone()
        for (name, head), put in self.values.items():
            if name == site:
                old = new if head < 0 else new[:, :, head]
                for b, p in self.mask.nonzero().tolist():
                    old[b, p] = put[b, p]
        return new


def written(value: AblationValue, known: Tensor, other: Tensor, partner: Tensor) -> Tensor:
    """What a site becomes at every prompt and position, from its values on the reference and the paired prompts."""
    new = torch.zeros_like(other)
    for b in range(new.shape[0]):
        for p in range(new.shape[1]):
            if value == "mean":
                new[b, p] = sum(known[i, j] for i in range(len(known)) for j in range(known.shape[1])) / (
                    len(known) * known.shape[1]
                )
            if value == "mean-by-position":
                new[b, p] = sum(known[i, p] for i in range(len(known))) / len(known)
            if value == "resample":
                new[b, p] = known[int(partner[b]), p]
            if value == "counterfactual":
                new[b, p] = other[b, p]
    return new


def slowly(
    model: Transformer,
    data: PromptPairs,
    reference: Tensor,
    value: AblationValue,
    groups: Sequence[Sequence[str]],
    mask: Tensor,
    partner: Tensor,
) -> Tensor:
    """The effects [group, prompt]."""
    known, other = oracle_sites(model, reference), oracle_sites(model, data.corrupt)
    base = metric_of(oracle_sites(model, data.clean)["logits"])
    effects = []
    for group in groups:
        put = {}
        for name in group:
            layer, _, head = name.removeprefix("m").partition(".")
            site = f"blocks.{layer}.mlp_out" if name.startswith("m") else f"blocks.{layer}.attn.z"
            new = written(value, known[site], other[site], partner)
            put[site, int(head or -1)] = new[:, :, int(head)] if head else new
        with torch.no_grad():
            effects.append(metric_of(model(data.clean, PutMany(put, mask))) - base)
    return torch.stack(effects)


def case(name: str) -> tuple[Transformer, PromptPairs, Tensor]:
    """A network, pairs, and reference prompts with the same padding in another order."""
    return network(name), pairs(name), prompts(name, 5).flip(0)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_value_equals_the_slow_twin(name: str) -> None:
    model, data, reference = case(name)
    mask = torch.ones(BATCH, LENGTH, dtype=torch.bool)
    partner = partners(model.config, data.clean, reference, False, 3)
    names = [[f"{layer}.{head}"] for layer in range(2) for head in range(model.config.n_heads)]
    found = ablation_effects(model, data, METRIC, value=VALUES, reference=reference, seed=3)
    assert found["effect"].dims == ("value", "layer", "head", "prompt")
    assert found["normalised"].dims == ("value", "layer", "head")
    assert list(found["value"].values) == list(VALUES)
    base = metric_of(oracle_sites(model, data.clean)["logits"]).numpy()
    np.testing.assert_allclose(found["base"], base, rtol=0, atol=1e-9)
    for value in VALUES:
        expected = slowly(model, data, reference, value, names, mask, partner).numpy().reshape(2, -1, BATCH)
        assert np.abs(expected).max() > 1e-2
        one = found.sel(value=value)
        np.testing.assert_allclose(one["effect"], expected, rtol=0, atol=1e-9, err_msg=value)
        np.testing.assert_allclose(one["normalised"], expected.mean(-1) / base.mean(), rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(one["normalised_by_prompt"], expected / base, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama"])
def test_mlps_layers_and_groups_at_some_positions_equal_the_slow_twin(name: str) -> None:
    model, data, reference = case(name)
    heads = [[f"{layer}.{head}" for head in range(model.config.n_heads)] for layer in range(2)]
    ragged = torch.tensor([[0, 1, 0, 1, 1], [0, 0, 1, 0, 0], [1, 0, 0, 1, 0]], dtype=torch.bool)
    some = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    some[:, [1, 3]] = True
    every = torch.ones_like(some)
    partner = torch.zeros(BATCH)
    cases: list[tuple[AblationValue, dict[str, Any], Tensor, list[list[str]], tuple[str, ...]]] = [
        ("zero", {"of": "mlps"}, every, [["m0"], ["m1"]], ("layer",)),
        ("counterfactual", {"of": "mlps", "positions": [3, 1]}, some, [["m0"], ["m1"]], ("layer",)),
        ("mean", {"of": "layers", "positions": ragged}, ragged, [[*heads[0], "m0"], [*heads[1], "m1"]], ("layer",)),
        (
            "counterfactual",
            {"of": [["m1", "0.1", "1.0"], "1.1", Head(0, 0)], "positions": ragged},
            ragged,
            [["0.1", "1.0", "m1"], ["1.1"], ["0.0"]],
            ("component",),
        ),
        ("mean-by-position", {"of": ["0.0", "m1"], "joint": True}, every, [["0.0", "m1"]], ()),
        ("zero", {"of": "heads", "joint": True, "positions": [1, 3]}, some, [heads[0] + heads[1]], ()),
    ]
    for value, options, mask, groups, dims in cases:
        found = ablation_effects(model, data, METRIC, value=value, reference=reference, **options)
        assert found["normalised"].dims == dims
        expected = slowly(model, data, reference, value, groups, mask, partner).numpy()
        effect = found["effect"].values.reshape(len(groups), BATCH)
        np.testing.assert_allclose(effect, expected, rtol=0, atol=1e-9, err_msg=f"{value} {options}")


def test_what_is_measured_can_be_asked_for_by_name() -> None:
    model, data = network("gpt2"), pairs("gpt2")
    found = ablation_effects(model, data, METRIC, of=[["m1", "0.1"], "1.0"], value="counterfactual", positions=[2, 4])
    assert found["effect"].sel(component="0.1+m1", prompt="b").dims == ()
    chosen = {
        "granularity": "node",
        "component": "heads and MLPs",
        "value": "counterfactual",
        "positions": "[2, 4]",
        "direction": "noising",
        "set": "circuit",
    }
    assert {f"ablation_{name}": value for name, value in chosen.items()}.items() <= found.attrs.items()
    heads = ablation_effects(model, data.clean, METRIC, value="zero", labels=["x", "y", "z"])
    assert heads["effect"].sel(layer=1, head=0, prompt="y").dims == ()
    assert (heads.attrs["ablation_component"], heads.attrs["ablation_positions"]) == ("heads", "all")
    assert heads.attrs["of"] == "heads"


def test_a_result_can_be_saved(tmp_path: Any) -> None:
    found = ablation_effects(network("gpt2"), pairs("gpt2"), METRIC, value=["zero", "mean"])
    found.to_netcdf(tmp_path / "ablation.nc", engine="h5netcdf")
    xarray.testing.assert_identical(xarray.load_dataset(tmp_path / "ablation.nc", engine="h5netcdf"), found)


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama"])
def test_ablating_with_what_is_there_changes_nothing(name: str) -> None:
    model, tokens = network(name), prompts(name, 2)
    alike = tokens[:1].expand(3, -1).clone()
    found = ablation_effects(model, alike, METRIC, value=["mean-by-position", "resample"], of="layers", joint=True)
    np.testing.assert_allclose(found["effect"], 0, atol=1e-10)
    first = ablation_effects(model, tokens, METRIC, value="resample", reference=tokens[1:2], of="layers", joint=True)
    assert np.abs(first["effect"].sel(prompt=["0", "2"])).min() > 1e-3
    np.testing.assert_allclose(first["effect"].sel(prompt="1"), 0, atol=1e-10)


def test_partners_are_others_with_the_same_padding_and_follow_the_seed() -> None:
    config = network("causal-pad").config
    tokens = torch.ones(8, 4, dtype=torch.long)
    tokens[::2, 3] = 0
    seen: set[tuple[int, int]] = set()
    for seed in range(40):
        drawn = partners(config, tokens, tokens, True, seed)
        assert torch.equal(drawn, partners(config, tokens, tokens, True, seed))
        assert all(b != other and b % 2 == other % 2 for b, other in enumerate(drawn.tolist()))
        seen |= set(enumerate(drawn.tolist()))
    assert len(seen) == 8 * 3
    from_itself = partners(config, tokens[:1], tokens[:1], False, 0)
    assert from_itself.tolist() == [0]


def test_counterfactual_positions_before_the_first_difference_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[int] = []
    real = module.sweep

    def spying(model: Any, base: Any, variants: Any, metric: Any, progress: Any) -> Tensor:
        starts.extend(edit.start for edits in variants for edit in edits)
        return real(model, base, variants, metric, progress)

    monkeypatch.setattr(module, "sweep", spying)
    model, data = network("gpt2"), pairs("gpt2")
    ablation_effects(model, data, METRIC, value="counterfactual")
    assert starts == [START] * 4
    starts.clear()
    ablation_effects(model, data, METRIC, value="mean")
    assert starts == [0] * 4
    starts.clear()
    ablation_effects(network("bidirectional-pad"), pairs("bidirectional-pad"), METRIC, value="counterfactual")
    assert starts == [0] * 4
    before = ablation_effects(model, data, METRIC, value="counterfactual", positions=[0, 1])
    assert (before["effect"] == 0).all()


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama"])
def test_a_limit_on_memory_changes_no_number(name: str) -> None:
    model, data, reference = case(name)
    ragged = torch.tensor([[0, 1, 0, 1, 1], [0, 0, 1, 0, 0], [1, 0, 0, 1, 0]], dtype=torch.bool)
    options: dict[str, Any] = {
        "value": ["mean", "resample", "counterfactual"],
        "reference": reference,
        "positions": ragged,
    }
    whole = ablation_effects(model, data, METRIC, **options)
    beside = 2 * bytes_kept(model, 1, LENGTH, ["blocks.*.attn.z", "blocks.*.mlp_out"])
    least = _least(model, beside)
    runs = 3 * model.config.n_layers * model.config.n_heads
    for memory in (least, 3 * least):
        done: list[int] = []
        found = ablation_effects(model, data, METRIC, memory=memory, progress=done.append, **options)
        np.testing.assert_allclose(found["effect"], whole["effect"], rtol=0, atol=1e-10)
        assert sum(done) % runs == 0
    with pytest.raises(UserError, match=r"Ablation on one prompt of 5 tokens needs about [\d.]+ MB beside the weights"):
        ablation_effects(model, data, METRIC, memory=least - 1, **options)


def _least(model: Transformer, beside: int) -> int:
    """The smallest limit that is accepted, by bisection."""
    low, high = 0, 2**24
    while high - low > 1:
        middle = (low + high) // 2
        try:
            copies_that_fit(model, BATCH, LENGTH, beside, middle, "Ablation")
            high = middle
        except UserError:
            low = middle
    return high


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_memory_stays_under_the_limit(name: str) -> None:
    length = 48
    model = initialise(dataclasses.replace(ARCHITECTURES[name], n_ctx=length), 0).double()
    clean, corrupt = (torch.full((3, length), token) for token in (1, 2))
    metric = Loss(torch.ones_like(clean), torch.ones_like(clean, dtype=torch.bool))
    options: dict[str, Any] = {"value": ["mean", "resample"], "reference": corrupt}
    for memory in (2 * 10**6, 6 * 10**6):
        with Peak() as peak:
            ablation_effects(model, PromptPairs(clean, corrupt), metric, memory=memory, **options)
        assert memory / 8 < peak.most < memory


@pytest.mark.usefixtures("unchecked")
def test_what_does_not_exist_or_fit_is_refused() -> None:
    tokens = prompts("gpt2", 1)
    wrong: list[tuple[str, dict[str, Any], str]] = [
        ("gpt2", {"value": "means"}, "Unknown ablation value 'means': .*mean"),
        ("gpt2", {"value": ["zero", "zero"]}, "at least one is needed, and each once"),
        ("gpt2", {"value": []}, "at least one is needed"),
        ("gpt2", {"of": "head"}, "Unknown component to ablate 'head': .*heads"),
        ("gpt2", {"of": ["0.2"]}, "Unknown component to ablate '0.2'"),
        ("gpt2", {"of": ["embed"]}, "Unknown component to ablate 'embed'"),
        ("gpt2", {"of": ["0.1", "0.1"]}, "component to ablate 0.1 is given twice"),
        ("gpt2", {"of": [["0.1", "0.1"]]}, r"component to ablate 0.1\+0.1 names something twice"),
        ("gpt2", {"of": [[]]}, "a group of at least one"),
        ("gpt2", {"of": []}, "a group of at least one"),
        ("shortformer", {"of": "mlps"}, "This network has no mlps to ablate"),
        ("no-layers", {"of": "heads"}, "This network has no heads to ablate"),
        ("gpt2", {"positions": [5]}, "The prompts have positions 0–4; position 5 does not exist"),
        ("gpt2", {"positions": []}, "at least one is needed"),
        ("gpt2", {"positions": torch.ones(3, 4).bool()}, r"boolean, of the prompts' shape \[3, 5\]"),
        ("gpt2", {"positions": torch.zeros(3, 5).bool()}, "true somewhere"),
        ("gpt2", {"value": "counterfactual", "tokens": tokens}, "Counterfactual ablation needs PromptPairs"),
        (
            "gpt2",
            {"value": "resample", "tokens": tokens, "reference": tokens[:, :4]},
            "reference prompts have 4 tokens",
        ),
        ("gpt2", {"value": "mean-by-position", "reference": tokens[:, :4]}, "mean-by-position needs the same length"),
        ("causal-pad", {"value": "resample"}, "Prompt 0 has no other reference prompt with the same padding"),
        ("gpt2", {"value": "mean", "reference": tokens + 20}, "outside this model's vocabulary"),
        ("gpt2", {"labels": ["a"]}, "1 different labels were given for 3 prompts"),
    ]
    for name, options, says in wrong:
        given = options.pop("tokens", pairs(name))
        with pytest.raises(UserError, match=says):
            ablation_effects(network(name), given, METRIC, **options)
    one = tokens[:1]
    metric = LogitDifference(torch.tensor([4]), torch.tensor([0]), torch.tensor([1]))
    with pytest.raises(UserError, match="Prompt 0 has no other reference prompt to resample from"):
        ablation_effects(network("gpt2"), one, metric, value="resample")
    with pytest.raises(UserError, match="is for 1 prompts, but there are 3"):
        ablation_effects(network("gpt2"), tokens, metric)


class Broken(Metric):
    """A metric that is not finite."""

    def __call__(self, model: Transformer, resid: Tensor, start: int) -> Tensor:
        return resid[:, -1, 0] * torch.nan

    def reads(self, length: int) -> int:
        return length - 1


def test_a_metric_that_is_not_finite_is_named_before_any_ablation() -> None:
    done: list[int] = []
    with pytest.raises(UserError, match="gave nan for prompt a"):
        ablation_effects(network("gpt2"), pairs("gpt2"), Broken(), progress=done.append)
    assert not done


def test_a_mean_may_come_from_prompts_of_another_length() -> None:
    model, data = network("gpt2"), pairs("gpt2")
    reference = prompts("gpt2", 5)
    short = ablation_effects(model, data, METRIC, value="mean", reference=reference[:, :3])
    known = oracle_sites(model, reference[:, :3])
    mask = torch.ones(BATCH, LENGTH, dtype=torch.bool)
    z = known["blocks.1.attn.z"][:, :, 0].mean((0, 1)).expand(BATCH, LENGTH, -1)
    with torch.no_grad():
        ablated = metric_of(model(data.clean, PutMany({("blocks.1.attn.z", 0): z}, mask)))
    np.testing.assert_allclose(
        short["effect"].sel(layer=1, head=0), ablated.numpy() - short["base"].values, rtol=0, atol=1e-9
    )
