"""Run as a program: reproduces the made-up finding, killed at the first change of the disk, then at the second …

``python -m tests.studies.kill_points ZOO PLACE`` makes ``PLACE/0``, ``PLACE/1`` … and prints one JSON object for each:
where that run was killed (null for the last, which was not), what it left, and what the next call made of it. The
report is stood in for by two short files: typesetting changes nothing on the disk until it is done.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tests.studies import fake
from tests.studies.fake_finding import measure

from headwork.findings import registry
from headwork.findings.measurement import Measurement
from headwork.model import sources
from headwork.report import build, pipeline
from headwork.store import disk
from headwork.store.results import Store
from headwork.store.temporary import PREFIX
from headwork.studies import runs

OPERATIONS = ("create", "write", "fsync", "rename", "mkdir", "unlink", "rmdir")
KILLED = 137
CLAIM = fake.claim(null=None)


def small(real: Callable[..., Measurement]) -> Callable[..., Measurement]:
    """The procedure, with the one variable that is needed: HDF5 takes its time for each."""

    def measured(*arguments: Any) -> Measurement:
        whole = real(*arguments)
        return dataclasses.replace(whole, dataset=whole.dataset[["effect"]])

    return measured


def short_report(record: Any, figures: Any, notes: Any, folder: Path, rebuild_command: str) -> None:
    for name in ("report.pdf", "report.html"):
        (folder / name).write_text(f"{name}: {record.verdict}, {rebuild_command}, {len(figures)}, {notes}" * 9)


def work(place: Path) -> pipeline.Outcome:
    return pipeline.reproduce(fake.FINDING.id, None, 1, place / "out", store=Store(place / "store"))


def kill_at(nth: int, place: Path) -> None:
    """From now on, end this process at its ``nth`` change of the disk, a write half done."""
    count = 0

    def watch(owner: Any, operation: str, file: Callable[..., Path] | None = None) -> None:
        real = getattr(owner, operation)

        def run(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count <= nth:
                return real(*arguments, **named)
            if operation == "write":
                descriptor, data = arguments
                real(descriptor, data[: len(data) // 2])
            elif file is not None:
                real(*arguments, **named)
                os.truncate(file(*arguments), file(*arguments).stat().st_size // 2)
            with open(place / "killed", "w") as note:
                note.write(operation)
            os._exit(KILLED)

        setattr(owner, operation, run)

    for operation in OPERATIONS:
        watch(disk, operation)
    watch(Path, "write_text", lambda path, text, **_: path)
    watch(Path, "write_bytes", lambda path, data: path)


def published(place: Path) -> list[str]:
    out = place / "out"
    return sorted(
        p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file() and not p.name.startswith(PREFIX)
    )


def outcome(place: Path) -> dict[str, Any]:
    """The next call: what it had to measure, and what it made."""
    measure.measured.clear()
    done = work(place)
    return {
        "measured": list(measure.measured),
        "from_store": done.from_store,
        "record": json.loads(done.record.model_dump_json(exclude={"created", "seconds"})),
        "published": published(place),
        "unfinished": [str(path) for path in place.rglob(f"{PREFIX}*")],
    }


def once(real: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its answers kept: the code does not change between two kills."""
    cached = functools.cache(real)
    return lambda *lists: cached(*map(tuple, lists))


def main(zoo: Path, root: Path) -> None:
    torch.set_num_threads(1)
    sources.ZOO = zoo
    registry.FINDINGS[fake.FINDING.id] = fake.finding(card=fake.card(CLAIM), controls={}, factors=(), grid=None)
    measure.measure = small(measure.measure)
    runs._WORKERS = 1  # so that the changes of the disk come in the same order every time
    disk.fsync = lambda descriptor: None  # a kill point like the others, without the wait
    build.build = short_report  # type: ignore[assignment]
    runs.code_hash = pipeline.code_hash = once(runs.code_hash)
    runs.library_versions = pipeline.library_versions = once(runs.library_versions)
    for nth in range(10_000):
        place = root / str(nth)
        place.mkdir()
        child = os.fork()
        if child == 0:
            kill_at(nth, place)
            work(place)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status not in (0, KILLED):
            sys.exit(1)
        entries = Store(place / "store").entries()
        left = {
            "killed": (place / "killed").read_text() if status else None,
            "stored": [entry.manifest["kind"] for entry in entries],
            "whole": all(entry.verify() for entry in entries),
            "published": published(place),
        }
        sys.stdout.write(json.dumps({**left, "next": outcome(place)}) + "\n")
        if status == 0:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
