"""From runs to the record: numbers recomputed by hand, and no network that goes missing on the way."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
from scipy import stats
from tests.studies import fake

from headwork.findings.claim import SubClaim
from headwork.findings.registry import Factor, Finding
from headwork.store.results import Store
from headwork.studies.assemble import assemble, per_unit
from headwork.studies.plan import plan
from headwork.studies.record import FollowUp, Level, Record
from headwork.studies.runs import execute

Change = Mapping[str, Mapping[str, Any]]
"""By run and variable: what a dataset holds instead; None where it lacks the variable."""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, xarray.Dataset]]:
    """What was measured for one test serves the others; datasets by address."""
    return Store(tmp_path_factory.mktemp("store")), {}


@pytest.fixture
def make(finding: Finding, measured: tuple[Store, dict[str, xarray.Dataset]]) -> Any:
    """A record of the made-up finding, some datasets changed before it is assembled."""
    store, read = measured

    def record(change: Change | None = None, seeds: int = 3, spec: str | None = None, **changed: Any) -> Record:
        asked = fake.finding(**changed)
        planned = plan(asked, spec, seeds)
        tasks = {name: task for name, task in planned.tasks().items() if task.diverged_at is None}
        runs = execute(asked, tasks, store, "cpu", lambda stage, share: None)
        read.update({run.address: run.dataset() for run in runs.values() if run.address not in read})
        datasets = {
            name: changed_dataset(read[run.address], (change or {}).get(name, {})) for name, run in runs.items()
        }
        return assemble(planned, runs, datasets, {"device": "cpu"}, "2026-01-01", 1.5)

    return record


def changed_dataset(data: xarray.Dataset, change: Mapping[str, Any]) -> xarray.Dataset:
    data = data.drop_vars([name for name, value in change.items() if value is None])
    return data.assign({name: (data[name].dims, value) for name, value in change.items() if value is not None})


def sequences(*means: float) -> np.ndarray:
    """Values of the 16 sequences with this mean, nearly all alike."""
    return np.resize([means[0] - 0.01, means[0] + 0.01], 16)


def level(record: Record, factor: str, value: str) -> Level:
    followup = next(f for f in record.followups if f.factor == factor)
    return next(one for one in followup.levels if one.value == value)


def test_the_whole_record(make: Any) -> None:
    record: Record = make()
    assert (record.verdict, record.decided_by) == ("reproduced", "all 3 central sub-claims are reproduced")
    assert [c.verdict for c in record.headline.claims] == ["reproduced"] * 4
    assert [(c.name, c.verdict, c.as_expected, c.run) for c in record.controls] == [
        ("untrained", "not reproduced", True, "control/untrained"),
        ("weak", "not reproduced", True, "control/weak"),
    ]
    assert all("behaviour" in control.why for control in record.controls)
    assert [(f.factor, f.verdict) for f in record.followups] == [("steps", "reproduced"), ("width", "reproduced")]
    assert [(one.value, one.verdict) for one in record.followups[0].levels] == [
        ("1", "not reproduced"),
        ("10", "reproduced"),
    ]
    assert record.followups[0].diff == {"1": ("10", "1")}
    assert {r.run for r in record.runs} == set(plan(fake.FINDING, None, 3).tasks()) - {"headline"}
    assert record.failures == []
    assert record.headline.heads == {"strong": ["0.0"]}
    assert next(r for r in record.runs if r.run == "control/untrained").model == "zoo:strong (untrained)"
    assert record.card_sha256 == fake.FINDING.card.sha256
    assert (record.created, record.seconds, record.seeds) == ("2026-01-01", 1.5, 3)


def test_a_record_survives_json(make: Any) -> None:
    record: Record = make()
    assert Record.model_validate_json(record.model_dump_json(indent=1)) == record


def test_sequences_are_the_units_of_one_network(make: Any) -> None:
    values = np.linspace(0.4, 0.9, 16)
    record: Record = make({"headline": {"effect": values, "effect_matched": values[::-1] / 2}})
    claim = record.headline.claims[1]
    d = values - values[::-1] / 2
    assert claim.difference is not None
    assert (claim.difference.n, claim.difference.unit) == (16, "sequences")
    assert claim.difference.value == pytest.approx(d.mean())
    low, high = stats.t.interval(0.95, 15, d.mean(), stats.sem(d))
    assert (claim.difference.low, claim.difference.high) == pytest.approx((low, high))


def test_networks_are_the_units_of_a_level(make: Any) -> None:
    """Each network counts once, however many sequences it saw: recomputed from the three networks' own means."""
    means, matched = [0.8, 1.0, 1.5], [0.1, 0.3, 0.2]
    change = {
        f"followup/wide{end}": {"effect": sequences(m), "effect_matched": sequences(c)}
        for end, m, c in zip(("", "-s1", "-s2"), means, matched)
    }
    record: Record = make(change)
    found = level(record, "width", "8")
    assert found.estimates["effect"].value == pytest.approx(np.mean(means))
    low, high = stats.t.interval(0.95, 2, np.mean(means), stats.sem(means))
    assert (found.estimates["effect"].low, found.estimates["effect"].high) == pytest.approx((low, high))
    assert (found.estimates["effect"].n, found.estimates["effect"].unit) == (3, "networks")
    assert found.per_seed["effect"] == pytest.approx(means)
    assert (found.seeds, found.runs) == ([0, 1, 2], ["followup/wide", "followup/wide-s1", "followup/wide-s2"])
    assert found.verdict == "reproduced"


def test_networks_that_differ_leave_a_level_open_although_each_is_sure(make: Any) -> None:
    """Were sequences the units, 48 of them would be past the control; over three networks the interval spans it."""
    change = {
        f"followup/wide{end}": {"effect": sequences(m), "effect_matched": sequences(0.2)}
        for end, m in zip(("", "-s1", "-s2"), [0.3, 0.5, 3.0])
    }
    record: Record = make(change)
    found = level(record, "width", "8")
    assert found.seed_verdicts == ["reproduced"] * 3
    assert found.verdict == "inconclusive"
    assert next(f for f in record.followups if f.factor == "width").verdict == "inconclusive"


@pytest.mark.parametrize(
    "ratios, verdict", [([0.8, 0.7, 0.75], "reproduced"), ([0.45, 0.6, 0.55], "partially reproduced")]
)
def test_ratios_are_taken_in_each_network(make: Any, ratios: Sequence[float], verdict: str) -> None:
    sizes = [1.0, 100.0, 10.0]  # a ratio of sums over networks would be the second network's
    change = {
        f"followup/wide{end}": {"kept": sequences(1) * r * s, "whole": sequences(1) * s}
        for end, r, s in zip(("", "-s1", "-s2"), ratios, sizes)
    }
    found = level(make(change), "width", "8")
    assert found.estimates["share"].value == pytest.approx(np.mean(ratios))
    assert found.verdict == verdict


def test_one_network_without_a_control_does_not_spare_the_others_theirs(make: Any) -> None:
    """Two networks have no effect beyond their control; a third has no control and would pass against zero."""
    effect = {"effect": sequences(0.2), "effect_matched": sequences(0.2)}
    change = {
        "followup/wide": effect,
        "followup/wide-s1": effect,
        "followup/wide-s2": {**effect, "effect_matched": None},
    }
    found = level(make(change), "width", "8")
    assert found.verdict in ("inconclusive", "not reproduced")


@pytest.mark.parametrize(
    "broken, verdict", [({"effect": None}, "inconclusive"), ({"effect": np.full(16, np.nan)}, "inconclusive")]
)
@pytest.mark.parametrize("many", [1, 2, 3])
def test_networks_without_a_value_are_not_left_out(make: Any, broken: Any, verdict: str, many: int) -> None:
    change = {f"followup/wide{end}": broken for end in ("", "-s1", "-s2")[:many]}
    record: Record = make(change)
    found = level(record, "width", "8")
    assert found.seed_verdicts == [verdict] * many + ["reproduced"] * (3 - many)
    assert found.verdict == (verdict if many == 3 else "inconclusive")
    assert found.per_seed["effect"][:many] == [None] * many
    # Nor do they make a level that should fail fail.
    weak = {f"followup/weak{end}": {**broken, "behaviour": sequences(1)} for end in ("", "-s1", "-s2")[:many]}
    strong_otherwise = {
        f"followup/weak{end}": {"behaviour": sequences(1), "effect": sequences(1), "kept": sequences(1)}
        for end in ("", "-s1", "-s2")[many:]
    }
    assert level(make({**weak, **strong_otherwise}), "steps", "1").verdict != "reproduced"


def test_one_seed_is_judged_by_its_sequences_and_says_so(make: Any) -> None:
    found = level(make(seeds=1), "width", "8")
    assert found.estimates["effect"].unit == "sequences"
    assert found.estimates["effect"].n == 16


def diverge(zoo: Path, name: str, strength: float, seed: int, **settings: Any) -> None:
    """Its training diverged: the folder has a card and no weights."""
    shutil.rmtree(zoo / name)
    training = {"seed": seed, "settings": {**fake.SETTINGS, **settings}, "diverged_at": 7}
    (fake.add(zoo, name, strength, training=training) / "weights.safetensors").unlink()


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_seeds_that_diverged_are_shown_and_cap_the_verdict(make: Any, zoo: Path, lost: int) -> None:
    for seed in range(lost):
        diverge(zoo, f"wide-s{seed}" if seed else "wide", 1.0, seed, width=8)
    record: Record = make()
    found = level(record, "width", "8")
    assert found.seed_verdicts == ["diverged at step 7"] * lost + ["reproduced"] * (3 - lost)
    assert (found.seeds, len(found.runs)) == ([0, 1, 2], 3)
    assert found.per_seed["effect"][:lost] == [None] * lost
    assert found.verdict == ("partially reproduced" if lost < 3 else "not attempted")
    width = next(f for f in record.followups if f.factor == "width")
    assert width.verdict == ("partially reproduced" if lost < 3 else "inconclusive")
    shown = [run for run in record.runs if run.diverged_at is not None]
    assert [run.run for run in shown] == found.runs[:lost]
    assert all(run.verdict == "not attempted" and run.claims == [] for run in shown)
    assert sum("diverged at step 7" in line for line in record.failures) >= lost
    assert record.verdict == "reproduced"  # the headline's own
    assert Record.model_validate_json(record.model_dump_json()) == record


def test_a_level_that_should_fail_is_not_confirmed_by_seeds_that_diverged(make: Any, zoo: Path) -> None:
    for seed in (1, 2):
        diverge(zoo, f"weak-s{seed}", 0.0, seed, steps=1)
    record: Record = make()
    assert level(record, "steps", "1").verdict == "not reproduced"
    assert next(f for f in record.followups if f.factor == "steps").verdict == "partially reproduced"


def test_a_control_that_passes_takes_the_verdict(make: Any) -> None:
    strong = {"behaviour": sequences(1), "effect": sequences(1), "kept": sequences(1)}
    record: Record = make({"control/weak": strong})
    weak = next(control for control in record.controls if control.name == "weak")
    assert (weak.verdict, weak.expected, weak.as_expected) == ("reproduced", "not reproduced", False)
    assert record.verdict == "inconclusive"
    assert "weak" in record.decided_by
    assert record.headline.verdict == "reproduced"
    assert "Control weak: reproduced, expected not reproduced." in record.failures


@pytest.mark.parametrize("broken", [{"behaviour": np.full(16, np.nan), "effect": sequences(1), "kept": sequences(1)}])
def test_a_control_that_could_not_be_measured_has_not_failed_as_it_should(make: Any, broken: Any) -> None:
    record: Record = make({"control/weak": broken})
    assert next(c for c in record.controls if c.name == "weak").verdict == "inconclusive"
    assert record.verdict == "inconclusive"


def test_a_control_that_diverged_has_not_failed_as_it_should(make: Any, zoo: Path) -> None:
    diverge(zoo, "weak", 0.0, 0, steps=1)
    record: Record = make()
    weak = next(c for c in record.controls if c.name == "weak")
    assert (weak.verdict, weak.as_expected) == ("not attempted", False)
    assert record.verdict == "inconclusive"


def test_an_expected_failure(make: Any) -> None:
    record: Record = make(spec="zoo:weak")
    assert (record.verdict, record.expected) == ("not reproduced", "not reproduced")
    assert [control.name for control in record.controls] == ["untrained"]


def test_what_is_chosen_on_discovery_data_never_decides(make: Any) -> None:
    """A claim on a discovery variable finds nothing: only sequences held out, or exact values, are judged."""
    on_discovery = fake.claim(id="cheat", quantity="discovery_effect", null=None)
    record: Record = make(card=fake.card(on_discovery), grid=None)
    assert record.verdict == "inconclusive"
    assert record.headline.claims[0].estimate.value is None
    assert "discovery_effect" not in record.headline.scalars


def test_the_grid_judges_the_claim_under_every_choice(make: Any) -> None:
    record: Record = make({"headline": {"effects": np.stack([sequences(0.6), sequences(0.1)])}})
    mild, harsh = record.grid
    assert (mild.choice, mild.primary, mild.verdict) == ({"method": "mild"}, True, "reproduced")
    assert (harsh.choice, harsh.primary, harsh.verdict) == ({"method": "harsh"}, False, "not reproduced")
    assert mild.estimate.value == pytest.approx(0.6)
    plain: Record = make()
    assert plain.grid[0].estimate == plain.headline.claims[1].estimate
    assert plain.grid[0].difference == plain.headline.claims[1].difference


def test_follow_ups_that_cannot_be_made_are_failures(make: Any, zoo: Path) -> None:
    for end in ("", "-s1", "-s2"):
        shutil.rmtree(zoo / f"wide{end}")
    record: Record = make()
    assert [f.factor for f in record.followups] == ["steps"]
    assert any(line.startswith("width = 8: the zoo has no network") for line in record.failures)


def test_a_seed_that_comes_out_otherwise_is_named(make: Any) -> None:
    nearly = {f"followup/wide{end}": {"effect": sequences(m)} for end, m in zip(("", "-s1", "-s2"), (1.0, 1.1, 0.0))}
    record: Record = make(nearly)
    assert any(line.startswith("width = 8:") and "seed 2 not reproduced" in line for line in record.failures)


@pytest.mark.parametrize(
    "expects, verdicts, expected",
    [
        (("not reproduced", "reproduced"), (0.0, 1.0), "reproduced"),
        (("reproduced", "reproduced"), (0.0, 1.0), "not reproduced"),
        (("not reproduced", "reproduced"), (1.0, 1.0), "not reproduced"),
        (("not reproduced", "reproduced"), (0.0, 0.0), "not reproduced"),
    ],
)
def test_a_follow_up_is_graded_by_what_the_claim_predicts(
    make: Any, expects: tuple[Any, Any], verdicts: tuple[float, float], expected: str
) -> None:
    factor = Factor("steps", "steps", "?", dict(zip((1, 10), expects)))
    change = {
        f"followup/{name}{end}": {"behaviour": sequences(m - 0.5), "effect": sequences(m), "kept": sequences(m)}
        for name, m in zip(("weak", "strong"), verdicts)
        for end in ("", "-s1", "-s2")
    }
    followup: FollowUp = make(change, factors=(factor,)).followups[0]
    assert followup.verdict == expected


def test_only_numbers_over_sequences_or_in_all_are_judged() -> None:
    data = xarray.Dataset(
        {
            "effect": ("sequence", np.array([3, 4, 5], np.uint8)),
            "effect_matched": ("sequence", np.array([1, 2, 4], np.uint8)),
            "flag": ("sequence", [True, False, True]),
            "name": ((), "text"),
            "per_head": (("head", "sequence"), np.ones((2, 3))),
        }
    )
    values = per_unit(data)
    assert set(values) == {"effect", "effect_matched"}
    assert (values["effect_matched"] - values["effect"]).tolist() == [-2, -2, -1]


def test_a_card_s_claims_are_judged_in_its_order(make: Any) -> None:
    claims: tuple[SubClaim, ...] = fake.CLAIMS[::-1]
    record: Record = make(card=fake.card(*claims))
    assert [c.id for c in record.headline.claims] == [c.id for c in claims]
