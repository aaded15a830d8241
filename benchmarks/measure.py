"""One row, all its sides turn by turn, each in a process of its own; and one cell of the growth table."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.acdc import SHAPE
from benchmarks.machine import load_average
from benchmarks.rows import PEERS, Cell, Row
from benchmarks.serve import setting_to
from benchmarks.setting import Setting, network_name, write
from benchmarks.workers import Worker, WorkerError

from headwork.methods.graph import graph

ROUNDS, SLOW = 3, 30.0  # three rounds; what takes more seconds than this is measured once


@dataclass(frozen=True)
class Where:
    """How and where to measure."""

    work: Path
    base: Setting
    threads: int
    device: str
    peers: bool
    quick: bool

    def worker(self, side: str, setting: Setting) -> Worker:
        """A fresh process of a side."""
        return Worker(
            side, self.work / network_name(setting.size), self.threads, self.device, self.work / f"{side}.log"
        )

    def values(self, row: str, side: str) -> Path:
        """Where a side's arrays are kept."""
        return self.work / f"{row}-{side}.npz"


def measure(row: Row, where: Where, earlier: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds of every round, memory, and the largest difference from Headwork's numbers."""
    setting = row.setting(where.base)
    write(setting, where.work)
    before = load_average()
    found: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for side in sides(row, where, earlier, found):
            try:
                workers[side] = stack.enter_context(where.worker(side, setting))
                found[side] = {"seconds": [], "versions": workers[side].versions}
            except WorkerError as error:
                found[side] = {"failed": str(error)}
        for round_ in range(1 if where.quick else ROUNDS):
            for side, worker in workers.items():
                if "failed" not in found[side] and (not round_ or max(found[side]["seconds"]) < SLOW):
                    _one_round(row, side, worker, setting, where, found[side])
    return {
        "load": before,
        "needed": row.needed(setting) if row.needed else None,
        "sides": found,
        "differences": _differences(row, where, found),
    }


def sides(row: Row, where: Where, earlier: Mapping[str, Any], found: dict[str, Any]) -> list[str]:
    """Who is measured; why another is not goes into `found`."""
    chosen = []
    before = earlier.get(row.fastest_of or "")
    fastest = fastest_peer(before["sides"]) if before else None
    for side in row.sides:
        if side in PEERS and not where.peers:
            found[side] = {"failed": "not asked for"}
        elif side in PEERS and row.fastest_of and fastest and side != fastest:
            found[side] = {"left_out": f"slower than the other peer in {row.fastest_of}"}
        else:
            chosen.append(side)
    return chosen


def _one_round(row: Row, side: str, worker: Worker, setting: Setting, where: Where, found: dict[str, Any]) -> None:
    options = dict(row.options.get(side, {}))
    if where.quick:
        options |= {"acdc": {"at_most": 10}, "cache": {"rounds": 2}}.get(row.work, {})
    try:
        answer = worker.ask(
            work=row.work_of(side),
            setting=setting_to(setting),
            save=str(where.values(row.name, side).resolve()),
            **options,
        )
    except WorkerError as error:
        found["failed"] = str(error)
        return
    found["seconds"].append(answer.pop("seconds"))
    # The first round's memory: later ones start from what the allocator kept.
    for key in ("before", "peak"):
        found.setdefault(key, answer.pop(key))
    found["notes"] = {k: v for k, v in answer.items() if k not in ("before", "peak")}


def fastest_peer(sides: Mapping[str, Any]) -> str | None:
    """The peer with the least median, if any was measured."""
    return min((s for s in PEERS if seconds(sides.get(s))), key=lambda s: seconds(sides[s]) or 0.0, default=None)


def seconds(side: Mapping[str, Any] | None) -> float | None:
    """The median of a side's rounds; None where it failed or was left out."""
    if not side or not side.get("seconds") or "failed" in side:
        return None
    return statistics.median(side["seconds"])


def _differences(row: Row, where: Where, found: Mapping[str, Any]) -> dict[str, Any]:
    """Per other side: the largest difference from ours, beside the largest value."""
    ours = where.values(row.ours_of or row.beside or row.name, "headwork")
    differences = {}
    for side, side_found in found.items():
        theirs = where.values(row.name, side)
        if theirs == ours or "notes" not in side_found or not (ours.exists() and theirs.exists()):
            continue
        with np.load(ours) as a, np.load(theirs) as b:
            if row.compare not in a or row.compare not in b:
                continue
            mine, other = a[row.compare], b[row.compare]
            effects = (a["effect"], b["effect"]) if row.beside else ()
        if mine.dtype == bool:
            tried = side_found["notes"].get("tried")
            differences[side] = {"differing": _differing(mine, other, tried), "tried": tried}
        elif mine.shape != other.shape or (not row.beside and (np.isnan(mine) != np.isnan(other)).any()):
            differences[side] = {"shapes": [list(mine.shape), list(other.shape)]}
        else:
            differences[side] = {"largest": float(np.nanmax(abs(mine - other))), "scale": float(np.nanmax(abs(mine)))}
            if effects:
                differences[side]["top"] = _same_top(*effects, side_found["notes"].get("confirmed"))
    return differences


def _differing(mine: np.ndarray, other: np.ndarray, tried: int | None) -> int:
    """How many of the edges tried are in one circuit only. Readers are tried from the last, each one's writers too."""
    visible = graph(SHAPE).visible
    order = [(w, r) for r in reversed(range(visible.shape[1])) for w in reversed(visible[:, r].nonzero()[0])]
    return sum(int(mine[edge] != other[edge]) for edge in order[:tried])


def _same_top(mine: np.ndarray, other: np.ndarray, count: int | None) -> list[int]:
    """How many of the largest mean effects [.., prompt] in size both name, and out of how many."""
    sizes = [np.nan_to_num(abs(x.mean(-1))).ravel() for x in (mine, other)]
    count = min(count or 20, len(sizes[0]))
    tops = [set(np.argsort(-size)[:count].tolist()) for size in sizes]
    return [len(tops[0] & tops[1]), count]


def grow(cell: Cell, where: Where) -> dict[str, Any]:
    """Time and memory above the weights' under a limit, in a fresh process."""
    setting = replace(where.base, size=replace(where.base.size, layers=cell.layers), pairs=cell.pairs)
    write(setting, where.work)
    try:
        with where.worker("headwork", setting) as worker:
            answer = worker.ask(work=cell.work, setting=setting_to(setting), memory=cell.memory)
    except WorkerError as error:
        return {"failed": str(error)}
    return {key: answer[key] for key in ("seconds", "before", "peak")}


def rates(where: Where) -> dict[str, Any]:
    """The machine's rates of matrix products, in a fresh process."""
    write(where.base, where.work)
    with where.worker("headwork", where.base) as worker:
        return {"load": load_average(), **worker.ask(work="rates", setting=setting_to(where.base))["rates"]}
