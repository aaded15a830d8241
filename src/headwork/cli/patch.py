"""`headwork patch SPEC`: activation patching on a task or a prompt pair."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwork.cli import options
from headwork.cli.analysis import as_json as print_summary
from headwork.cli.analysis import foot, head, interval
from headwork.cli.output import print_table
from headwork.cli.progress import progress

if TYPE_CHECKING:
    from collections.abc import Sequence


def patch(
    spec: options.Spec,
    task: options.TaskName = None,
    pairs: options.Pairs = None,
    clean: options.Clean = None,
    corrupt: options.Corrupt = None,
    answer: options.Answer = None,
    wrong: options.Wrong = None,
    counterfactual: options.Counterfactual = None,
    site: Annotated[str, typer.Option(metavar="SITE", help="What is patched: a site without its layer.")] = "attn.z",
    by: Annotated[
        str | None,
        typer.Option(
            metavar="head|position|head-position|layer",
            help="What is patched apart.",
            show_default="head, or position where the site has no heads",
        ),
    ] = None,
    direction: Annotated[
        str,
        typer.Option(metavar="denoising|noising", help="Clean into the corrupt run, or corrupt into the clean one."),
    ] = "denoising",
    layers: Annotated[
        Any, typer.Option(parser=options.parse_numbers, metavar="0,2-4", help="Layers to patch.", show_default="all")
    ] = None,
    heads: Annotated[
        Any, typer.Option(parser=options.parse_numbers, metavar="0,2-4", help="Heads to patch.", show_default="all")
    ] = None,
    positions: Annotated[
        Any, typer.Option(parser=options.parse_numbers, metavar="0,2-4", help="Positions to patch.", show_default="all")
    ] = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Choose by attribution patching; the largest are still patched.")
    ] = False,
    prompts: options.Prompts = 32,
    seed: options.Seed = 0,
    bos: options.Bos = False,
    memory: options.Memory = None,
    device: options.Device = "cpu",
    out: options.Out = None,
    as_json: options.AsJson = False,
) -> None:
    """Patch activations between clean and corrupt prompts.

    Draws how much of the metric each part restores (or breaks), and measures the largest effects again on held-out
    prompts.
    """
    from headwork.analyses.patch import Patching
    from headwork.analyses.patch import patch as run
    from headwork.analyses.setting import Setting
    from headwork.analyses.source import Source

    source = Source(
        task=task,
        pairs=pairs,
        clean=clean,
        corrupt=corrupt,
        answer=answer,
        wrong=wrong,
        counterfactual=counterfactual,
        bos=bos,
        prompts=prompts,
        seed=seed,
    )
    asked = Patching(
        site=site,
        by=by,  # type: ignore[arg-type] – checked with its nearest name
        direction=direction,  # type: ignore[arg-type]
        layers=layers,
        heads=heads,
        positions=positions,
        estimate=estimate,
    )
    with progress(as_json) as report:
        done = run(Setting(spec=spec, source=source, device=device, memory=memory, out=out, progress=report), asked)
    if as_json:
        print_summary(done)
        return
    head(done.summary)
    _print_top(done.summary["top"], done.summary["choices"])
    foot(done)


def _print_top(top: Sequence[dict[str, Any]], choices: dict[str, Any]) -> None:
    held_out = "held_out" in top[0]
    tokens = ("token",) if "token" in top[0] else ()
    shares = all(cell["normalised"]["value"] is not None for cell in top)
    kind = "normalised" if shares else "effect"
    heading = ">share of clean − corrupt" if shares else ">effect, in the metric's unit"
    print_table(
        (choices["site"], *tokens, heading, *[">middle half of prompts"] * shares, *[">held out"] * held_out),
        [
            (
                cell["cell"],
                *([cell["token"]] if tokens else []),
                interval(cell[kind]),
                *([_middle(cell["quartiles"])] if shares else []),
                *([interval(cell["held_out"][kind])] if held_out else []),
            )
            for cell in top
        ],
        f"Largest effects of {choices['method']}, {choices['direction']} [95 %]",
    )


def _middle(quartiles: Sequence[float] | None) -> str:
    from headwork.report.numbers import number

    return "–" if quartiles is None else " … ".join(number(q, 2) for q in quartiles)
