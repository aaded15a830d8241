"""Which head reads which way to be unbalanced, and strings that should fool the network."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from headwork.engine.metrics import LogitDifference
from headwork.errors import UserError
from headwork.methods import elevation_readers as module
from headwork.methods.bracket_adversaries import bracket_adversaries, called_balanced, dipped, unbalanced_controls
from headwork.methods.direct_attribution import direct_attribution
from headwork.methods.elevation_readers import elevation_features, elevation_readers
from headwork.model.config import TransformerConfig
from headwork.model.initialise import initialise
from headwork.model.sources import load_transformer
from headwork.model.transformer import Transformer
from headwork.tasks.brackets import BalancedBrackets

TASK = BalancedBrackets(8)
ALL = ["".join(text) for n in (4, 6) for text in itertools.product("()", repeat=n)]


def classifier(norm: str = "layernorm", **fields: object) -> Transformer:
    given = {"n_layers": 2, "n_heads": 2, "d_model": 12, "d_head": 6, "d_mlp": 16, "d_vocab": 5, "d_vocab_out": 2}
    rest = {"n_ctx": 10, "causal": False, "pad_token": 1, "activation": "relu", "norm": norm, "out_bias": True}
    return initialise(TransformerConfig.from_dict(given | rest | fields), 3, std=0.7).double()


def balance_of(text: str) -> tuple[bool, bool, bool]:
    """Slow and obvious: total, negative from the left, negative from the right."""
    heights = [text[:i].count("(") - text[:i].count(")") for i in range(len(text) + 1)]
    ends = [text[i:].count(")") - text[i:].count("(") for i in range(len(text) + 1)]
    return heights[-1] != 0, min(heights) < 0, min(ends) < 0


def test_the_features_are_those_of_the_strings() -> None:
    total, negative = elevation_features(TASK, TASK.of(ALL).tokens)
    expected = np.array([balance_of(text) for text in ALL]).T
    assert (total.numpy() == expected[0]).all()
    assert (negative.numpy() == expected[1:]).all()
    # From either side a string is balanced where neither fails.
    for below in negative:
        assert (TASK.of(ALL).labels[:, 0].bool() == ~(total | below)).all()


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm", "none"])
def test_coefficients_equal_a_regression_on_as_many_strings_of_each_kind(norm: str) -> None:
    """The twin repeats strings until all four kinds are equally many, and solves the normal equations."""
    model = classifier(norm)
    found = elevation_readers(model, TASK, ALL)
    zeros = torch.zeros(len(ALL), dtype=torch.long)
    written = direct_attribution(model, TASK.of(ALL).tokens, LogitDifference(zeros, zeros, zeros + 1))
    for i, side in enumerate(("left", "right")):
        features = np.array([[1, balance_of(text)[0], balance_of(text)[1 + i]] for text in ALL], dtype=float)
        kinds = features @ [0, 2, 1]
        common = np.lcm.reduce([int((kinds == kind).sum()) for kind in range(4)])
        rows = np.concatenate([np.repeat(np.flatnonzero(kinds == k), common // (kinds == k).sum()) for k in range(4)])
        for component in ("0.0", "1.1", "m0"):
            y = written["contribution"].sel(component=component).values
            np.testing.assert_allclose(found["contribution"].sel(component=component), y)
            expected, left, *_ = np.linalg.lstsq(features[rows], y[rows], rcond=None)
            one = found.sel(side=side, component=component)
            np.testing.assert_allclose(one["coefficient"], expected[1:], atol=1e-9)
            assert float(one["difference"]) == pytest.approx(expected[1] - expected[2])
            assert float(one["explained"]) == pytest.approx(1 - left[0] / len(rows) / y[rows].var())
            means = [y[kinds == kind].mean() for kind in range(4)]
            np.testing.assert_allclose(one["class_mean"].values.ravel(), means)
            assert float(one["interaction"]) == pytest.approx(means[3] - means[1] - means[2] + means[0])
    assert "b_ln_final" not in found["component"]


def test_intervals_cover_the_planted_coefficients() -> None:
    """Unequal kinds and unequal variances: about 95 of 100 intervals hold what was planted."""
    rng = np.random.default_rng(0)
    total = np.arange(240) < 100
    negative = np.arange(240) % 7 < 3
    design = np.stack([np.ones(240), total, negative], 1).astype(float)
    noise = rng.normal(size=(2000, 240)) * np.where(total & negative, 3.0, 0.3)
    fit = module._fit(design, design @ [1.0, 2.0, -1.0] + noise)
    for i, planted in enumerate((2.0, -1.0)):
        low, high = fit["coefficient_interval"][:, i].T
        assert 0.93 < np.mean((low < planted) & (planted < high)) < 0.97
    low, high = fit["difference_interval"].T
    assert 0.93 < np.mean((low < 3) & (high > 3)) < 0.97


def test_what_a_head_reads_follows_from_its_intervals() -> None:
    coefficients = np.array([[[1, 2], [-1, 1]], [[-1, 1], [1, 2]], [[1, 2], [1, 2]], [[-2, -1], [-4, -3]]], dtype=float)
    difference = np.array([[0.1, 2], [-2, -0.1], [-1, 1], [1, 3]])
    assert module._reads(coefficients, difference).tolist() == ["total", "negative", "both", "neither"]


def test_dipped_strings_fail_at_one_place_only() -> None:
    for depth in (1, 2):
        for family, texts in dipped(12, depth).items():
            assert len(texts) == 7 - depth == len(set(texts)), family
            for text, turned in zip(texts, dipped(12, depth, balanced=True)[family]):
                heights = np.cumsum([1 if symbol == "(" else -1 for symbol in text])
                assert len(text) == 12
                assert heights[-1] == 0
                assert heights.min() == -depth
                assert (heights < 0).sum() == 2 * depth - 1
                assert not any(balance_of(turned))
    assert "(())" + ")(" + "((()))" in dipped(12)["tower dip tower"]
    assert "()()" + ")(" + "((()))" in dipped(12)["ripple dip tower"]


def test_controls_are_unbalanced_and_of_that_length() -> None:
    found = unbalanced_controls(6, 200, torch.Generator().manual_seed(0))
    for name, texts in found.items():
        assert len(texts) == 200
        assert {len(text) for text in texts} == {6}
        assert all(any(balance_of(text)) for text in texts)
        assert len(set(texts)) > (10 if name == "equal counts" else 40)
    assert all(text.count("(") == 3 for text in found["equal counts"])
    assert unbalanced_controls(6, 200, torch.Generator().manual_seed(0)) == found


def test_shares_count_what_the_network_says() -> None:
    model = classifier()
    found = bracket_adversaries(model, TASK, depths=(1, 2), controls=50, seed=1)
    said = {text: bool(one) for text in ALL for one in [_alone(model, text)]}
    assert called_balanced(model, TASK, ALL).tolist() == list(said.values())
    for depth in (1, 2):
        each = {family: [_alone(model, text) for text in texts] for family, texts in dipped(8, depth).items()}
        for family, answers in each.items():
            assert float(found["fooled"].sel(family=family, depth=depth)) == pytest.approx(np.mean(answers))
        once = {text for texts in dipped(8, depth).values() for text in texts}
        assert int(found["all_strings"].sel(depth=depth)) == len(once)
        assert float(found["all_fooled"].sel(depth=depth)) == pytest.approx(np.mean([_alone(model, t) for t in once]))
    others = unbalanced_controls(8, 50, torch.Generator().manual_seed(1))
    for name, texts in others.items():
        assert float(found["control_fooled"].sel(control=name)) == pytest.approx(
            np.mean([_alone(model, t) for t in texts])
        )
    assert all(_alone(model, text) for text in found.attrs["examples"])


def _alone(model: Transformer, text: str) -> bool:
    tokens = torch.tensor([[0, *(3 if symbol == "(" else 4 for symbol in text), 2]])
    with torch.no_grad():
        logits = model(tokens)[0, 0]
    return bool(logits[1] > logits[0])


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"d_vocab_out": 3}, "outputs = 3, which must be 2"),
        ({"causal": True}, "causal = True, which must be false"),
        ({"n_ctx": 9}, "n_ctx = 9, which must be 10 or more"),
        ({"d_vocab": 4}, "d_vocab = 4, which must be 5 or more"),
    ],
)
def test_other_networks_are_refused(fields: dict[str, object], says: str) -> None:
    model = classifier(**fields)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=says):
        elevation_readers(model, TASK, ALL)
    with pytest.raises(UserError, match=says):
        bracket_adversaries(model, TASK)


def test_strings_that_tell_nothing_apart_are_refused() -> None:
    with pytest.raises(UserError, match="none: 2, negative only: 0, total only: 0, both: 2"):
        elevation_readers(classifier(), TASK, ["()", "(())", ")))", "))"])
    with pytest.raises(UserError, match=r"must be brackets"):
        elevation_readers(classifier(), TASK, ["(a)"])
    for length, depth in ((7, 1), (4, 3), (4, 0)):
        with pytest.raises(UserError, match=f"{length} brackets has no dip of depth {depth}"):
            dipped(length, depth)
    with pytest.raises(UserError, match="strings of at most 8 brackets"):
        bracket_adversaries(classifier(), TASK, length=10)
    with pytest.raises(UserError, match="it must be an even number"):
        unbalanced_controls(5, 1, torch.Generator())


@pytest.mark.artifacts
def test_the_course_network_reads_both_ways_with_two_heads_and_is_fooled_by_one_dip(artifacts: Path) -> None:
    """Elevation from the right: 2.1 reads that it is negative, 2.0 more of the total."""
    model, task = load_transformer("artifact:arena-brackets"), BalancedBrackets(40)
    labelled = json.loads((artifacts / "arena" / "brackets_data.json").read_text())[:1000]
    found = elevation_readers(model, task, [text for text, _ in labelled])
    assert ((found["metric"].values < 0) == [bool(label) for _, label in labelled]).all()
    assert found.attrs["side"] == "right"
    heads = found.sel(side="right", component=["2.0", "2.1"])
    assert heads["reads"].values.tolist() == ["total", "negative"]
    assert float(heads["coefficient"].sel(component="2.1", feature="negative")) > 8
    made = bracket_adversaries(model, task, controls=300)
    assert float(made["all_fooled"][0]) > 0.3 > 0.1 > float(made["control_fooled"].max())
    assert bool((made["p_value"] < 1e-6).all())
    assert (made["all_fooled"].diff("depth") < 0).all()
    assert float(made["accepted"].min()) >= 0.8
