"""Options that several commands share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from headwork.errors import UserError

_UNITS = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def parse_memory(text: str) -> int:
    """`2GB`, `500 MiB` or a number of bytes. Raises `UserError`; letters may be of either case."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([A-Za-z]*)\s*", text)
    units = {name.lower(): factor for name, factor in _UNITS.items()}
    unit = (found[2] or "B").lower() if found else ""
    size = int(float(found[1]) * units[unit]) if found and unit in units else 0
    if size < 1:
        raise UserError(f"--memory is {text!r}; it must be a size such as 2GB, in {', '.join(_UNITS)}.")
    return size


def parse_numbers(text: str) -> tuple[int, ...]:
    """`0,2-4` is 0, 2, 3, 4. Raises `UserError`."""
    found: list[int] = []
    for part in text.split(","):
        ends = re.fullmatch(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?", part)
        if ends is None or (ends[2] is not None and int(ends[2]) < int(ends[1])):
            raise UserError(f"{text!r} is no list of numbers; write them like 0,2-4.")
        found += range(int(ends[1]), int(ends[2] or ends[1]) + 1)
    return tuple(found)


AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Device = Annotated[str, typer.Option(metavar="cpu|cuda", help="Where to compute.")]
Spec = Annotated[
    str, typer.Argument(metavar="SPEC", help="zoo:NAME, hf:ORG/NAME, artifact:NAME or the path of a model folder.")
]
Memory = Annotated[
    int | None,
    typer.Option(
        parser=parse_memory,
        metavar="SIZE",
        help="What it may take beside the weights, such as 2GB.",
        show_default=False,
    ),
]
TaskName = Annotated[
    str | None,
    typer.Option("--task", metavar="TASK", help="A task of `headwork tasks`.", show_default="repeated-sequences"),
]
Pairs = Annotated[
    Path | None, typer.Option("--pairs", metavar="FILE", help="Prompt pairs instead of a task: CSV or JSON.")
]
Clean = Annotated[
    str | None, typer.Option(metavar="TEXT", help="One pair instead of a task: text, or token ids between spaces.")
]
Corrupt = Annotated[str | None, typer.Option(metavar="TEXT", help="The other prompt of that pair, as long.")]
Answer = Annotated[
    str | None,
    typer.Option(metavar="TOKEN", help="What is right after --clean.", show_default="the network's own answer"),
]
Wrong = Annotated[
    str | None,
    typer.Option(metavar="TOKEN", help="What it is measured against.", show_default="its answer after --corrupt"),
]
Counterfactual = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="How the task's prompts are corrupted, or a column of the file."),
]
Bos = Annotated[bool, typer.Option("--bos", help="Start each prompt with the tokenizer's first token.")]
Prompts = Annotated[int, typer.Option(metavar="N", help="Prompt pairs in each split.")]
Seed = Annotated[int, typer.Option(metavar="N", help="Decides which prompts are drawn.")]
Out = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Where the results go.", show_default="headwork-out/COMMAND-NETWORK")
]
