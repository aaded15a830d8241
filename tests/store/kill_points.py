"""Run as a program: stores and publishes a result, killed at the first change of the disk, then at the second …

``python kill_points.py PLACE fresh|again`` makes ``PLACE/0``, ``PLACE/1`` … and prints one line for each: the operation
at which that run was killed, or ``finished`` for the last. Light on purpose: every kill is a fork of this process.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from headwork.store import disk
from headwork.store.address import address
from headwork.store.atomic import write_file
from headwork.store.publish import publish
from headwork.store.results import Store

OPERATIONS = ("create", "write", "fsync", "rename", "mkdir", "unlink", "rmdir")
KILLED = 137
NAMES = ("scores.bin", "figures/map.svg", "report.pdf")


def text(name: str, version: int) -> str:
    return f"{name} of version {version} " * 20


def record(version: int) -> str:
    return json.dumps({name: text(name, version) for name in NAMES})


def key(version: int) -> str:
    return address("run", {"version": version})


def work(place: Path, version: int) -> None:
    """Compute a result unless it is in the store, and publish it."""
    store = Store(place / "store")
    entry = store.find(key(version))
    if entry is None:
        with store.write(key(version), kind="run", inputs={"version": version}) as folder:
            for name in NAMES:
                write_file(folder / name, text(name, version))
            write_file(folder / "record.json", record(version))
        entry = store.find(key(version))
        assert entry is not None
    publish({name: entry.folder / name for name in ("record.json", *NAMES)}, place / "out", "record.json")


def prepare(place: Path) -> None:
    """An earlier version stored and published, a file of the user's, and a damaged entry where the new one will go."""
    work(place, 1)
    (place / "out" / "figures" / "mine.svg").write_text("mine")
    damaged = place / "store" / "run" / key(2)[:2] / key(2)
    (damaged / "figures").mkdir(parents=True)
    (damaged / "figures" / "map.svg").write_text("half")


def kill_at(nth: int, place: Path) -> None:
    """From now on, end this process at its ``nth`` change of the disk, a write half done."""
    count = 0

    def watched(operation: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            nonlocal count
            count += 1
            if count <= nth:
                return real(*arguments)
            if operation == "write":
                descriptor, data = arguments
                real(descriptor, data[: len(data) // 2])
            (place / "killed").write_text(operation)
            os._exit(KILLED)

        return run

    for operation in OPERATIONS:
        setattr(disk, operation, watched(operation, getattr(disk, operation)))


def skip_fsync(_: int) -> None:
    """A kill point like the others, without the wait: a kill loses nothing that the system holds."""


def main(root: Path, start: str) -> None:
    disk.fsync = skip_fsync
    finished = False
    for nth in range(10_000):
        place = root / str(nth)
        place.mkdir()
        if start == "again":
            prepare(place)
        child = os.fork()
        if child == 0:
            kill_at(nth, place)
            work(place, 2)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        finished = status == 0
        sys.stdout.write("finished\n" if finished else (place / "killed").read_text() + "\n")
        if finished or status != KILLED:
            break
    sys.exit(0 if finished else 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
