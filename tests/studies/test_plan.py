"""What is measured is known in advance, and a follow-up changes one key."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.studies import fake

from headwork.errors import UserError
from headwork.findings.registry import FINDINGS, Factor, Finding
from headwork.model.sources import locate
from headwork.studies.plan import differing, plan, require_one_key

SETTINGS = st.dictionaries(st.sampled_from("abcd"), st.integers(0, 2) | st.none(), max_size=4)


@given(SETTINGS, SETTINGS)
def test_the_difference_of_settings_names_every_key_that_differs(a: dict[str, Any], b: dict[str, Any]) -> None:
    missing = object()
    differ = {key for key in "abcd" if a.get(key, missing) != b.get(key, missing)}
    assert set(differing(a, b)) == differ
    assert all(differing(b, a)[key] == found[::-1] for key, found in differing(a, b).items())


@given(SETTINGS, SETTINGS, st.sampled_from("abcd"))
def test_exactly_one_key_may_change(a: dict[str, Any], b: dict[str, Any], key: str) -> None:
    if set(differing(a, b)) == {key}:
        assert require_one_key(a, b, key) == (repr(a.get(key)), repr(b.get(key)))
    else:
        with pytest.raises(UserError, match=f"on {key} may change {key} alone"):
            require_one_key(a, b, key)


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"a": 2, "b": 2, "c": 2}, "it changes b, c too."),
        ({"a": 1, "b": 2, "c": 1}, "it changes b."),
        ({"a": 1, "b": 1, "c": 1}, "it changes nothing."),
        ({"a": 2, "b": 1}, "it changes c too."),
    ],
)
def test_the_error_names_what_else_changed(changed: dict[str, int], said: str) -> None:
    with pytest.raises(UserError) as error:
        require_one_key({"a": 1, "b": 1, "c": 1}, changed, "a")
    assert said in str(error.value)


def test_headline_controls_and_follow_ups(finding: Finding) -> None:
    made = plan(finding, None, 2)
    assert made.headline.located.spec == "zoo:strong"
    assert {name: (task.located.spec, task.untrained) for name, task in made.controls.items()} == {
        "untrained": ("zoo:strong", True),
        "weak": ("zoo:weak", False),
    }
    assert made.expected is None
    assert made.unavailable == ()
    steps, width = made.followups
    assert [(level.value, level.baseline, level.diff) for level in steps.levels] == [
        (1, False, ("10", "1")),
        (10, True, None),
    ]
    assert [(level.value, level.baseline, level.diff) for level in width.levels] == [
        (4, True, None),
        (8, False, ("4", "8")),
    ]
    assert list(made.tasks()) == [
        "headline",
        "control/untrained",
        "control/weak",
        *(f"followup/{name}" for name in ("weak", "weak-s1", "strong", "strong-s1", "wide", "wide-s1")),
    ]
    assert [task.untrained for task in made.tasks().values()].count(True) == 1


def test_every_level_has_the_first_seeds(finding: Finding) -> None:
    for seeds in (1, 2, 3):
        for followup in plan(finding, None, seeds).followups:
            for level in followup.levels:
                assert [task.seed for task in level.tasks] == list(range(seeds))


def test_the_settings_of_the_networks_themselves_are_compared(finding: Finding, zoo: Path) -> None:
    fake.add(zoo, "other", 1.0, 0, steps=1, width=8)  # two keys away from the headline: belongs to no level
    names = {task.located.card.name for task in plan(finding, None, 3).tasks().values()}
    assert "other" not in names
    from_there = plan(finding, "zoo:other", 1).followups
    assert [[task.located.card.name for level in f.levels for task in level.tasks] for f in from_there] == [
        ["other", "wide"],
        ["weak", "other"],
    ]


@pytest.mark.parametrize("seeds", [0, -1])
def test_there_must_be_a_seed(finding: Finding, seeds: int) -> None:
    with pytest.raises(UserError, match=f"--seeds is {seeds}; it must be 1 or more"):
        plan(finding, None, seeds)


def test_more_seeds_than_the_zoo_has(finding: Finding) -> None:
    with pytest.raises(UserError, match="--seeds is 4; the zoo has 3 of steps = 1"):
        plan(finding, None, 4)


def test_an_unknown_network(finding: Finding) -> None:
    with pytest.raises(UserError, match="strong"):
        plan(finding, "zoo:stron", 1)
    with pytest.raises(UserError, match="No model is named"):
        plan(finding, "", 1)


def test_a_headline_that_is_a_control_is_expected_to_fail(finding: Finding) -> None:
    made = plan(finding, "zoo:weak", 1)
    assert made.expected == "not reproduced"
    assert set(made.controls) == {"untrained"}


def test_the_same_weights_are_the_same_control_wherever_they_lie(finding: Finding, zoo: Path, tmp_path: Path) -> None:
    shutil.copytree(zoo / "weak", tmp_path / "copy")
    made = plan(finding, str(tmp_path / "copy"), 1)
    assert made.expected == "not reproduced"
    assert set(made.controls) == {"untrained"}


@pytest.mark.parametrize("training", [{}, {"settings": None}, {"settings": 3, "seed": "x", "diverged_at": "y"}])
def test_no_follow_ups_where_the_card_states_no_settings(finding: Finding, zoo: Path, training: dict[str, Any]) -> None:
    fake.add(zoo, "bare", 1.0, training=training)
    made = plan(finding, "zoo:bare", 3)
    assert made.followups == ()
    assert [line.split(":")[0] for line in made.unavailable] == ["steps", "width"]
    assert made.headline.seed is None
    assert made.headline.diverged_at is None


def test_levels_without_a_network_are_listed(finding: Finding, zoo: Path) -> None:
    for seed in ("", "-s1", "-s2"):
        shutil.rmtree(zoo / f"wide{seed}")
    factors = (
        *fake.FINDING.factors,
        Factor("steps again", "steps", "?", {10: "reproduced", 1: "reproduced", 7: "reproduced"}),
    )
    made = plan(fake.finding(factors=factors), None, 1)
    assert [followup.factor.name for followup in made.followups] == ["steps", "steps again"]
    assert len(made.followups[1].unavailable) == 1
    assert made.followups[1].unavailable[0].startswith("steps again = 7: the zoo has no network")
    assert len(made.unavailable) == 1
    assert made.unavailable[0].startswith("width = 8: the zoo has no network")


def test_a_key_that_the_headline_lacks_is_a_change_too(finding: Finding, zoo: Path) -> None:
    settings = {key: value for key, value in fake.SETTINGS.items() if key != "width"}
    fake.add(zoo, "shorter", 1.0, training={"seed": 0, "settings": settings})
    width = next(f for f in plan(finding, "zoo:shorter", 1).followups if f.factor.key == "width")
    assert [(level.baseline, level.diff) for level in width.levels] == [(False, ("None", "4")), (False, ("None", "8"))]


def test_a_network_whose_training_diverged_is_no_headline(finding: Finding, zoo: Path) -> None:
    fake.add(zoo, "lost", 1.0, training={"seed": 0, "settings": fake.SETTINGS, "diverged_at": 30})
    with pytest.raises(UserError, match="zoo:lost diverged at step 30"):
        plan(finding, "zoo:lost", 1)


def test_the_default_reproduction_of_every_finding_can_be_planned() -> None:
    for finding in FINDINGS.values():
        made = plan(finding, None, 1)
        assert made.expected is None
        assert set(made.controls) == {"untrained", *finding.controls}
        assert len(made.followups) == len(finding.factors)
        assert not made.unavailable
        for followup in made.followups:
            assert not followup.unavailable
            assert [level.value for level in followup.levels] == list(followup.factor.expects)
            assert sum(level.baseline for level in followup.levels) == 1
            for level in followup.levels:
                hashes = {task.located.sha256 for task in level.tasks}
                assert len(hashes) == len(level.tasks)
        assert made.headline.located == locate(finding.model)


def test_every_level_of_the_zoo_has_five_networks_from_the_same_seeds() -> None:
    made = plan(FINDINGS["induction-heads"], None, 5)
    levels = [level for followup in made.followups for level in followup.levels]
    assert [[task.seed for task in level.tasks] for level in levels] == [[0, 1, 2, 3, 4]] * 5
    assert len({task.located.sha256 for level in levels for task in level.tasks}) == 20
