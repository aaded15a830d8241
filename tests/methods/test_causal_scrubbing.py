"""Causal scrubbing equals a slow recursion, and tells a true hypothesis of a network wired by hand from wrong ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray
from scipy import stats
from tests import handwired
from tests.architectures import network
from tests.methods.slow_scrubbing import Slow
from torch import Tensor

from headwork.engine.metrics import LogitDifference, Loss
from headwork.engine.run import run
from headwork.errors import UserError
from headwork.methods import causal_scrubbing as module
from headwork.methods.causal_scrubbing import causal_scrubbing, ratio_of_means
from headwork.methods.scrubbing_plan import (
    NOTHING,
    REST,
    TOKEN_BEFORE,
    TOKEN_HERE,
    WHOLE_INPUT,
    Feature,
    Hypothesis,
    Node,
    Plan,
    draw,
)
from headwork.model.config import TransformerConfig

NETWORKS = ("gpt2", "neox", "llama", "qwen3", "shortformer", "causal-pad")
COUNT, LENGTH = 4, 5
PARITY = Feature("the first token's parity", lambda tokens: tokens[:, 0] % 2)
PARITY_HERE = Feature("parity here", lambda tokens: tokens % 2, by_position=True)
TWO = Feature("two numbers", lambda tokens: torch.stack([tokens[:, 0] % 2, tokens[:, 1] % 3], 1))


def dataset(name: str, count: int = COUNT) -> Tensor:
    tokens = torch.randint(1, 11, (count, LENGTH), generator=torch.Generator().manual_seed(0))
    if name.endswith("pad"):
        tokens[:, 1] = 0
    return tokens


def metric(count: int = COUNT) -> LogitDifference:
    each = torch.arange(count)
    return LogitDifference(each % 3 + 2, each % 4, each % 4 + 3)


def whole(nodes: tuple[Node, ...], config: TransformerConfig) -> tuple[Node, ...]:
    """The nodes that an architecture has."""
    return tuple(node for node in nodes if config.d_mlp or not node.writer.startswith("m"))


def deep(config: TransformerConfig) -> Hypothesis:
    """Heads by all routes, MLPs, the rest, whole-input features and features by position, some inside one another."""
    keys = Node("0.0", TOKEN_BEFORE, {"k": (Node("embed", PARITY_HERE),), "v": (Node("embed", TOKEN_HERE),)})
    first = whole((Node("m0", PARITY_HERE, {"mlp": (Node("embed", PARITY), Node("0.1", TWO))}),), config)
    if config.parallel:
        first = (Node("m0", PARITY_HERE, {"mlp": (Node("embed", PARITY),)}),)
    second = Node("1.1", PARITY, {"q": (Node(REST, PARITY_HERE), Node("0.1", NOTHING)), "k": (keys,), "v": first})
    return Hypothesis((second, *whole((Node("m1", PARITY), Node("m0", TOKEN_HERE)), config), Node("embed", NOTHING)))


@pytest.mark.parametrize("name", NETWORKS)
def test_scrubbing_equals_the_slow_recursion(name: str) -> None:
    model, tokens = network(name), dataset(name)
    hypothesis, read = deep(model.config), metric()
    found = causal_scrubbing(model, tokens, hypothesis, read, draws=2, seed=3)
    generator = torch.Generator().manual_seed(3)
    slow = Slow(model, tokens)
    for number in range(2):
        plan = draw(hypothesis, tokens, generator)
        for row in range(COUNT):
            with torch.no_grad():
                logits = slow.logits(plan, row)[read.positions[row]]
            expected = float(logits[read.correct[row]] - logits[read.wrong[row]])
            assert float(found["scrubbed"][number, row]) == pytest.approx(expected, abs=1e-9)
            assert plan.unmentioned is not None
            other = run(model, tokens[int(plan.unmentioned[row, 0])][None]).logits[0, read.positions[row]]
            lost = float(other[read.correct[row]] - other[read.wrong[row]])
            assert float(found["resampled"][number, row]) == pytest.approx(lost, abs=1e-9)
    logits = run(model, tokens).logits[torch.arange(COUNT), read.positions]
    clean = logits[torch.arange(COUNT), read.correct] - logits[torch.arange(COUNT), read.wrong]
    np.testing.assert_allclose(found["unscrubbed"], clean, rtol=0, atol=1e-10)


def agree(feature: Feature, tokens: Tensor, one: int, other: int, position: int) -> bool:
    values = feature.of(tokens)
    if feature.by_position:
        return bool((values[one, position] == values[other, position]).all())
    return bool((values[one] == values[other]).all())


def test_every_value_comes_from_another_input_that_agrees() -> None:
    tokens = dataset("gpt2", 20)
    checked = 0

    def check(plan: Plan, reader: Tensor) -> None:
        nonlocal checked
        node = plan.node
        assert node is not None
        places = LENGTH if node.feature.by_position else 1
        for row in range(len(tokens)):
            for at, taken in enumerate(plan.rows[row].tolist()):
                own = int(reader[row, at // places])
                assert agree(node.feature, tokens, own, taken, at % places)
                candidates = [i for i in range(len(tokens)) if agree(node.feature, tokens, own, i, at % places)]
                assert taken != own or candidates == [own]
                checked += 1
        if plan.unmentioned is not None:
            assert bool((plan.unmentioned != plan.rows).all())
        for plans in plan.inputs.values():
            for child in plans:
                check(child, plan.rows)

    first = Node("m0", TOKEN_BEFORE, {"mlp": (Node("embed", PARITY_HERE),)})
    tree = Hypothesis((Node("1.0", TWO, {"q": (first,)}), Node("0.1", PARITY)))
    root = draw(tree, tokens, torch.Generator().manual_seed(0))
    for plan in root.inputs[""]:
        check(plan, root.rows)
    assert checked == 20 * (2 + LENGTH + LENGTH**2)


def test_all_inputs_that_agree_are_drawn_alike() -> None:
    places = 400
    tokens = torch.tensor([[0, 0, 0, 0, 1]]).T.expand(5, places)
    plan = draw(Hypothesis((Node("embed", TOKEN_HERE),)), tokens, torch.Generator().manual_seed(0)).inputs[""][0]
    assert plan.rows[4].unique().tolist() == [4]
    for row in range(4):
        counts = torch.bincount(plan.rows[row], minlength=5)
        assert counts[row] == counts[4] == 0
        assert stats.chisquare(counts[[i for i in range(4) if i != row]].numpy()).pvalue > 1e-3
    assert plan.alone == pytest.approx(0.2)


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama"])
def test_a_hypothesis_that_says_nothing_recovers_everything_and_one_that_drops_all_nothing(name: str) -> None:
    model, tokens = network(name), dataset(name, 12)
    read = metric(12)
    for trivial in (Hypothesis((Node(REST, WHOLE_INPUT),)), everything(model.config)):
        found = causal_scrubbing(model, tokens, trivial, read, draws=2)
        np.testing.assert_allclose(found["scrubbed"], np.tile(found["unscrubbed"], (2, 1)), rtol=0, atol=1e-10)
        assert (found["alone"] == 1).all()
    found = causal_scrubbing(model, tokens, Hypothesis((Node(REST, WHOLE_INPUT),)), read, draws=2)
    np.testing.assert_array_equal(found["scrubbed"][0], found["unscrubbed"])  # exactly
    nothing = causal_scrubbing(model, tokens, Hypothesis(), read, draws=2)
    np.testing.assert_array_equal(nothing["scrubbed"], nothing["resampled"])


def everything(config: TransformerConfig) -> Hypothesis:
    """Every path is named down to the second layer, and may depend on everything."""
    embed = Node("embed", WHOLE_INPUT)
    first = tuple(Node(f"0.{h}", WHOLE_INPUT) for h in range(config.n_heads))
    below = (embed, *first, Node("m0", WHOLE_INPUT, {"mlp": (Node(REST, WHOLE_INPUT),)}))
    heads = tuple(Node(f"1.{h}", WHOLE_INPUT, dict.fromkeys("qkv", below)) for h in range(config.n_heads))
    reads = below if config.parallel else (*below, *heads)
    return Hypothesis((*below, *heads, Node("m1", WHOLE_INPUT, {"mlp": reads})))


HERE = (Node("embed", TOKEN_HERE),)
INDUCTION = {"q": HERE, "k": (Node("0.0", TOKEN_BEFORE),), "v": HERE}


def induction(**changed: tuple[Node, ...]) -> Hypothesis:
    return Hypothesis((Node("1.0", WHOLE_INPUT, INDUCTION | changed),))


def repeats(count: int) -> tuple[Tensor, Loss]:
    """Enough inputs that nearly every token has others that agree at its position."""
    batch = handwired.VARIED.sample(count, torch.Generator().manual_seed(0))
    return batch.tokens, Loss(batch.targets, batch.last_copy())


def test_a_true_hypothesis_of_the_wired_induction_network_recovers_the_loss_and_a_wrong_one_does_not() -> None:
    model, (tokens, loss) = handwired.induction_network(), repeats(160)
    true = {
        "as it is wired": induction(),
        "only the keys": induction(q=(Node(REST, WHOLE_INPUT),), v=(Node(REST, WHOLE_INPUT),)),
        "the head alone": Hypothesis((Node("1.0", WHOLE_INPUT),)),
    }
    for name, hypothesis in true.items():
        found = causal_scrubbing(model, tokens, hypothesis, loss, draws=2)
        assert float(found["recovered"]) > 0.9, name
        assert found["recovered_interval"].sel(bound="low") > 0.9, name
    wrong = {
        "keys by the token here": induction(k=(Node("0.0", TOKEN_HERE),)),
        "keys by the other head": induction(k=(Node("0.1", WHOLE_INPUT),)),
        "no keys": induction(k=()),
        "queries by the token before": induction(q=(Node("embed", TOKEN_BEFORE),)),
        "values by the token before": induction(v=(Node("embed", TOKEN_BEFORE),)),
        "another head": Hypothesis((Node("1.1", WHOLE_INPUT),)),
        "the embedding": Hypothesis((Node("embed", WHOLE_INPUT), Node("0.0", WHOLE_INPUT))),
    }
    for name, hypothesis in wrong.items():
        found = causal_scrubbing(model, tokens, hypothesis, loss, draws=2)
        assert float(found["recovered"]) < 0.5, name
        assert found["recovered_interval"].sel(bound="high") < 0.5, name


def test_a_hypothesis_down_to_the_embedding_holds_too() -> None:
    model, (tokens, loss) = handwired.induction_network(), repeats(12)
    nothing = (Node("embed", NOTHING),)
    before = Node("0.0", TOKEN_BEFORE, {"q": nothing, "k": nothing, "v": HERE})
    found = causal_scrubbing(model, tokens, induction(k=(before,)), loss, draws=1)
    assert float(found["recovered"]) > 0.9
    assert found["alone"].sel(node="logits<1.0<k<0.0<q<embed") == 0
    broken = dataclasses.replace(before, inputs={"q": nothing, "k": nothing, "v": ()})
    lost = causal_scrubbing(model, tokens, induction(k=(broken,)), loss, draws=1)
    assert float(lost["recovered"]) < 0.5


def test_the_result_says_how_it_was_made_and_can_be_saved(tmp_path: Path) -> None:
    model, tokens = network("llama"), dataset("llama")
    found = causal_scrubbing(model, tokens, deep(model.config), metric(), draws=3, labels=tuple("abcd"))
    assert "logits<1.1<k<0.0" in found["node"].values
    assert found["feature"].sel(node="logits<1.1<k<0.0") == "the token before"
    described = {"method": "causal scrubbing", "draws": 3, "metric": "LogitDifference", "ablation_value": "resample"}
    assert described.items() <= found.attrs.items()
    assert found["scrubbed"].sel(prompt="c", draw=1).dims == ()
    kept, lost = found["scrubbed"].mean("draw"), found["resampled"].mean("draw")
    expected = ((kept - lost).mean() / (found["unscrubbed"] - lost).mean()).item()
    assert np.isnan(found["recovered"]) or float(found["recovered"]) == pytest.approx(expected)
    found.to_netcdf(tmp_path / "scrubbing.nc", engine="h5netcdf")
    xarray.testing.assert_identical(xarray.load_dataset(tmp_path / "scrubbing.nc", engine="h5netcdf"), found)


def test_a_limit_on_memory_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = network("neox"), dataset("neox")
    calls: list[int] = []
    free = causal_scrubbing(model, tokens, deep(model.config), metric(), draws=2, progress=calls.append)
    assert calls == [1, 1]
    sizes: list[int] = []
    held = module._prompts_at_once

    def noted(*arguments: Any) -> int:
        sizes.append(held(*arguments))
        return sizes[-1]

    monkeypatch.setattr(module, "_prompts_at_once", noted)
    small = causal_scrubbing(model, tokens, deep(model.config), metric(), draws=2, memory=1_200_000)
    assert 1 <= sizes[0] < COUNT
    xarray.testing.assert_allclose(free, small, rtol=1e-10)


def test_the_ratio_has_the_interval_of_its_linearisation() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        bottom = generator.normal(2, 0.5, 30)
        top = 0.8 * bottom + generator.normal(0, 0.3, 30)
        value, low, high = ratio_of_means(top, bottom)
        assert value == pytest.approx(top.sum() / bottom.sum())
        covered += low <= 0.8 <= high
    assert 0.91 < covered / 300 < 0.985
    assert np.isnan(ratio_of_means(np.array([1.0, 2.0]), np.array([-1.0, 1.1]))).all()


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_scrubbed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("the network was run")

    monkeypatch.setattr(module, "run", never)
    model, tokens = network("gpt2"), dataset("gpt2")
    floats = Feature("floats", lambda t: t[:, 0] / 2)
    short = Feature("short", lambda t: t[:-1], by_position=True)
    wrong = {
        r"Unknown writer that logits reads: '2\.0'": (Node("2.0", NOTHING),),
        r"Unknown writer that logits<1\.0<q reads: '1\.1'": (Node("1.0", NOTHING, {"q": (Node("1.1", NOTHING),)}),),
        r"Unknown input of m0: 'q'.*mlp": (Node("m0", NOTHING, {"q": ()}),),
        "Unknown input of embed: 'v'": (Node("embed", NOTHING, {"v": ()}),),
        r"names 0\.0 twice among what logits reads": (Node("0.0", NOTHING), Node("0.0", PARITY)),
        r"'floats' gave torch\.float32 of shape": (Node("0.0", floats),),
        "'short' gave .* for each position of each input": (Node("0.0", short),),
    }
    for message, nodes in wrong.items():
        with pytest.raises(UserError, match=message):
            causal_scrubbing(model, tokens, Hypothesis(nodes), metric())
    fine = Hypothesis((Node("0.0", NOTHING),))
    for message, change in (
        ("There is 1 input", {"tokens": tokens[:1], "metric": metric(1)}),
        ("0 draws", {"draws": 0}),
        ("for 3 prompts, but there are 4", {"metric": metric(3)}),
        ("needs about", {"memory": 1000}),
        ("2 different labels", {"labels": ("a", "b")}),
    ):
        given: dict[str, Any] = {"tokens": tokens, "hypothesis": fine, "metric": metric()} | change
        with pytest.raises(UserError, match=message):
            causal_scrubbing(model, **given)
    padded = dataset("causal-pad")
    padded[2, 3] = 0
    with pytest.raises(UserError, match="Prompt 2 has padding"):
        causal_scrubbing(network("causal-pad"), padded, fine, metric())
    with pytest.raises(UserError, match="no layers"):
        causal_scrubbing(network("no-layers"), tokens, fine, metric())


def test_a_metric_that_is_not_finite_is_refused() -> None:
    model, tokens = network("gpt2"), dataset("gpt2")
    with torch.no_grad():
        model.W_E.fill_(torch.nan)
    read = dataclasses.replace(metric())
    with pytest.raises(UserError, match="gave nan for prompt 0"):
        causal_scrubbing(model, tokens, Hypothesis((Node("0.0", NOTHING),)), read)
