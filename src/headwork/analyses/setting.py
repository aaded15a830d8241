"""What every analysis shares: the network, where it runs, how much memory it may take, and where the results go."""

from __future__ import annotations

import platform
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headwork import __version__
from headwork.analyses.source import Source
from headwork.engine.run import run
from headwork.errors import UserError
from headwork.methods.batches import chunks
from headwork.model.sources import check_device, load, locate
from headwork.model.transformer import Transformer
from headwork.store.publish import require_folder
from headwork.store.source import library_versions
from headwork.studies import statistics
from headwork.studies.record import Estimate
from headwork.tasks.prompt_pairs import CheckedMetric, checked_metric, of_rows
from headwork.tasks.task_prompts import TaskPrompts

Progress = Callable[[str, float], None]
LIBRARIES = ("torch", "numpy", "xarray")
_ALIKE = (
    "The clean and the corrupt run do not differ beyond chance: the network may not do this task, and shares of the "
    "difference are not defined."
)


def no_progress(stage: str, share: float) -> None:
    """Where nobody looks."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """An analysis's network and prompts. `memory` is in bytes; `out` None is the default folder."""

    spec: str
    source: Source
    device: str = "cpu"
    memory: int | None = None
    out: Path | None = None
    progress: Progress = no_progress

    def folder(self, analysis: str) -> Path:
        """Where the results go, checked before any work. Raises `UserError` where nothing can be written there."""
        name = re.sub(r"[^\w.-]+", "-", self.spec.rstrip("/").rsplit("/")[-1].rpartition(":")[2]).strip("-.")
        out = (self.out or Path("headwork-out") / f"{analysis}-{name or 'network'}").expanduser().absolute()
        require_folder(out)
        return out

    def network(self) -> Transformer:
        """The network on its device. Raises `UserError` where there is none, or it is no transformer with layers."""
        check_device(self.device)
        locate(self.spec)
        model = load(self.spec, self.device)
        if not isinstance(model, Transformer) or not model.config.n_layers:
            raise UserError(f"{self.spec} has no attention layers to look into; give a transformer.")
        return model

    def command(self, analysis: str, options: Mapping[str, object]) -> str:
        """The command that does this again."""
        words = ["headwork", analysis, self.spec]
        more = {"device": None if self.device == "cpu" else self.device, "memory": self.memory}
        for name, value in {**self.source.options(), **options, **more}.items():
            if value is not None and value is not False:
                words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
        return shlex.join(words)

    def described(self, analysis: str, model: Transformer, options: Mapping[str, object]) -> dict[str, Any]:
        """What every summary says: what was run, on what, by which versions."""
        return {
            "analysis": analysis,
            "command": self.command(analysis, options),
            "model": {
                "spec": self.spec,
                "name": self.spec if model.card is None else model.card.name,
                "sha256": "" if model.card is None else model.card.sha256,
                "dtype": str(model.dtype).removeprefix("torch."),
                "folded": [] if model.card is None else list(model.card.folded),
            },
            "device": self.device,
            "seed": self.source.seed,
            "memory": self.memory,
            "versions": {"headwork": __version__, "python": platform.python_version()} | library_versions(LIBRARIES),
        }


def prompts_described(prompts: TaskPrompts, clean: Any, corrupt: Any) -> dict[str, Any]:
    """Plain data on the prompts and what the network makes of them; `clean` and `corrupt` are the metric [prompt]."""
    apart = distinct(clean, corrupt, prompts)
    return {
        "task": prompts.task,
        "split": prompts.split,
        "counterfactual": prompts.counterfactual,
        "prompts": len(prompts),
        "tokens": prompts.pairs.clean.shape[1],
        "templates": len(set(prompts.templates)),
        "metric": prompts.metric_words,
        "clean": plain(mean(clean, prompts)),
        "corrupt": plain(mean(corrupt, prompts)),
        "example": None if prompts.texts is None else {"clean": prompts.texts[0][0], "corrupt": prompts.texts[0][1]},
        "notes": [*prompts.notes, *([] if apart else [_ALIKE])],
    }


def distinct(clean: Any, corrupt: Any, prompts: TaskPrompts) -> bool:
    """Whether the metric [prompt] of the two runs differs beyond chance: only then are shares of it defined."""
    gap = np.asarray(clean, float) - np.asarray(corrupt, float)
    return ratio(gap, gap, prompts).value is not None


def both_runs(model: Transformer, prompts: TaskPrompts) -> tuple[Any, Any]:
    """The metric [prompt] of the clean and of the corrupt run, as numpy arrays. Raises `UserError` where it is none."""
    import torch

    pairs = prompts.pairs.on(model)
    n, length = pairs.clean.shape
    checked_metric(model, prompts.metric, pairs.labels, length)
    end = f"blocks.{model.config.n_layers - 1}.resid_post"
    values: list[list[torch.Tensor]] = [[], []]
    with torch.no_grad():
        for part in chunks(model.config, n, length):
            metric = CheckedMetric(of_rows(prompts.metric, part, n), pairs.labels[part])
            for found, tokens in zip(values, (pairs.clean, pairs.corrupt)):
                found.append(metric(model, run(model, tokens[part], end)[end], 0))
    clean, corrupt = (torch.cat(found).double().cpu().numpy() for found in values)
    return clean, corrupt


def mean(values: Any, prompts: TaskPrompts) -> Estimate:
    """The mean of `values [prompt]`, with its interval over templates where several prompts share one."""
    sums, counts, unit = _by_template(prompts, values)
    if unit == "prompts":
        return statistics.mean(sums, unit)
    return statistics.ratio(sums, counts, unit)


def ratio(numerators: Any, denominators: Any, prompts: TaskPrompts) -> Estimate:
    """Σ numerators ÷ Σ denominators [prompt], with its interval over the same units as `mean`."""
    top, _, unit = _by_template(prompts, numerators)
    bottom, _, _ = _by_template(prompts, denominators)
    if len(top) == 1 and bottom[0]:
        return Estimate(value=float(top[0] / bottom[0]), n=1, unit=unit, method="one prompt, no interval")
    return statistics.ratio(top, bottom, unit)


def plain(estimate: Estimate) -> dict[str, Any]:
    """An estimate for JSON."""
    return {name: getattr(estimate, name) for name in ("value", "low", "high", "n", "unit", "method")}


def _by_template(prompts: TaskPrompts, values: Any) -> tuple[Any, Any, str]:
    """Sums and counts of the values over each template; over each prompt where there is one template, or one each."""
    names = list(dict.fromkeys(prompts.templates))
    values = np.asarray(values, float)
    if len(names) in (1, len(values)):
        return values, np.ones(len(values)), "prompts"
    place = np.array([names.index(t) for t in prompts.templates])
    sums, counts = (np.bincount(place, weights, len(names)) for weights in (values, None))
    return sums, counts.astype(float), "templates"
