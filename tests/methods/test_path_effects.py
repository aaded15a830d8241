"""Path patching equals two full runs by hand: in the first all but the sender is frozen, in the second one hears it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import numpy as np
import pytest
import torch
import xarray
from tests.architectures import ARCHITECTURES, BATCH, LENGTH, network
from tests.methods.hand import projected
from tests.methods.peak import Peak
from tests.methods.test_activation_patching import METRIC, START, metric_of, pairs
from tests.oracle import oracle_sites
from torch import Tensor

from headwork.engine.metrics import LogitDifference, Loss, Metric
from headwork.errors import UserError
from headwork.methods import path_effects as module
from headwork.methods.ablation_choices import Direction
from headwork.methods.direct_attribution import direct_attribution
from headwork.methods.edge_attribution import edge_attribution
from headwork.methods.graph import graph
from headwork.methods.path_effects import path_patching
from headwork.methods.path_inputs import OnTheWay
from headwork.methods.path_patching import Route
from headwork.model.initialise import initialise
from headwork.model.sites import Head
from headwork.model.transformer import NO_TAP, Transformer
from headwork.tasks.prompt_pairs import PromptPairs

NETWORKS = ("gpt2", "neox", "one-kv-head", "shortformer", "bidirectional-pad")


class Hold:
    """Puts whole activations into a full run, and notes what it meets."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self.values, self.met = values, dict[str, Tensor]()

    def given(self, site: str) -> Tensor | None:
        return None

    def wants(self, site: str) -> bool:
        return False

    def __call__(self, site: str, value: Tensor) -> Tensor:
        value = self.values.get(site, value)
        self.met[site] = value
        return value


def mixed(base: Tensor, other: Tensor, positions: Sequence[int], head: int | None = None) -> Tensor:
    """The base run's activation, but at these positions (and this head) the other run's."""
    new = base.clone()
    for p in positions:
        if head is None:
            new[:, p] = other[:, p]
        else:
            new[:, p, head] = other[:, p, head]
    return new


class Twin:
    """Path patching by full runs on `tokens`, against another run's tokens."""

    def __init__(self, model: Transformer, tokens: Tensor, other: Tensor, mlps: OnTheWay) -> None:
        self.model, self.tokens, self.mlps = model, tokens, mlps
        self.base, self.other = oracle_sites(model, tokens), oracle_sites(model, other)
        self.base_metric = metric_of(self.base["logits"])

    def streams(self, senders: Sequence[str], positions: Sequence[int]) -> dict[str, Tensor]:
        """Every site of a run in which all heads are frozen, MLPs too or not, and the senders say what they did."""
        held = {name: value for name, value in self.base.items() if name.endswith("attn.z")}
        if self.mlps == "frozen":
            held |= {name: value for name, value in self.base.items() if name.endswith("mlp_out")}
        for sender in senders:
            layer, _, head = sender.removeprefix("m").partition(".")
            if sender == "embed":
                held["embed"] = mixed(self.base["embed"], self.other["embed"], positions)
            elif head:
                site = f"blocks.{layer}.attn.z"
                held[site] = mixed(held[site], self.other[site], positions, int(head))
            else:
                site = f"blocks.{layer}.mlp_out"
                held[site] = mixed(self.base[site], self.other[site], positions)
        hold = Hold(held)
        with torch.no_grad():
            self.model(self.tokens, hold)
        return hold.met

    def effect(self, senders: Sequence[str], receivers: Sequence[str], positions: Sequence[int]) -> Tensor:
        """The effect by prompt; NaN where no sender comes before a receiver."""
        met, put = self.streams(senders, positions), {}
        last = f"blocks.{self.model.config.n_layers - 1}.resid_post"
        direct, any_path = torch.zeros_like(met[last]), False
        for receiver in receivers:
            if not any(precedes(sender, receiver, self.model.config.parallel) for sender in senders):
                continue
            any_path = True
            if receiver == "logits":
                direct = met[last] - self.base[last]
            elif receiver.startswith("m"):
                here = f"blocks.{receiver[1:]}"
                block = self.model.layers[int(receiver[1:])]
                read = met[f"{here}.resid_pre" if self.model.config.parallel else f"{here}.resid_mid"]
                with torch.no_grad():
                    put[f"{here}.mlp_out"] = block.mlp(block.ln2(read, NO_TAP, ""), NO_TAP, "")
            else:
                layer, head, route = receiver.replace("<", ".").rstrip(">").split(".")
                site = f"blocks.{layer}.attn.{route}"
                put.setdefault(site, self.base[site].clone())
                with torch.no_grad():
                    new = projected(self.model, int(layer), route, int(head), met[f"blocks.{layer}.resid_pre"])
                put[site][:, :, int(head)] = new
        if not any_path:
            return torch.full_like(self.base_metric, torch.nan)
        hold = Hold(put)
        with torch.no_grad():
            self.model(self.tokens, hold)
            logits = self.model.logits(hold.met[last] + direct)
        return metric_of(logits) - self.base_metric


def precedes(sender: str, receiver: str, parallel: bool) -> bool:
    """Whether the sender writes into the stream before the receiver reads it."""
    if sender == "embed" or receiver == "logits":
        return True
    writes, reads = int(sender.strip("m").split(".")[0]), int(receiver.strip("m").split(".")[0])
    within = receiver.startswith("m") and not sender.startswith("m") and not parallel
    return writes < reads or (writes == reads and within)


def compare(found: xarray.Dataset, twin: Twin, positions: Sequence[int] = range(LENGTH)) -> None:
    """Every path is what the twin says, and not nothing."""
    met = 0.0
    for sender in found["sender"].to_numpy().tolist():
        for receiver in found["receiver"].to_numpy().tolist():
            expected = twin.effect(sender.split("+"), receiver.split("+"), positions).numpy()
            here = found["effect"].sel(sender=sender, receiver=receiver)
            np.testing.assert_allclose(here, expected, rtol=0, atol=1e-9, err_msg=f"{sender} to {receiver}")
            met = max(met, float(np.nan_to_num(np.abs(expected)).max()))
    assert met > 1e-3


@pytest.mark.parametrize("name", NETWORKS)
def test_every_path_equals_the_slow_twin(name: str) -> None:
    model, data = network(name), pairs(name)
    found = path_patching(model, data, METRIC, receivers=None)
    edges = graph(model.config)
    assert found["effect"].dims == ("sender", "receiver", "prompt")
    assert list(found["sender"].values) == [str(w) for w in edges.writers]
    assert list(found["receiver"].values) == [str(r) for r in edges.readers]
    np.testing.assert_array_equal(found["normalised"].notnull(), edges.visible)
    compare(found, Twin(model, data.clean, data.corrupt, "frozen"))


@pytest.mark.parametrize("direction", get_args(Direction))
@pytest.mark.parametrize("name", ["gpt2", "neox", "llama"])
def test_groups_at_some_positions_while_mlps_respond_equal_the_slow_twin(name: str, direction: Direction) -> None:
    model, data = network(name), pairs(name)
    tokens = (data.clean, data.corrupt) if direction == "noising" else (data.corrupt, data.clean)
    found = path_patching(
        model,
        data,
        METRIC,
        senders=["embed", ["m0", "0.1"], ["embed", "0.1"], Head(0, 0), "m1"],
        receivers=["1.0", ["1.1", "logits"], "m0", "m1", [Head(1, 0), "1.1<q>", "m1"], "logits"],
        route=["v", "k"],
        direction=direction,
        mlps="respond",
        positions=[4, 1, 2],
    )
    assert found.attrs["mlps"] == "respond"
    compare(found, Twin(model, *tokens, "respond"), [1, 2, 4])


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama"])
def test_mlps_that_respond_carry_what_frozen_ones_do_not(name: str) -> None:
    model, data = network(name), pairs(name)
    frozen, respond = (path_patching(model, data, METRIC, receivers="1.1", route="k", mlps=how) for how in OTW)
    compare(respond, Twin(model, data.clean, data.corrupt, "respond"))
    # Only MLP 0 stands between layers 0 and 1; in a parallel block it hears no head of its own.
    same = ["m0"] if not model.config.parallel else ["0.0", "0.1", "m0"]
    for sender in ("embed", "0.0", "0.1", "m0"):
        off = np.abs(respond["effect"].sel(sender=sender) - frozen["effect"].sel(sender=sender)).max()
        assert (off < 1e-12) == (sender in same)


OTW: tuple[OnTheWay, ...] = get_args(OnTheWay)


def test_what_is_measured_can_be_asked_for_by_name() -> None:
    model, data = network("gpt2"), pairs("gpt2")
    found = path_patching(model, data, METRIC, receivers=["1.0", "m1", ["1.0", "1.1"]], route=("k", "q"))
    assert list(found["receiver"].values) == ["1.0<k>", "1.0<q>", "m1", "1.0<k>+1.1<k>", "1.0<q>+1.1<q>"]
    assert list(found["route"].values) == ["k", "q", "", "k", "q"]
    assert found["effect"].sel(sender="0.1", receiver="1.0<k>", prompt="b").dims == ()
    chosen = {"granularity": "edge", "value": "counterfactual", "positions": "all", "direction": "noising"}
    assert {f"ablation_{name}": value for name, value in chosen.items()}.items() <= found.attrs.items()
    for name, tokens in (("clean", data.clean), ("corrupt", data.corrupt)):
        np.testing.assert_allclose(found[name], metric_of(oracle_sites(model, tokens)["logits"]), rtol=0, atol=1e-9)


def test_heads_that_share_a_key_are_one_receiver() -> None:
    model, data = network("llama"), pairs("llama")
    found = path_patching(model, data, METRIC, senders="0.3", receivers=["1.0", "1.1", "1.2"], route=["q", "k"])
    assert list(found["receiver"].values) == ["1.0<q>", "1.0<k>", "1.1<q>", "1.2<q>", "1.1<k>"]
    together = path_patching(model, data, METRIC, senders="0.3", receivers=[["1.2", "1.3"]], route="k")
    assert list(together["receiver"].values) == ["1.1<k>"]
    np.testing.assert_allclose(
        together["effect"].sel(receiver="1.1<k>"), found["effect"].sel(receiver="1.1<k>"), rtol=0, atol=1e-12
    )


def test_a_result_can_be_saved(tmp_path: Any) -> None:
    found = path_patching(network("gpt2"), pairs("gpt2"), METRIC, receivers=["1.0", "logits"])
    found.to_netcdf(tmp_path / "paths.nc", engine="h5netcdf")
    xarray.testing.assert_identical(xarray.load_dataset(tmp_path / "paths.nc", engine="h5netcdf"), found)


@pytest.mark.parametrize("name", NETWORKS)
def test_all_senders_together_give_the_logits_of_the_other_run(name: str) -> None:
    model, data = network(name), pairs(name)
    everyone = [[str(w) for w in graph(model.config).writers]]
    for direction in get_args(Direction):
        for mlps in OTW:
            found = path_patching(model, data, METRIC, senders=everyone, direction=direction, mlps=mlps)
            np.testing.assert_allclose(found["normalised_by_prompt"], 1, atol=1e-7)
            np.testing.assert_allclose(found["normalised"], 1, atol=1e-9)


@pytest.mark.parametrize("name", ["attention-only-rotary-half", "one-kv-head", "solu-ln-parallel", "mix-bidirectional"])
def test_without_a_final_norm_direct_effects_add_up_and_are_differences_of_direct_attribution(name: str) -> None:
    model, data = network(name), pairs(name)
    assert model.config.norm == "none"
    found = path_patching(model, data, METRIC)["effect"].sel(receiver="logits")
    clean, corrupt = (direct_attribution(model, x, METRIC, data.labels) for x in (data.clean, data.corrupt))
    total = (corrupt["metric"] - clean["metric"]).to_numpy()
    np.testing.assert_allclose(found.sum("sender"), total, rtol=0, atol=1e-9)
    direct = corrupt["contribution"] - clean["contribution"]
    expected = direct.sel(component=list(found["sender"].values)).to_numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["gpt2", "neox", "qwen3"])
def test_edge_attribution_is_the_limit_for_small_differences(name: str) -> None:
    model, data = network(name), pairs(name)
    other = torch.where(data.clean == 9, 10, 9)
    data = PromptPairs(data.clean.clone(), torch.where(torch.arange(LENGTH) == START, other, data.clean))
    model.unembed.weight = torch.nn.Parameter(model.unembed.weight.detach().clone())
    embedding = model.embed.weight.detach().clone()
    off = []
    for size in (1e-2, 1e-3):
        with torch.no_grad():
            model.embed.weight[:] = embedding[3] + size * embedding
        exact = path_patching(model, data, METRIC, receivers=None)["effect"].transpose("prompt", "sender", "receiver")
        linear = edge_attribution(model, data.clean, data.corrupt, METRIC, per_example=True).to_numpy()
        off.append(float(np.nanmax(np.abs(exact - linear)) / np.nanmax(np.abs(linear))))
    assert off[1] < 0.2 * off[0]
    assert off[1] < 0.05


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama"])
def test_senders_that_say_the_same_change_nothing(name: str) -> None:
    model, data = network(name), pairs(name)
    with torch.no_grad():
        model.embed.weight[:] = model.embed.weight[0]
    found = path_patching(model, data, METRIC, receivers=None)["effect"]
    np.testing.assert_allclose(found.fillna(0), 0, atol=1e-10)
    assert int(found.isel(prompt=0).notnull().sum()) == graph(model.config).edges


def test_positions_before_the_first_difference_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    starts: set[int] = set()
    real: Callable[..., Tensor] = module.sweep

    def spying(model: Any, base: Any, variants: Any, metric: Any, progress: Any) -> Tensor:
        starts.update(edit.start for edits in variants for edit in edits)
        return real(model, base, variants, metric, progress)

    monkeypatch.setattr(module, "sweep", spying)
    model, data = network("gpt2"), pairs("gpt2")
    path_patching(model, data, METRIC, receivers=None)
    assert starts == {START}
    starts.clear()
    path_patching(model, data, METRIC, receivers="m1", positions=[4, 3, 0])
    assert starts == {3}
    before = path_patching(model, data, METRIC, receivers=None, positions=[1, 0])["effect"]
    assert (before.fillna(0) == 0).all()
    np.testing.assert_array_equal(before.isel(prompt=0).notnull(), graph(model.config).visible)
    starts.clear()
    path_patching(network("bidirectional-pad"), pairs("bidirectional-pad"), METRIC, receivers="m1")
    assert starts == {0}


def test_a_network_without_layers_has_one_path() -> None:
    model, data = network("no-layers"), pairs("gpt2")
    found = path_patching(model, data, METRIC, receivers=None)
    assert found.sizes == {"sender": 1, "receiver": 1, "prompt": BATCH}
    np.testing.assert_allclose(found["effect"][0, 0], found["corrupt"] - found["clean"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama"])
def test_a_limit_on_memory_changes_no_number(name: str) -> None:
    model, data = network(name), pairs(name)
    options: dict[str, Any] = {"receivers": ["1.0", "m1", "logits"], "mlps": "respond"}
    whole = path_patching(model, data, METRIC, **options)
    paths = int(whole["normalised"].notnull().sum())
    plan = module._plan(model.config, options["receivers"], get_args(Route), None, data, None)
    low, high = 0, 2**24
    while high - low > 1:
        middle = (low + high) // 2
        try:
            module._room(model, plan, BATCH, LENGTH, middle)
            high = middle
        except UserError:
            low = middle
    for memory in (high, 10 * high):
        done: list[int] = []
        found = path_patching(model, data, METRIC, memory=memory, progress=done.append, **options)
        np.testing.assert_allclose(found["effect"], whole["effect"], rtol=0, atol=1e-10)
        assert sum(done) % paths == 0
    assert sum(done) == paths
    with pytest.raises(UserError, match=r"Path patching on one prompt of 5 tokens needs about [\d.]+ MB"):
        path_patching(model, data, METRIC, memory=high - 1, **options)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_memory_stays_under_the_limit(name: str) -> None:
    length = 48
    model = initialise(dataclasses.replace(ARCHITECTURES[name], n_ctx=length), 0).double()
    clean, corrupt = (torch.full((3, length), token) for token in (1, 2))
    metric = Loss(torch.ones_like(clean), torch.ones_like(clean, dtype=torch.bool))
    options: dict[str, Any] = {"receivers": ["1.1", "m1"], "route": "k", "mlps": "respond"}
    for memory in (2 * 10**6, 6 * 10**6):
        with Peak() as peak:
            path_patching(model, PromptPairs(clean, corrupt), metric, memory=memory, **options)
        assert memory / 8 < peak.most < memory


@pytest.mark.usefixtures("unchecked")
def test_what_does_not_exist_is_refused() -> None:
    wrong: list[tuple[str, dict[str, Any], str]] = [
        ("gpt2", {"senders": "0.2"}, "Unknown sender '0.2'"),
        ("gpt2", {"senders": ["logits"]}, "Unknown sender 'logits'"),
        ("gpt2", {"senders": []}, "A sender is missing"),
        ("gpt2", {"senders": [["0.1", "0.1"]]}, r"sender 0.1\+0.1 names something twice"),
        ("gpt2", {"senders": ["0.1", "0.1"]}, "sender 0.1 is given twice"),
        ("shortformer", {"senders": "m0"}, "Unknown sender 'm0'"),
        ("gpt2", {"receivers": "embed"}, "Unknown receiver 'embed'"),
        ("gpt2", {"receivers": "1.0<z>"}, "Unknown receiver '1.0<z>'"),
        ("llama", {"receivers": "1.2<k>"}, "Unknown receiver '1.2<k>'"),
        ("gpt2", {"receivers": ["m1", "m1"]}, "receiver m1 is given twice"),
        ("gpt2", {"receivers": ["1.0", "1.0"]}, "receiver 1.0<q> is given twice"),
        ("gpt2", {"receivers": [["1.0", "1.0"]]}, r"receiver 1.0\+1.0 names something twice"),
        ("gpt2", {"receivers": "1.0", "route": "z"}, "Unknown route into a head 'z'"),
        ("gpt2", {"receivers": "1.0", "route": []}, "Unknown route into a head ''"),
        ("gpt2", {"direction": "noise"}, "Unknown direction 'noise': .*noising"),
        ("gpt2", {"mlps": "freeze"}, "Unknown treatment of MLPs 'freeze': .*frozen"),
        ("gpt2", {"positions": [5]}, "The prompts have positions 0–4; position 5 does not exist"),
    ]
    for name, options, says in wrong:
        with pytest.raises(UserError, match=says):
            path_patching(network(name), pairs(name), METRIC, **options)
    short = LogitDifference(torch.tensor([4]), torch.tensor([0]), torch.tensor([1]))
    with pytest.raises(UserError, match="is for 1 prompts, but there are 3"):
        path_patching(network("gpt2"), pairs("gpt2"), short)


class Broken(Metric):
    """A metric that is not finite."""

    def __call__(self, model: Transformer, resid: Tensor, start: int) -> Tensor:
        return resid[:, -1, 0] * torch.nan

    def reads(self, length: int) -> int:
        return length - 1


def test_a_metric_that_is_not_finite_is_named_before_any_path() -> None:
    done: list[int] = []
    with pytest.raises(UserError, match="gave nan for prompt a"):
        path_patching(network("gpt2"), pairs("gpt2"), Broken(), receivers=None, progress=done.append)
    assert not done
