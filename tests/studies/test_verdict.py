"""Every verdict from the numbers that decide it, and what no numbers may do."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.studies.fake import card, claim

from headwork.findings.claim import SubClaim
from headwork.studies.record import ClaimResult, Verdict
from headwork.studies.verdict import ORDER, capped, judge, overall

NOT, UNSURE, PARTLY, YES = ORDER
T1 = 12.706204736432095  # t of 97.5 % with one degree of freedom


def spanning(low: float, high: float) -> np.ndarray:
    """Two units whose mean has exactly this interval, but for rounding."""
    centre, half = (low + high) / 2, (high - low) / 2
    return np.array([centre - half / T1, centre + half / T1])


def verdict(of: SubClaim, **values: Any) -> str:
    return judge(of, {name: np.asarray(value, float) for name, value in values.items()}).verdict


TABLE = [
    # (low, high) of the difference from the control, threshold on it → verdict
    ((0.1, 0.3), 0.0, YES),
    ((-0.1, 0.3), 0.0, UNSURE),
    ((-0.3, -0.1), 0.0, NOT),
    ((0.6, 0.9), 0.5, YES),
    ((0.4, 0.9), 0.5, PARTLY),
    ((0.1, 0.4), 0.5, PARTLY),
    ((-0.1, 0.9), 0.5, UNSURE),
    ((-0.1, 0.4), 0.5, NOT),
    ((-0.9, -0.1), 0.5, NOT),
    ((-0.9, -0.1), -1.0, NOT),
    ((0.1, 0.3), -1.0, YES),
]


@pytest.mark.parametrize("interval, threshold, expected", TABLE)
@pytest.mark.parametrize("null", [None, 0.0, 7.5])
def test_a_threshold_on_the_difference(
    interval: tuple[float, float], threshold: float, expected: str, null: float | None
) -> None:
    """The same by definition of the control, and with a measured one, wherever that lies; mirrored for “below”."""
    difference = spanning(*interval)
    for sign, direction in ((1, "above"), (-1, "below")):
        of = claim(threshold=sign * threshold, direction=direction, null=None if null is None else "effect_matched")
        if null is None:
            assert verdict(of, effect=sign * difference) == expected
        else:
            noise = np.array([3.0, -2.0])  # pairing by unit removes it
            matched = sign * (null + noise)
            assert verdict(of, effect=sign * difference + matched, effect_matched=matched) == expected


@pytest.mark.parametrize(
    "value, control, expected",
    [
        # (low, high) of the value whose threshold is 0.5, the control (exact) → verdict
        ((0.6, 0.8), 0.1, YES),
        ((0.4, 0.8), 0.1, PARTLY),
        ((0.2, 0.4), 0.1, PARTLY),
        ((0.6, 0.8), 0.7, UNSURE),
        ((0.6, 0.8), 0.9, NOT),
        ((0.2, 0.4), 0.3, NOT),  # not told from its control, and short of the threshold
        ((0.2, 0.6), 0.3, UNSURE),
        ((0.2, 0.4), 0.5, NOT),
    ],
)
def test_a_threshold_on_the_value(value: tuple[float, float], control: float, expected: str) -> None:
    for sign, direction in ((1, "above"), (-1, "below")):
        of = claim(threshold=sign * 0.5, threshold_on="value", direction=direction)
        assert verdict(of, effect=sign * spanning(*value), effect_matched=sign * control) == expected


@pytest.mark.parametrize(
    "value, control, expected",
    [(0.6, 0.1, YES), (0.5, 0.1, YES), (0.4, 0.1, PARTLY), (0.4, 0.4, NOT), (0.6, 0.6, NOT), (0.6, 0.7, NOT)],
)
def test_exact_values_have_no_interval_to_span(value: float, control: float, expected: str) -> None:
    of = claim(replicate=None, threshold=0.5, threshold_on="value")
    result = judge(of, {"effect": np.asarray(value), "effect_matched": np.asarray(control)})
    assert result.verdict == expected
    assert result.estimate.low is None
    assert result.difference is not None
    assert result.difference.value == pytest.approx(value - control)


@pytest.mark.parametrize(
    "own, control, plain, signed",
    [
        # (low, high) of the effect, its control (exact) → verdict unless its own sign counts, and if it does
        ((0.4, 0.6), 0.1, YES, YES),
        ((-0.6, -0.4), -2.0, YES, NOT),
        ((-0.1, 0.3), -2.0, YES, UNSURE),
        ((-0.1, 0.3), 0.1, UNSURE, UNSURE),
        ((-0.1, 0.3), 2.0, NOT, NOT),
        ((-0.6, -0.4), -0.5, UNSURE, NOT),
        ((0.4, 0.6), 2.0, NOT, NOT),
    ],
)
def test_an_effect_of_the_wrong_sign_is_none(own: tuple[float, float], control: float, plain: str, signed: str) -> None:
    for sign, direction in ((1, "above"), (-1, "below")):
        values = {"effect": sign * spanning(*own), "effect_matched": sign * control}
        assert verdict(claim(direction=direction), **values) == plain
        assert verdict(claim(direction=direction, signed=True), **values) == signed


def test_a_tie_with_the_control_is_not_beyond_it() -> None:
    assert verdict(claim(), effect=[1, 2], effect_matched=[1, 2]) == NOT
    assert verdict(claim(null=None), effect=[0, 0]) == NOT


def test_a_threshold_that_the_whole_interval_just_reaches_is_passed() -> None:
    assert verdict(claim(null=None, threshold=1.0), effect=[1, 1]) == YES


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("changed", [{}, {"null": None}, {"null": None, "ratio_of": "whole"}])
def test_what_is_not_finite_is_never_more_than_inconclusive(bad: float, changed: dict[str, Any]) -> None:
    values = {"effect": np.full(4, 5.0), "effect_matched": np.zeros(4), "whole": np.ones(4)}
    for name in values:
        if name in (changed.get("null", "effect_matched"), changed.get("ratio_of"), "effect"):
            broken = {**values, name: np.full(4, bad)}
            assert judge(claim(**changed), broken).verdict == UNSURE
    exact = claim(replicate=None, null=None)
    assert judge(exact, {"effect": np.asarray(bad)}).verdict == UNSURE


def test_a_network_without_the_quantity_decides_nothing() -> None:
    result = judge(claim(), {"effect_matched": np.ones(3)})
    assert (result.verdict, result.estimate.value, result.difference) == (UNSURE, None, None)


def test_a_ratio_without_its_denominators_is_not_taken_for_one() -> None:
    of = claim(null=None, ratio_of="whole", threshold=0.5)
    assert verdict(of, effect=[5, 5.1, 5.2]) == UNSURE
    assert verdict(of, effect=[5, 5.1, 5.2], whole=[50, 50, 50]) == PARTLY


def test_a_missing_control_is_said() -> None:
    result = judge(claim(), {"effect": np.array([1.0, 1.1])})
    assert not result.control_available
    assert result.null is None
    assert result.difference is None
    assert result.why.startswith("No matched control exists here; compared with 0.")
    assert judge(claim(null=None), {"effect": np.array([1.0, 1.1])}).control_available


def test_a_mean_without_its_units_is_no_exact_number() -> None:
    with pytest.raises(ValueError, match="unit of replication is sequence"):
        judge(claim(null=None), {"effect": np.asarray(9.0)})
    with pytest.raises(ValueError, match="unit of replication is None"):
        judge(claim(null=None, replicate=None), {"effect": np.ones(3)})


def test_a_ratio_has_no_measured_control() -> None:
    with pytest.raises(ValueError, match="ratio"):
        claim(ratio_of="whole")
    with pytest.raises(ValueError, match="ratio"):
        claim(ratio_of="whole", null=None, replicate=None)


# Properties. Numbers are sixty-fourths, so that shifting them is exact but for the last bits of the mean.
SIXTY_FOURTHS = st.integers(-128, 128).map(lambda whole: whole / 64)
UNITS = st.integers(1, 6)


@st.composite
def cases(draw: st.DrawFn) -> tuple[SubClaim, dict[str, np.ndarray]]:
    n = draw(UNITS)
    of = claim(
        threshold=draw(SIXTY_FOURTHS),
        threshold_on=draw(st.sampled_from(["value", "difference"])),
        null=draw(st.sampled_from([None, "effect_matched"])),
        signed=draw(st.booleans()),
    )
    values = {name: np.array(draw(st.lists(SIXTY_FOURTHS, min_size=n, max_size=n))) for name in ("effect", "noise")}
    values["effect_matched"] = values["effect"] - values.pop("noise") * draw(st.sampled_from([0, 1]))
    return of, values


@given(cases(), st.integers(1, 256).map(lambda whole: whole / 64))
def test_more_of_it_is_never_a_worse_verdict(case: tuple[SubClaim, dict[str, np.ndarray]], more: float) -> None:
    of, values = case
    before = judge(of, values)
    after = judge(of, {**values, "effect": values["effect"] + more})
    assert ORDER.index(after.verdict) >= ORDER.index(before.verdict)


@given(cases())
def test_below_is_above_in_the_mirror(case: tuple[SubClaim, dict[str, np.ndarray]]) -> None:
    of, values = case
    mirrored = dataclasses.replace(of, direction="below", threshold=-of.threshold)
    there = judge(mirrored, {name: -value for name, value in values.items()})
    assert there.verdict == judge(of, values).verdict


@given(cases())
def test_reproduced_means_past_both_with_the_whole_interval(case: tuple[SubClaim, dict[str, np.ndarray]]) -> None:
    of, values = case
    result = judge(of, values)
    difference = result.difference or result.estimate
    if of.signed and result.verdict in (YES, PARTLY):
        assert result.estimate.low is not None
        assert result.estimate.low > 0
    if result.verdict == YES:
        on = difference if of.threshold_on == "difference" else result.estimate
        assert difference.low is not None
        assert difference.low > 0
        assert on.low is not None
        assert on.low >= of.threshold
    if result.verdict == PARTLY:
        assert difference.low is not None
        assert difference.low > 0
    if result.verdict == NOT and difference.value is not None and not of.signed:
        assert difference.low is not None
        assert difference.low <= 0


@given(cases(), st.floats(-1e300, 1e300))
def test_one_unit_decides_nothing(case: tuple[SubClaim, dict[str, np.ndarray]], value: float) -> None:
    of, values = case
    assert judge(of, {"effect": np.array([value]), "effect_matched": values["effect_matched"][:1]}).verdict == UNSURE


@given(cases(), st.sampled_from([np.nan, np.inf, -np.inf]), st.data())
def test_a_unit_that_is_not_finite_never_helps(
    case: tuple[SubClaim, dict[str, np.ndarray]], bad: float, data: st.DataObject
) -> None:
    of, values = case
    assume(len(values["effect"]) > 1)
    at = data.draw(st.integers(0, len(values["effect"]) - 1))
    name = str(data.draw(st.sampled_from(["effect", *([of.null] if of.null else [])])))
    broken = {**values, name: values[name].copy()}
    broken[name][at] = bad
    result = judge(of, broken)
    if np.isinf(bad):
        assert result.verdict == UNSURE
    else:  # left out, and not counted
        n = (result.difference or result.estimate).n
        assert n == len(values["effect"]) - 1


def result(verdict: str, central: bool = True, id: str = "effect") -> ClaimResult:
    values = {"effect": np.array([1.0, 1.0])}
    return judge(claim(id=id, central=central, null=None), values).model_copy(update={"verdict": verdict})


@given(st.lists(st.tuples(st.sampled_from(ORDER), st.booleans()), min_size=1, max_size=6))
def test_the_worst_central_sub_claim_decides(found: Sequence[tuple[Verdict, bool]]) -> None:
    central = [verdict for verdict, counts in found if counts]
    assume(central)
    results = [result(verdict, counts, str(i)) for i, (verdict, counts) in enumerate(found)]
    decided, by = overall(results)
    assert decided == min(central, key=ORDER.index)
    if decided != YES:
        named = by.split(":")[0].split(" ", 2)[-1].split(", ")
        assert named == [r.id for r in results if r.central and r.verdict == decided]


def test_a_sub_claim_that_is_not_central_never_matters() -> None:
    for good, bad in itertools.product(ORDER, ORDER):
        assert overall([result(good), result(bad, central=False)])[0] == good


@pytest.mark.parametrize(
    "verdict, failed, expected",
    [
        (YES, [], YES),
        (PARTLY, [], PARTLY),
        (UNSURE, [], UNSURE),
        (NOT, [], NOT),
        (YES, ["weak"], UNSURE),
        (PARTLY, ["weak", "untrained"], UNSURE),
        (UNSURE, ["weak"], UNSURE),
        (NOT, ["weak"], NOT),
    ],
)
def test_a_failing_control_leaves_at_most_inconclusive(verdict: Verdict, failed: list[str], expected: str) -> None:
    decided, by = capped(verdict, "why", card(), "zoo:strong", failed)
    assert decided == expected
    assert (by == "why") == (decided == verdict)
    assert decided == verdict or all(name in by for name in failed)


@pytest.mark.parametrize(
    "verdict, expected", [(YES, "analogue only"), (PARTLY, "analogue only"), (UNSURE, UNSURE), (NOT, NOT)]
)
def test_a_claim_about_one_network_is_at_most_an_analogue_elsewhere(verdict: Verdict, expected: str) -> None:
    about_one = card(scope="network", network_spec="hf:gpt2")
    assert capped(verdict, "why", about_one, "zoo:strong", [])[0] == expected
    assert capped(verdict, "why", about_one, "hf:gpt2", [])[0] == verdict
    assert capped(verdict, "why", about_one, "zoo:strong", ["weak"])[0] in (UNSURE, NOT)
    assert capped(verdict, "why", card(), "zoo:strong", [])[0] == verdict


@pytest.mark.parametrize("direction, sign", [("above", 1), ("below", -1)])
def test_an_effect_of_the_wrong_sign_is_none_however_much_worse_its_control_is(direction: str, sign: int) -> None:
    signed = claim(null="effect_matched", direction=direction, signed=True)
    worse = spanning(-9.1, -8.9) * sign
    assert verdict(signed, effect=sign * spanning(-0.3, -0.1), effect_matched=worse) == NOT
    assert verdict(signed, effect=sign * spanning(-0.1, 0.3), effect_matched=worse) == UNSURE
    assert verdict(signed, effect=sign * spanning(0.1, 0.3), effect_matched=worse) == YES
    unsigned = dataclasses.replace(signed, signed=False)
    assert verdict(unsigned, effect=sign * spanning(-0.3, -0.1), effect_matched=worse) == YES
