"""The page of the benchmark says what the stored results say, and no more."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict
from typing import Any

import pytest
from benchmarks.__main__ import PAGE, RESULTS
from benchmarks.report import cells, page
from benchmarks.rows import ROWS
from benchmarks.setting import FULL


def side(seconds: float, peak: float = 2e9, **notes: Any) -> dict[str, Any]:
    return {"seconds": [seconds, seconds, 3 * seconds], "before": 1e9, "peak": peak, "notes": notes}


def versioned(found: dict[str, Any]) -> dict[str, Any]:
    return found | {"versions": {"torch": "2", "transformer-lens": "4"}}


def row(differences: dict[str, Any] | None = None, needed: float | None = None, **sides: Any) -> dict[str, Any]:
    return {"load": 0.1, "needed": needed, "sides": sides, "differences": differences or {}, "took": 1.0}


@pytest.fixture
def results() -> dict[str, Any]:
    medians = {"bare": 0.2, "cached": 0.21, "all": 0.3}
    return {
        "date": "2001-02-03",
        "quick": False,
        "minutes": 7.5,
        "setting": asdict(FULL),
        "machine": {
            "processor": "P",
            "cores": 2,
            "threads": 2,
            "memory_gb": 8.0,
            "system": "S",
            "python": "3",
            "torch": "2",
            "device": "cpu",
        },
        "rates": {
            "before": {"float32": 1e11, "bfloat16": 4e11, "load": 0.1},
            "after": {"float32": 2e11, "bfloat16": 4e11, "load": 1.9},
        },
        "rows": {
            "heads": row(
                {"tl4": {"largest": 2e-7, "scale": 0.5}, "tl3": {"largest": 3e-7, "scale": 0.5}},
                1e12,
                headwork=side(10),
                tl4=versioned(side(40)),
                tl3=side(60),
            ),
            "heads-late": row(headwork=side(4), tl4=side(40), tl3={"left_out": "slower"}),
            "screened": row(
                {"headwork": {"largest": 0.01, "scale": 0.5, "top": [19, 20]}},
                headwork=side(1, confirmed=20, certain_top=3, screening_error=0.0123),
            ),
            "eap": row(
                {"tl3": {"shapes": [[2], [3]]}}, headwork=side(2, 1e9), tl3=side(60, 4e9), tl4={"failed": "why"}
            ),
            "eap-frozen": row(tl3=side(30, 3e9)),
            "acdc": row(
                {"plain": {"differing": 0, "tried": 9}},
                headwork=side(3, kept=1, edges=9, evaluations=7, confirmed=0, margin=1e-4),
                plain=side(45, tried=9, bare=20.0),
            ),
            "cache": row(
                headwork=side(1, medians=medians, sites={"cached": 38, "all": 41}),
                tl4=side(1, medians={"bare": 0.2, "cached": 0.3}, sites={"cached": 93}),
            ),
        },
        "growth": [
            {"work": "eap", "layers": 2, "pairs": 3, "memory": 5e8, "seconds": 1.5, "before": 1e9, "peak": 1.4e9},
            {"work": "eap", "layers": 2, "pairs": 9, "memory": 5e8, "seconds": 1.5, "before": 1e9, "peak": 1.6e9},
            {"work": "heads", "layers": 2, "pairs": 9, "memory": 5e8, "failed": "no room"},
        ],
    }


def line(text: str, title: str) -> list[str]:
    """The cells of the first line that starts so."""
    found = next(each for each in text.splitlines() if each.startswith(f"| {title}"))
    return [cell.strip() for cell in found.strip("|").split("|")]


def titled(name: str) -> str:
    return next(r.title for r in ROWS if r.name == name)


def test_ratio_is_the_faster_peers_median_over_ours_and_the_rate_is_the_fastest_measured(
    results: dict[str, Any],
) -> None:
    found = line(cells(results), titled("heads"))
    assert found[1:4] == ["10.00 s, 2.00 GB", "40.00 s, 2.00 GB", "60.00 s, 2.00 GB"]
    assert found[4] == "4.0 (6.0)"
    assert found[6] == "50%"  # 1e12 operations in 10 s at 2e11 a second
    assert found[7] == "2e-07 of 0.5, 3e-07 of 0.5"
    assert found[8] == "5 ×: not reached; 80% of the rate: not reached"


def test_an_aim_that_the_rate_does_not_allow_says_what_it_does(results: dict[str, Any]) -> None:
    """4 times at half the rate is 8 times at most."""
    results["rows"]["heads"]["needed"] *= 1.7
    assert line(cells(results), titled("heads"))[8].startswith("5 ×: not reached (5 × is all that the rate allows)")


def test_aims_that_are_reached_say_so(results: dict[str, Any]) -> None:
    assert line(cells(results), titled("heads-late"))[8] == "7 ×: reached"
    assert line(cells(results), titled("eap"))[8] == "28 ×: reached; memory ≤ 0.40: reached"
    results["rows"]["eap"]["sides"]["tl3"]["peak"] = 2e9
    assert line(cells(results), titled("eap"))[8] == "28 ×: reached; memory ≤ 0.40: not reached"


def test_what_was_not_measured_is_said_and_has_no_ratio(results: dict[str, Any]) -> None:
    text = page(results)
    assert line(text, titled("eap"))[2] == "not measured"
    assert "TransformerLens 4.3.0: why." in text
    assert line(text, titled("eap"))[7] == "shapes differ"
    assert line(text, titled("heads-late"))[3] == "slower, left out"


def test_screening_says_what_was_confirmed_and_how_rough_the_rest_is(results: dict[str, Any]) -> None:
    text = page(results)
    assert line(text, titled("screened"))[8] == "12 ×: reached"
    assert "19 of the 20 heads with the largest mean effects" in text
    assert "20 are confirmed in float32, where the rough mean was off by at most 0.012: the largest 3 are" in text


def test_rows_without_our_side_borrow_it(results: dict[str, Any]) -> None:
    assert line(cells(results), titled("eap-frozen"))[1:5] == ["2.00 s, 1.00 GB", "–", "30.00 s, 3.00 GB", "15.0"]


def test_acdc_and_the_cache_are_compared_with_themselves(results: dict[str, Any]) -> None:
    found = line(cells(results), titled("acdc"))
    assert (found[4], found[7], found[8]) == ("15.0", "same edges", "10 ×: reached")
    found = line(cells(results), titled("cache"))
    assert found[1:3] == ["1.05 × 200 ms (38 sites)", "1.50 × 200 ms (93 sites)"]
    assert found[8] == "≤ 1.1 × the bare pass: reached"
    results["rows"]["acdc"]["differences"]["plain"]["differing"] = 2
    assert line(cells(results), titled("acdc"))[7] == "2 edges"


def test_growth_says_whether_the_limit_held(results: dict[str, Any]) -> None:
    lines = [
        [c.strip() for c in each.strip("|").split("|")] for each in page(results).splitlines() if "| 500 |" in each
    ]
    assert [each[-1] for each in lines] == ["yes", "**no**", "not measured: no room"]
    assert lines[0][4:6] == ["1.50", "400"]


def test_a_trial_run_says_that_it_is_one(results: dict[str, Any]) -> None:
    assert "trial run" not in page(results)
    assert "trial run" in page({**results, "quick": True})


def test_the_page_in_the_repository_is_what_the_stored_results_give() -> None:
    assert RESULTS.exists() == PAGE.exists()
    if RESULTS.exists():
        stored = json.loads(RESULTS.read_text())
        assert not stored["quick"]
        assert PAGE.read_text() == page(stored).rstrip("\n") + "\n"


def test_the_page_names_the_machine_and_the_versions(results: dict[str, Any]) -> None:
    text = page(results)
    assert "200 GFLOP/s in float32, 400 GFLOP/s in bfloat16" in text
    assert "the float32 rate differed by 50%" in text
    assert "Versions: torch 2, transformer-lens 4." in text


def test_making_the_page_changes_nothing(results: dict[str, Any]) -> None:
    before = copy.deepcopy(results)
    page(results)
    assert results == before
