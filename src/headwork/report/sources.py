"""Where the numbers of a report come from: every run, level, card and record that one can be traced to, with a key."""

from __future__ import annotations

import string
from collections.abc import Iterator

from headwork.report.document import Source
from headwork.report.numbers import moment
from headwork.studies.record import FollowUp, Level, Record, RunResult

CARD, RECORD, HEADLINE = "card", "record", "headline"


def control_id(name: str) -> str:
    return f"control.{name}"


def level_id(followup: FollowUp, level: Level) -> str:
    return f"followup.{followup.factor}.{level.value}"


def run_id(run: str) -> str:
    return f"run.{run}"


def sources(record: Record) -> dict[str, Source]:
    """All sources by id. The same key means the same source on every page, and in the PDF as in the HTML."""
    parts = list(_parts(record))
    return {
        name: Source(_key(i), label, settings, addresses, kind)  # pyright: ignore[reportArgumentType]
        for i, (name, label, settings, addresses, kind) in enumerate(parts)
    }


def runs_by_name(record: Record) -> dict[str, RunResult]:
    """Every run of the record, the headline's among them."""
    return {run.run: run for run in [*record.runs, record.headline]}


def _parts(record: Record) -> Iterator[tuple[str, str, str, tuple[str, ...], str]]:
    runs = runs_by_name(record)
    yield HEADLINE, record.headline.run, _settings(record.headline), (record.headline.address,), "run"
    yield CARD, "claim card", "fixed before the run, sha256", (record.card_sha256,), "card"
    yield RECORD, "record", moment(record.created), (record.headline.address,), "record"
    for control in record.controls:
        run = runs.get(control.run)
        address = (run.address,) if run else ()
        yield control_id(control.name), f"control {control.name}", control.model, address, "run"
    for followup in record.followups:
        for level in followup.levels:
            addresses = tuple(runs[name].address for name in level.runs if name in runs)
            settings = f"{followup.key} = {level.value}" + (", as the headline" if level.baseline else "")
            yield level_id(followup, level), f"{followup.factor} {level.value}", settings, addresses, "run"
    for name, run in runs.items():
        yield run_id(name), name, _settings(run), (run.address,), "run"


def _settings(run: RunResult) -> str:
    return run.model if run.seed is None else f"{run.model}, seed {run.seed}"


def _key(index: int) -> str:
    """a … z, aa, ab …"""
    letters = string.ascii_lowercase
    key = ""
    index += 1
    while index:
        index, letter = divmod(index - 1, 26)
        key = letters[letter] + key
    return key
