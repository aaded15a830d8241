"""`reproduce`: what it hands to the pipeline, and what it prints of the outcome."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Cli
from tests.report import example

from headwork.findings.registry import finding
from headwork.report import pipeline
from headwork.studies.plan import plan
from headwork.studies.record import Record
from headwork.studies.summary import summary

Asked = dict[str, Any]


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch, empty_folder: Path) -> Callable[..., Asked]:
    """Put an outcome in the pipeline's place; what it is asked for appears in the returned mapping."""

    def answer(record: Record, from_store: bool = False) -> Asked:
        asked: Asked = {}

        def reproduce(finding: str, model: str | None, seeds: int, out: Path, device: str, progress: Any) -> Any:
            asked.update(finding=finding, model=model, seeds=seeds, out=out, device=device)
            progress("measure", 0.5)
            progress("report", 1.0)
            return pipeline.Outcome(record, empty_folder / out, from_store, 47.25)

        monkeypatch.setattr(pipeline, "reproduce", reproduce)
        return asked

    return answer


def test_options_reach_the_pipeline(cli: Cli, answered: Callable[..., Asked]) -> None:
    asked = answered(example.record())
    assert cli("reproduce", "induction-heads").code == 0
    defaults = {"finding": "induction-heads", "model": None, "seeds": 5, "device": "cpu"}
    assert asked == {**defaults, "out": Path("headwork-out/induction-heads")}
    given = ("--model", "zoo:attn-only-1l", "--seeds", 2, "--out", "there", "--device", "cuda")
    assert cli("reproduce", "induction-heads", *given).code == 0
    assert asked == {
        "finding": "induction-heads", "model": "zoo:attn-only-1l", "seeds": 2, "out": Path("there"), "device": "cuda",
    }  # fmt: skip


def test_the_outcome_is_told_in_words_and_tables(cli: Cli, answered: Callable[..., Asked], empty_folder: Path) -> None:
    record = example.record()
    answered(record)
    result = cli("reproduce", "induction-heads")
    said = " ".join(result.out.split())
    decisive = next(claim for claim in record.headline.claims if claim.id == record.decided_by)
    assert f"on zoo:attn-only-2l: reproduced. Decided by: {decisive.statement}" in said
    assert all(f"{'● ' if claim.central else ''}{claim.statement}" in said for claim in record.headline.claims)
    assert "3.22 [3.14, 3.30] nats" in said.replace("\u00a0", " ")
    assert said.count("✓ as expected") == len(record.controls)
    assert "not reproduced 5 of 5 agree" in said
    assert str(empty_folder / "headwork-out" / "induction-heads" / "report.pdf") in result.out
    assert "Next: headwork reproduce induction-heads --model" in said
    assert result.err.splitlines() == [" 50%  measure", "100%  report"]


def test_an_expected_failure_is_shown_as_expected(cli: Cli, answered: Callable[..., Asked]) -> None:
    answered(example.record(verdict="not reproduced", expected="not reproduced", model="zoo:attn-only-1l"))
    result = cli("reproduce", "induction-heads", "--model", "zoo:attn-only-1l")
    assert result.code == 0
    assert "✗" in result.out
    assert "not reproduced, as expected." in result.out
    assert "Next: headwork reproduce induction-heads --model zoo:attn-only-2l" in result.out


def test_a_control_that_does_not_fail_is_no_expected_one(cli: Cli, answered: Callable[..., Asked]) -> None:
    control = example.controls()[0].model_copy(update={"verdict": "reproduced", "as_expected": False})
    answered(example.record(controls=[control]))
    said = cli("reproduce", "induction-heads").out
    assert "✗ expected: not reproduced" in said
    assert "✓ as expected" not in said


def test_json_is_one_object_and_nothing_else(cli: Cli, answered: Callable[..., Asked], empty_folder: Path) -> None:
    record = example.record()
    answered(record)
    result = cli("reproduce", "induction-heads", "--json")
    assert result.json == summary(record, empty_folder / "headwork-out" / "induction-heads", 47.25)
    assert not result.err


def test_an_answer_from_the_store_says_so(cli: Cli, answered: Callable[..., Asked]) -> None:
    answered(example.record(), from_store=True)
    assert "from the store" in cli("reproduce", "induction-heads").out


def test_a_control_can_be_asked_for_with_the_default_seeds_though_the_zoo_has_one_of_it() -> None:
    known = finding("induction-heads")
    for spec in known.controls.values():
        planned = plan(known, spec, 5)
        assert planned.expected == "not reproduced"
        assert all(len(level.tasks) == 5 for followup in planned.followups for level in followup.levels)


@pytest.mark.parametrize("command", [("reproduce", "induction-heads", "--seeds", "1"), ("train", "attn-only-1l")])
def test_stopping_with_the_keyboard_leaves_one_line_and_nothing_half_written(
    empty_folder: Path, command: tuple[str, ...]
) -> None:
    # A runner in the background may have been started with SIGINT ignored, which children inherit.
    as_found = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen([sys.executable, "-m", "headwork", *command], stderr=-1, stdout=-1, text=True)
    finally:
        signal.signal(signal.SIGINT, as_found)
    assert process.stderr is not None
    assert process.stderr.readline().partition("%")[0].strip() in ("0", "1")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert not out
    said = "Stopped. Nothing is half-written; the same command goes on from what is finished."
    assert [line for line in err.splitlines() if "%" not in line] == [said]
    assert not [path for path in empty_folder.rglob("*") if path.is_file()]
