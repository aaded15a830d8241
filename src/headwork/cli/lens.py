"""`headwork lens SPEC`: the logit lens or a tuned lens on a task or a prompt pair."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from headwork.cli import options
from headwork.cli.analysis import as_json as print_summary
from headwork.cli.analysis import foot, head, interval
from headwork.cli.output import print_table
from headwork.cli.progress import progress


def lens(
    spec: options.Spec,
    task: options.TaskName = None,
    pairs: options.Pairs = None,
    clean: options.Clean = None,
    corrupt: options.Corrupt = None,
    answer: options.Answer = None,
    wrong: options.Wrong = None,
    counterfactual: options.Counterfactual = None,
    tuned: Annotated[
        Path | None, typer.Option("--tuned", metavar="DIR", help="Read through this tuned lens too.")
    ] = None,
    train_tuned: Annotated[
        Path | None, typer.Option("--train-tuned", metavar="DIR", help="Train a tuned lens, write it and use it.")
    ] = None,
    steps: Annotated[int, typer.Option(metavar="N", help="Steps to train it for.")] = 250,
    prompts: options.Prompts = 32,
    seed: options.Seed = 0,
    bos: options.Bos = False,
    memory: options.Memory = None,
    device: options.Device = "cpu",
    out: options.Out = None,
    as_json: options.AsJson = False,
) -> None:
    """Read what the network would say at each layer.

    Draws the most likely token by layer on one prompt, and over prompts how far each layer is from the output and when
    the answer becomes likely.
    """
    from headwork.analyses.lens import Lensing
    from headwork.analyses.lens import lens as run
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
    asked = Lensing(tuned=tuned, train_tuned=train_tuned, steps=steps)
    with progress(as_json) as report:
        done = run(Setting(spec=spec, source=source, device=device, memory=memory, out=out, progress=report), asked)
    if as_json:
        print_summary(done)
        return
    head(done.summary, "prompts")
    _print_layers(done.summary["layers"], done.summary["target"])
    foot(done)


def _print_layers(layers: dict[str, list[dict[str, Any]]], target: str) -> None:
    for name, rows in layers.items():
        print_table(
            (name.replace("_", " "), ">KL from the output", f">log-probability of {target}", ">median rank", ">first"),
            [
                (
                    row["site"],
                    interval(row["kl"]),
                    interval(row["logprob"]),
                    f"{row['median_rank']:g}",
                    f"{row['first']:.0%}",
                )
                for row in rows
            ],
            "At the answer's position, nats [95 %]",
        )
