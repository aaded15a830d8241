"""`reproduce`: plan, measure, judge, draw, report, publish. What was done before is answered from the store."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwork import __version__
from headwork.findings.figure import Figure, Interval, ShownLevel
from headwork.findings.registry import Finding, finding
from headwork.model.sources import check_device, locate
from headwork.store.address import address
from headwork.store.publish import publish, require_folder
from headwork.store.results import Entry, Store
from headwork.store.source import code_hash, library_versions
from headwork.studies.plan import Plan, plan
from headwork.studies.runs import LIBRARIES, execute, run_inputs

if TYPE_CHECKING:
    import xarray

    from headwork.studies.record import Record

RECORD, RESULTS, PDF, HTML = "record.json", "results.h5", "report.pdf", "report.html"
Progress = Callable[[str, float], None]
# How the time of a fresh reproduction splits: measuring, then figures and report.
_MEASURING = 0.85


@dataclass(frozen=True)
class Outcome:
    """A finished reproduction: its record, and the folder that holds report, results and figures."""

    record: Record
    folder: Path
    from_store: bool
    seconds: float


def reproduce(
    finding_id: str,
    model: str | None,
    seeds: int,
    out: Path,
    device: str = "cpu",
    progress: Progress = lambda stage, share: None,
    store: Store | None = None,
) -> Outcome:
    """Reproduce a finding and publish report, record, results and figures into `out`.

    `model` is a SPEC (None: the finding's default); `seeds` counts the networks of each follow-up level; `progress`
    gets a stage and the share done. Nothing is computed that the store already has. Raises `UserError` before any work
    where finding, model, seeds, device or the output folder cannot be used.
    """
    started = time.perf_counter()
    asked = finding(finding_id)
    check_device(device)
    planned = plan(asked, model, seeds)
    out = out.expanduser().absolute()
    require_folder(out)
    store = store or Store()
    store.sweep()
    notes = _notes(asked, planned)
    inputs = _inputs(asked, planned, device, notes)
    at = address("reproduction", inputs)
    entry = store.find(at, deep=True)
    from_store = entry is not None
    if entry is None:
        entry = _produce(asked, planned, device, notes, store, at, inputs, progress)
    progress("publish", 1.0)
    names = [name for name in entry.manifest["files"] if name != "manifest.json"]
    publish({name: entry.folder / name for name in names}, out, last=RECORD)
    from headwork.studies.record import Record

    record = Record.model_validate_json((entry.folder / RECORD).read_text())
    return Outcome(record, out, from_store, time.perf_counter() - started)


def _produce(
    asked: Finding,
    planned: Plan,
    device: str,
    notes: str | None,
    store: Store,
    at: str,
    inputs: Mapping[str, Any],
    progress: Progress,
) -> Entry:
    started = time.perf_counter()
    tasks = {name: task for name, task in planned.tasks().items() if task.diverged_at is None}
    runs = execute(asked, tasks, store, device, lambda stage, share: progress(stage, _MEASURING * share))
    progress("judge", _MEASURING)
    from headwork.report.build import build
    from headwork.studies.assemble import assemble

    datasets = {name: run.dataset() for name, run in runs.items()}
    created = datetime.now(UTC).isoformat(timespec="seconds")
    record = assemble(planned, runs, datasets, _environment(device), created, time.perf_counter() - started)
    progress("figures", 0.87)
    pictures = _figures(asked, record, datasets["headline"])
    with store.write(at, kind="reproduction", inputs=inputs) as folder:
        progress("report", 0.93)
        build(record, pictures, notes, folder, rebuild_command=_command(record))
        _write_results(folder / RESULTS, datasets)
        (folder / "figures").mkdir()
        for figure in pictures:
            figure.picture.save(folder / "figures" / f"{figure.name}.svg")
        (folder / RECORD).write_text(record.model_dump_json(indent=1))
    entry = store.find(at)
    assert entry is not None, "it was written just now"  # noqa: S101 – an invariant
    return entry


def _figures(asked: Finding, record: Record, data: xarray.Dataset) -> list[Figure]:
    from headwork.studies import statistics

    def summary(values: Any) -> Interval:
        estimate = statistics.mean(values, "sequences")
        return Interval(estimate.value, estimate.low, estimate.high)

    levels = [
        ShownLevel(
            followup.factor,
            level.value,
            level.baseline,
            level.verdict,
            {name: Interval(e.value, e.low, e.high) for name, e in level.estimates.items()},
            level.per_seed,
            sum(v.startswith("diverged") for v in level.seed_verdicts),
        )
        for followup in record.followups
        for level in followup.levels
    ]
    return import_module(f"{asked.module}.figures").figures(data, record.headline.heads, levels, summary)


def _write_results(path: Path, datasets: Mapping[str, xarray.Dataset]) -> None:
    """All runs in one file, one group each."""
    import xarray

    tree = xarray.DataTree.from_dict({f"/{name}": data for name, data in datasets.items()})
    path.write_bytes(tree.to_netcdf(engine="h5netcdf"))


def _inputs(asked: Finding, planned: Plan, device: str, notes: str | None) -> dict[str, Any]:
    """What the whole reproduction depends on: its runs, all cards, the judging and reporting code, the notes."""
    tasks = planned.tasks()
    return {
        "runs": {name: address("run", values) for name, values in run_inputs(asked, tasks, device).items()},
        "networks": {name: task.located.card.to_dict() for name, task in tasks.items()},
        "unavailable": [*planned.unavailable, *(line for f in planned.followups for line in f.unavailable)],
        "card": asked.card.sha256,
        "seeds": planned.seeds,
        "expected": planned.expected,
        "notes": notes,
        "code": code_hash(["headwork.report.pipeline", f"{asked.module}.figures", *_draw_modules()], _templates()),
        "libraries": library_versions([*LIBRARIES, "matplotlib", "typst", "markdown-it-py"]),
        "version": __version__,
    }


def _draw_modules() -> Sequence[str]:
    """The pictures' modules, which `headwork.draw` loads by name and the code hash therefore cannot see."""
    folder = Path(str(files("headwork.draw")))
    return [f"headwork.draw.{path.stem}" for path in sorted(folder.glob("*.py")) if path.stem != "__init__"]


def _templates() -> list[Path]:
    """The files that report and pictures are made with and that are not Python."""
    folders = [Path(str(files(package))) for package in ("headwork.report", "headwork.draw")]
    return [path for folder in folders for path in sorted(folder.iterdir()) if path.suffix in (".typ", ".css", ".js")]


def _notes(asked: Finding, planned: Plan) -> str | None:
    """The notes that ship with the finding, for the run that they were written about: its default one."""
    if planned.headline.located.sha256 != locate(asked.model).sha256:
        return None
    return (files(asked.module) / "notes.md").read_text(encoding="utf-8")


def _command(record: Record) -> str:
    return f"headwork reproduce {record.finding} --model {record.model} --seeds {record.seeds}"


def _environment(device: str) -> dict[str, str]:
    import torch

    return {
        "headwork": __version__,
        "python": platform.python_version(),
        **library_versions([*LIBRARIES, "matplotlib", "typst"]),
        "device": device if device == "cpu" else torch.cuda.get_device_name(),
        "threads": str(torch.get_num_threads()),
        "processors": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.machine()}",
    }


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a published reproduction, as plain data."""
    return json.loads((folder / RECORD).read_text())
