"""`headwork circuit SPEC`: circuit discovery on a task or a prompt pair."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from headwork.cli import options
from headwork.cli.analysis import as_json as print_summary
from headwork.cli.analysis import foot, head, interval
from headwork.cli.output import print_facts, print_table
from headwork.cli.progress import progress

_SHOWN = 10


def circuit(
    spec: options.Spec,
    task: options.TaskName = None,
    pairs: options.Pairs = None,
    clean: options.Clean = None,
    corrupt: options.Corrupt = None,
    answer: options.Answer = None,
    wrong: options.Wrong = None,
    counterfactual: options.Counterfactual = None,
    method: Annotated[
        str,
        typer.Option(
            metavar="METHOD",
            help="eap, eap-ig, eap-ig-activations, clean-corrupt, edge-patching, acdc or masks.",
        ),
    ] = "eap-ig",
    edges: Annotated[
        int | None,
        typer.Option(metavar="N", help="How many edges.", show_default="the fewest that keep 85 % of the metric"),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(metavar="T", help="Edges scored so much at least; for acdc, what a cut may cost in nats."),
    ] = None,
    ablation: Annotated[
        str,
        typer.Option(
            metavar="VALUE", help="What ablated parts write: counterfactual, zero, mean, mean-by-position or resample."
        ),
    ] = "counterfactual",
    selection: Annotated[
        str, typer.Option(metavar="top-n|greedy", help="The best edges, or a set grown from the logits.")
    ] = "top-n",
    order: Annotated[str, typer.Option(metavar="absolute|highest|lowest", help="Which scores are best.")] = "absolute",
    steps: Annotated[int, typer.Option(metavar="N", help="Steps of integrated gradients.")] = 5,
    draw: Annotated[int, typer.Option(metavar="N", help="Edges in the diagram, at most.")] = 16,
    prompts: options.Prompts = 32,
    seed: options.Seed = 0,
    bos: options.Bos = False,
    memory: options.Memory = None,
    device: options.Device = "cpu",
    out: options.Out = None,
    as_json: options.AsJson = False,
) -> None:
    """Find the circuit of a task.

    Scores every edge on discovery prompts, keeps the best, and measures on held-out prompts how much of the behaviour
    they have on their own.
    """
    from headwork.analyses.circuit import Discovery
    from headwork.analyses.circuit import circuit as run
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
    chosen: Any = {"method": method, "ablation": ablation, "selection": selection, "order": order}
    asked = Discovery(edges=edges, threshold=threshold, steps=steps, drawn=draw, **chosen)
    with progress(as_json) as report:
        done = run(Setting(spec=spec, source=source, device=device, memory=memory, out=out, progress=report), asked)
    if as_json:
        print_summary(done)
        return
    head(done.summary)
    _print_measured(done.summary)
    _print_edges(done.summary)
    foot(done)


def _print_measured(summary: Any) -> None:
    from headwork.report.numbers import number

    found, measured, choices = summary["circuit"], summary["measured"], summary["choices"]
    random, stable = measured["random"], measured["stability"]
    print_facts(
        {
            "circuit": f"{found['size']} of {found['of']} edges by {choices['method']} ({choices['paper']}); "
            f"size: {choices['size']}",
            "nodes": ", ".join(found["nodes"]),
            "faithful": f"{interval(measured['faithfulness'])} on {'held-out' if summary['held_out'] else 'the same'} "
            f"prompts, {choices['ablation_value']} ablation of the complement",
            "random": random["faithfulness"] is not None
            and f"{number(random['faithfulness'], 2)} on average of {random['circuits']} as large, best "
            f"{number(random['best'], 2)}",
            "CPR, CMD": measured["cpr"] is not None and f"{number(measured['cpr'], 3)}, {number(measured['cmd'], 3)}",
            "stability": stable
            and f"Jaccard {number(stable['jaccard'], 2)} [{number(stable['low'], 2)}, {number(stable['high'], 2)}] "
            f"between circuits of resampled {stable['resampled']}",
        }
    )


def _print_edges(summary: Any) -> None:
    from headwork.report.numbers import number

    edges = summary["edges"]
    more = f" ({_SHOWN} of {len(edges)}; all in the summary)" if len(edges) > _SHOWN else ""
    print_table(
        ("edge", ">score", ">fall of the metric without it [95 %]"),
        [(e["edge"], number(e["score"]), interval(e["effect"])) for e in edges[:_SHOWN]],
        f"Edges of the largest scores{more}",
    )
