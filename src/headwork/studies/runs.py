"""Runs: one network measured, kept in the store under the hash of everything that can change the result."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwork.findings.registry import Finding
from headwork.store.address import address
from headwork.store.results import Entry, Store
from headwork.store.source import code_hash, library_versions
from headwork.studies.plan import Task

if TYPE_CHECKING:
    import xarray

LIBRARIES = ("torch", "numpy", "scipy", "xarray")
DATASET, SUMMARY = "results.h5", "measurement.json"
# Small networks leave most of a processor idle between their small operations: two of them at once do not.
_WORKERS = 2

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Run:
    """A finished measurement as it lies in the store."""

    name: str
    task: Task
    address: str
    folder: Path
    heads: dict[str, list[str]]
    notes: list[str]
    data: dict[str, Any]
    data_note: str
    data_status: str
    inferred: list[str]
    seconds: float

    def dataset(self) -> xarray.Dataset:
        """The labelled results, read into memory."""
        import xarray

        with xarray.open_dataset(self.folder / DATASET, engine="h5netcdf") as opened:
            return opened.load()


def settings(finding: Finding) -> dict[str, Any]:
    """The procedure's settings: the same for headline, controls and follow-ups."""
    return dict(finding.settings)


def run_inputs(finding: Finding, tasks: Mapping[str, Task], device: str) -> dict[str, dict[str, Any]]:
    """Everything that can change each task's result: settings, weights, data, code, precision, libraries, device."""
    shared = {
        "finding": finding.id,
        "settings": settings(finding),
        "dtype": "float32",
        "device": device,
        "code": code_hash([f"{finding.module}.measure", "headwork.studies.runs"]),
        "libraries": library_versions(LIBRARIES),
    }
    return {
        name: {**shared, "network": task.located.identity(), "untrained": task.untrained}
        for name, task in tasks.items()
    }


def execute(
    finding: Finding, tasks: Mapping[str, Task], store: Store, device: str, progress: Progress
) -> dict[str, Run]:
    """Measure every network that the store does not have whole; `progress` gets the stage and the share done.

    A kill at any moment loses at most the runs in progress. An error or Ctrl-C stops the others at their next step.
    """
    inputs = run_inputs(finding, tasks, device)
    addresses = {name: address("run", values) for name, values in inputs.items()}
    owner = {at: name for name, at in reversed(addresses.items())}
    # In the plan's order: a headline network that is damaged is met first, not after its controls were measured.
    missing = [name for name, at in addresses.items() if owner[at] == name and store.find(at, deep=True) is None]
    if missing:
        work = _Work(finding, store, device, progress, len(missing))
        work.run({name: (tasks[name], addresses[name], inputs[name]) for name in missing})
    return {name: _read(name, task, store, addresses[name]) for name, task in tasks.items()}


class _Work:
    """Measures several networks at once and adds up their progress."""

    def __init__(self, finding: Finding, store: Store, device: str, progress: Progress, count: int) -> None:
        self.finding, self.store, self.device = finding, store, device
        self.progress, self.count = progress, count
        self.shares: dict[str, float] = {}
        self.stopped = threading.Event()
        self.lock = threading.Lock()

    def run(self, planned: Mapping[str, tuple[Task, str, dict[str, Any]]]) -> None:
        import torch

        workers = _WORKERS if self.device == "cpu" and len(planned) > 1 else 1
        # Each worker one thread of torch's, set once: the number is partly one for all of them.
        before = torch.get_num_threads()
        threads = 1 if workers > 1 else before
        try:
            with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
                self.measure_all(pool, planned)
        finally:
            torch.set_num_threads(before)

    def measure_all(self, pool: ThreadPoolExecutor, planned: Mapping[str, tuple[Task, str, dict[str, Any]]]) -> None:
        try:
            futures: set[Future[None]] = {pool.submit(self.measure, name, *what) for name, what in planned.items()}
            while futures:
                done, futures = wait(futures, timeout=0.2, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
        except BaseException:
            self.stopped.set()
            pool.shutdown(cancel_futures=True)
            raise

    def measure(self, name: str, task: Task, at: str, inputs: dict[str, Any]) -> None:
        import torch

        from headwork.model.initialise import initialise
        from headwork.model.sources import load_transformer

        started = time.perf_counter()
        model = load_transformer(task.located.spec, self.device)
        if task.untrained:
            card, seed = model.card, settings(self.finding)["seed"]
            model = initialise(model.config, seed).to(self.device)
            model.card = card
        procedure = import_module(f"{self.finding.module}.measure")
        measured = procedure.measure(model, settings(self.finding), lambda stage, p: self.report(name, stage, p))
        summary = {
            "heads": measured.heads,
            "notes": measured.notes,
            "data": measured.data,
            "data_note": measured.data_note,
            "data_status": measured.data_status,
            "inferred": list(model.card.inferred) if model.card else [],
            "seconds": time.perf_counter() - started,
            "threads": torch.get_num_threads(),
        }
        with self.store.write(at, kind="run", inputs=inputs) as folder:
            # Made in memory: the HDF5 library reports a full disk by a traceback of its own.
            with _HDF5:
                dataset = bytes(measured.dataset.to_netcdf(engine="h5netcdf"))
            (folder / DATASET).write_bytes(dataset)
            (folder / SUMMARY).write_text(json.dumps(summary, indent=1, sort_keys=True))
        self.report(name, "stored", 1.0)

    def report(self, name: str, stage: str, share: float) -> None:
        if self.stopped.is_set():
            raise KeyboardInterrupt
        with self.lock:
            self.shares[name] = share
            self.progress(f"{name}: {stage}", sum(self.shares.values()) / self.count)


# HDF5 itself is not safe to call from two threads at once.
_HDF5 = threading.Lock()


def _read(name: str, task: Task, store: Store, at: str) -> Run:
    entry: Entry | None = store.find(at)
    assert entry is not None, "it was found or written just now"  # noqa: S101 – an invariant of execute
    summary = json.loads((entry.folder / SUMMARY).read_text())
    parts = ("heads", "notes", "data", "data_note", "data_status", "inferred", "seconds")
    return Run(name, task, at, entry.folder, **{part: summary[part] for part in parts})
