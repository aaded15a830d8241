"""The worker's end: a process that holds one network and does one piece of work at a time, measuring it.

A request is one line of JSON on stdin, {"work": NAME, "setting": …, "save": FILE}; the answer one line on stdout with
seconds, bytes before the work and at its peak, and what the work wants noted. Arrays go to FILE.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.setting import FULL, Prompts, Setting, Size, read_prompts


@dataclass(frozen=True)
class Done:
    """What a piece of work gave: arrays to compare, and plain values to note."""

    values: Mapping[str, np.ndarray] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Job:
    """What a piece of work is given. `options` are the request's, beside work, setting and file."""

    model: Any
    prompts: Prompts
    setting: Setting
    options: Mapping[str, Any]


Work = Callable[[Job], Done]


def serve(load: Callable[[Path, str], Any], works: Mapping[str, Work], versions: Mapping[str, str]) -> None:
    """Load the network, warm up, and answer requests until stdin ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--network", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    # Libraries print to stdout; what they print must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(given.threads)
    model = load(given.network, given.device)
    with torch.no_grad():
        # Pages in the weights and sets up the libraries.
        model(torch.zeros((1, 2), dtype=torch.long, device=given.device))

    def answer(value: Mapping[str, Any]) -> None:
        print(json.dumps(value), file=answers, flush=True)

    answer({"ready": True, "versions": {**versions, "torch": torch.__version__}})
    for line in sys.stdin:
        try:
            answer(_done(json.loads(line), model, works, given.network.parent, given.device))
        except Exception as error:  # the run goes on with the other rows
            traceback.print_exc()
            answer({"failed": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"})


def _done(request: dict[str, Any], model: Any, works: Mapping[str, Work], folder: Path, device: str) -> dict[str, Any]:
    work, save = works[request.pop("work")], request.pop("save", None)
    setting = setting_from(request.pop("setting")) if "setting" in request else FULL
    job = Job(model, read_prompts(setting, folder, device), setting, request)
    before = _start_peak(device)
    begun = time.perf_counter()
    done = work(job)
    _wait(device)
    seconds = time.perf_counter() - begun
    peak = _peak(device)
    if save and done.values:
        np.savez(save, **done.values)
    return {"seconds": seconds, "before": before, "peak": peak, **done.notes}


def setting_from(values: dict[str, Any]) -> Setting:
    """The inverse of `dataclasses.asdict`."""
    return Setting(**{**values, "size": Size(**values["size"])})


def setting_to(setting: Setting) -> dict[str, Any]:
    """As JSON takes it."""
    return dataclasses.asdict(setting)


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def _start_peak(device: str) -> int:
    """Bytes held now; the peak starts from here. Resident memory on the processor, tensors' on a GPU."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM (proc(5))
    return _status("VmRSS")


def _peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device != "cpu" else _status("VmHWM")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))
