"""Progress on stderr: a bar in a terminal, otherwise a line for each tenth, and beside `--json` nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Report(Protocol):
    """Takes the name of the stage, the share done from 0 to 1, and what to show beside the bar."""

    def __call__(self, stage: str, share: float, detail: str = "") -> None: ...


@contextmanager
def progress(as_json: bool) -> Iterator[Report]:
    """What to call while something long runs; the bar goes when the block ends, however it ends."""
    if not sys.stderr.isatty():
        yield _silent if as_json else _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description} {task.fields[detail]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=1.0, detail="")

        def report(stage: str, share: float, detail: str = "") -> None:
            bar.update(task, description=stage, completed=share, detail=detail)

        yield report


def _silent(stage: str, share: float, detail: str = "") -> None:
    pass


class _Lines:
    """One line for every tenth of the work: what a log file can hold."""

    def __init__(self) -> None:
        self.tenths = -1

    def __call__(self, stage: str, share: float, detail: str = "") -> None:
        if int(share * 10) > self.tenths:
            self.tenths = int(share * 10)
            print(f"{share:4.0%}  {stage}  {detail}".rstrip(), file=sys.stderr, flush=True)  # noqa: T201 – its purpose
