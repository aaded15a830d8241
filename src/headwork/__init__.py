"""Headwork: a workbench for mechanistic interpretability on small networks.

Names are imported when they are first asked for, so that importing this package does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headwork import draw as draw
    from headwork.engine.adapter import at_channels as at_channels
    from headwork.engine.adapter import run_adapted as run_adapted
    from headwork.engine.edits import add as add
    from headwork.engine.edits import function as function
    from headwork.engine.edits import patch as patch
    from headwork.engine.edits import replace as replace
    from headwork.engine.edits import scale as scale
    from headwork.engine.metrics import LogitDifference as LogitDifference
    from headwork.engine.metrics import Loss as Loss
    from headwork.engine.resume import resume as resume
    from headwork.engine.resume import trace as trace
    from headwork.engine.run import run as run
    from headwork.engine.sweep import sweep as sweep
    from headwork.errors import UserError as UserError
    from headwork.model.adapter import adapt as adapt
    from headwork.model.sites import Head as Head
    from headwork.model.sites import heads as heads
    from headwork.model.sites import parse_head as parse_head
    from headwork.model.sites import sites as sites
    from headwork.model.sources import load as load
    from headwork.tasks.repeated_sequences import RepeatedSequences as RepeatedSequences

__version__ = "0.1.0"

_HOMES = {
    "Head": "headwork.model.sites",
    "LogitDifference": "headwork.engine.metrics",
    "Loss": "headwork.engine.metrics",
    "RepeatedSequences": "headwork.tasks.repeated_sequences",
    "UserError": "headwork.errors",
    "adapt": "headwork.model.adapter",
    "add": "headwork.engine.edits",
    "at_channels": "headwork.engine.adapter",
    "draw": "headwork.draw",
    "function": "headwork.engine.edits",
    "heads": "headwork.model.sites",
    "load": "headwork.model.sources",
    "parse_head": "headwork.model.sites",
    "patch": "headwork.engine.edits",
    "replace": "headwork.engine.edits",
    "resume": "headwork.engine.resume",
    "run": "headwork.engine.run",
    "run_adapted": "headwork.engine.adapter",
    "scale": "headwork.engine.edits",
    "sites": "headwork.model.sites",
    "sweep": "headwork.engine.sweep",
    "trace": "headwork.engine.resume",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(_HOMES[name])
    return home if _HOMES[name] == f"{__name__}.{name}" else getattr(home, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
