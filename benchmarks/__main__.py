"""Speed and memory beside the peers: measures, writes benchmarks/results.json and docs/performance.md.

    make bench                      everything, once; a run that was interrupted goes on where it stopped
    make bench ARGS=--fresh         from the start
    make bench ARGS='--only heads residual'   these rows again and no page written; --list names them
    python -m benchmarks --quick --no-peers   a tiny network, to see that it works

Needs two idle cores; the page says how busy the machine was.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.machine import description, load_average
from benchmarks.measure import Where, grow, measure, rates
from benchmarks.report import cells, page
from benchmarks.rows import ROWS, growth
from benchmarks.setting import FULL, QUICK
from benchmarks.workers import ROOT

RESULTS, PAGE = ROOT / "benchmarks" / "results.json", ROOT / "docs" / "performance.md"
_ONE_RUN = 12 * 3600  # seconds after which what an interrupted run measured is no longer the same run
_BUSY = 0.5  # processes that want a core besides ours


def main(arguments: list[str] | None = None) -> int:
    """Measure what is asked for; 1 where something of Headwork's own failed."""
    given = _parser().parse_args(arguments)
    # ACDC's setting has one size, which is not a quick one.
    rows = [r for r in ROWS if (r.name in given.only if given.only else not (given.quick and r.name == "acdc"))]
    cells_asked = [c for c in growth(given.quick) if not given.only or "growth" in given.only or c.name in given.only]
    if given.list:
        print("\n".join([*(f"{row.name:16} {row.title}" for row in ROWS), "growth           time and memory by size"]))
        return 0
    where = Where(
        given.work / ("quick" if given.quick else "full") / given.device,
        QUICK if given.quick else FULL,
        given.threads,
        given.device,
        not given.no_peers and given.device == "cpu",
        given.quick,
    )
    run = Progress(where, given.fresh)
    busy = load_average()
    if busy > _BUSY and not given.quick:
        print(f"Something else is running (load {busy}): the times will be too long, ours and the peers'.")
    run.step("rates-before", lambda: rates(where))
    for row in rows:
        run.step(row.name, lambda row=row: measure(row, where, run.rows()), again=bool(given.only))
    if not given.only:
        run.step("rates-after", lambda: rates(where))
    for cell in cells_asked:
        run.step(cell.name, lambda cell=cell: grow(cell, where), again=bool(given.only))
    results = _results(run, where, given)
    print("\n" + cells(results))
    if not given.only:
        beside = "" if given.device == "cpu" else f"-{given.device}"
        written, shown = (
            path or at.with_stem(at.stem + beside) for path, at in ((given.results, RESULTS), (given.page, PAGE))
        )
        for path, text in ((written, json.dumps(results, indent=1)), (shown, page(results))):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.rstrip("\n") + "\n")
            print(f"Written: {path}")
    own = [f"{name}: {side['failed']}" for name, row in run.rows().items() for side in _own(row) if "failed" in side]
    own += [f"{c.name}: {run.held[c.name]['failed']}" for c in cells_asked if "failed" in run.held.get(c.name, {})]
    print("\n".join(f"Failed: {line}" for line in own), end="\n" if own else "")
    return 1 if own else 0


def _own(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [found for side, found in row.get("sides", {}).items() if side in ("headwork", "plain")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--device", default="cpu", help="cpu or cuda; on a GPU without the peers, unless installed there"
    )
    parser.add_argument("--only", nargs="+", metavar="ROW", help="these rows, again; nothing is written")
    parser.add_argument("--list", action="store_true", help="name the rows and stop")
    parser.add_argument("--fresh", action="store_true", help="forget what an interrupted run has measured")
    parser.add_argument("--quick", action="store_true", help="a tiny network; its times mean nothing")
    parser.add_argument("--no-peers", action="store_true", help="Headwork alone")
    parser.add_argument("--work", type=Path, default=ROOT / ".bench", help="networks, logs, what is measured so far")
    parser.add_argument("--results", type=Path, help="default: benchmarks/results.json (results-cuda.json)")
    parser.add_argument("--page", type=Path, help="default: docs/performance.md (performance-cuda.md)")
    return parser


class Progress:
    """What is measured so far, kept on disk step by step; forgotten where code, machine or options are others now."""

    def __init__(self, where: Where, fresh: bool) -> None:
        self.file = where.work / "run.json"
        wanted = {"key": _key(where)}
        held = json.loads(self.file.read_text()) if self.file.is_file() else {}
        if fresh or held.get("key") != wanted["key"] or time.time() - held.get("begun", 0) > _ONE_RUN:
            for path in where.work.glob("*.npz"):
                if not path.name.startswith("l"):  # prompts stay
                    path.unlink()
            held = {**wanted, "begun": time.time(), "steps": {}}
        self._state = held
        self.held: dict[str, Any] = held["steps"]
        where.work.mkdir(parents=True, exist_ok=True)

    def step(self, name: str, work: Callable[[], dict[str, Any]], again: bool = False) -> None:
        """Do it, unless it is done."""
        if name in self.held and not again:
            return
        print(f"{name} … ", end="", flush=True)
        begun = time.perf_counter()
        self.held[name] = work()
        self.held[name]["took"] = round(time.perf_counter() - begun, 1)
        new = self.file.with_suffix(".new")
        new.write_text(json.dumps(self._state))
        new.replace(self.file)
        print(f"{self.held[name]['took']} s", flush=True)

    def rows(self) -> dict[str, Any]:
        """The table's rows so far."""
        return {row.name: self.held[row.name] for row in ROWS if row.name in self.held}


def _key(where: Where) -> str:
    """Changes with the code measured, the machine and what was asked for."""
    code = hashlib.sha256()
    for path in sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]):
        if path.name != "report.py":
            code.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    asked = json.dumps([description(where.threads, where.device), asdict(where.base), where.peers], sort_keys=True)
    return hashlib.sha256(code.hexdigest().encode() + asked.encode()).hexdigest()


def _results(run: Progress, where: Where, given: argparse.Namespace) -> dict[str, Any]:
    held = [c for c in growth(given.quick) if c.name in run.held]
    return {
        "date": time.strftime("%Y-%m-%d"),
        "quick": given.quick,
        "minutes": round(sum(step["took"] for step in run.held.values()) / 60, 1),
        "setting": asdict(where.base),
        "machine": description(where.threads, where.device),
        "rates": {name: run.held.get(f"rates-{name}", {}) for name in ("before", "after")},
        "rows": run.rows(),
        "growth": [asdict(c) | run.held[c.name] for c in held],
    }


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\nStopped; the same command goes on from here.")
        sys.exit(130)
