"""The figures: the circuit with measured effects, losses, head maps, attention pictures, costs, follow-ups."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import xarray

from headwork import draw
from headwork.findings.figure import Figure, Interval, ShownLevel, Summary
from headwork.tasks.repeated_sequences import followers

# A diagram with more edges than this cannot be read; the largest are drawn and the caption says so.
_MOST_EDGES = 14


def figures(
    data: xarray.Dataset, heads: Mapping[str, Sequence[str]], levels: Sequence[ShownLevel], summary: Summary
) -> list[Figure]:
    """All figures of one reproduction; `summary` estimates a mean over sequences."""
    made = [_circuit(data, heads, summary), _losses(data, summary), *_maps(data, heads)]
    made += [_attention(data, heads), _costs(data, heads, summary)]
    if levels:
        made += [
            _followups("followup-advantage", "advantage", "advantage inside repeats [nats]", 0.0, levels),
            _followups("followup-score", "induction-score", "induction score of the best head", None, levels),
        ]
    return [*made, _grid(data, summary)]


def _n(data: xarray.Dataset) -> str:
    return f"n = {data.sizes['sequence']} held-out sequences; 95 % intervals (t)"


def _circuit(data: xarray.Dataset, heads: Mapping[str, Sequence[str]], summary: Summary) -> Figure:
    found, senders = list(heads["induction"]), list(heads["previous-token"])
    edges = [
        draw.CircuitEdge(f"head {h}", "logits", *_ends(summary(data["path_direct"].sel(receiver=i).values)))
        for i, h in enumerate(found)
    ]
    if "pair" in data:
        for name, values in zip(data["pair"].values, data["path_pair"].values):
            sender, receiver = str(name).split("→")
            edges.append(draw.CircuitEdge(f"head {sender}", f"head {receiver}", *_ends(summary(values)), route="k"))
    shown = sorted(edges, key=lambda e: -abs(e.effect))[:_MOST_EDGES]
    layers = sorted({int(h.split(".")[0]) for h in [*found, *senders]})
    named = {name for edge in shown for name in (edge.source, edge.target)} | {"logits"}
    nodes = [draw.CircuitNode("logits", "logits", len(layers), kind="logits")]
    for head in dict.fromkeys([*found, *senders]):  # in an untrained network one head may pass for both
        if f"head {head}" in named:
            roles = [role for role, group in (("induction", found), ("previous token", senders)) if head in group]
            layer = layers.index(int(head.split(".")[0]))
            nodes.append(draw.CircuitNode(f"head {head}", head, layer, note=", ".join(roles), emphasised=True))
    left_out = f" The {len(shown)} largest of {len(edges)} paths are drawn." if len(shown) < len(edges) else ""
    return Figure(
        name="circuit",
        slot="circuit",
        title="The measured circuit",
        caption=(
            "How much the loss in the last copy rises when one path alone carries what it would carry with the earlier "
            "copies replaced: from previous-token heads into the keys (k) of the found heads, and from those straight "
            "into the logits." + left_out
        ),
        basis=_n(data),
        picture=draw.circuit(
            nodes,
            shown,
            effect_label="rise of the loss [nats]",
            alt=(
                f"Circuit diagram: {', '.join(senders) or 'no head'} into the keys of {', '.join(found)}, "
                "and these into the logits; edges carry path-patching effects with intervals."
            ),
        ),
    )


def _losses(data: xarray.Dataset, summary: Summary) -> Figure:
    series = []
    for copy in data["copy"].values if "copy" in data.coords else range(data.sizes["copy"]):
        values = data["loss_by_place"].isel(copy=int(copy)).values
        places = [i for i in range(values.shape[0]) if np.isfinite(values[i]).sum() > 1]
        estimates = [summary(values[i]) for i in places]
        series.append(
            draw.Series(
                f"copy {int(copy) + 1}",
                [i + 1 for i in places],
                [_number(e.value) for e in estimates],
                [_number(e.low) for e in estimates],
                [_number(e.high) for e in estimates],
            )
        )
    outside = summary(data["loss_outside"].values).value
    return Figure(
        name="loss-by-place",
        slot="main",
        title="Loss by place in a copy",
        caption=(
            "Loss of the next token, by how many tokens of the copy have been read. In the first copy nothing tells "
            "what comes next; from the second on the earlier copy does."
        ),
        basis=_n(data),
        width=0.5,
        picture=draw.curves(
            series,
            x_label="tokens of the copy read",
            y_label="loss [nats]",
            references=[draw.Reference(float(outside or 0), "outside repeats")],
            alt="Curves of the loss by place in a copy, one for each copy, with intervals.",
            width_cm=8.2,
            height_cm=5.2,
        ),
    )


def _maps(data: xarray.Dataset, heads: Mapping[str, Sequence[str]]) -> list[Figure]:
    shown = (
        ("induction", "Induction score", heads["induction"]),
        ("previous", "Previous-token score", heads["previous-token"]),
        ("duplicate", "Duplicate-token score", ()),
    )
    made = []
    for name, title, marked in shown:
        values = data[f"head_{name}"].mean("sequence").values
        made.append(
            Figure(
                name=f"map-{name}",
                slot="circuit",
                title=title,
                caption=f"{title} of every head"
                + ("; outlined: the heads chosen on discovery sequences." if marked else "."),
                basis=f"mean over n = {data.sizes['sequence']} held-out sequences",
                width=0.33,
                picture=draw.heatmap(
                    values,
                    rows=[str(i) for i in range(values.shape[0])],
                    columns=[str(i) for i in range(values.shape[1])],
                    row_label="layer",
                    column_label="head",
                    value_label="attention",
                    limits=(0.0, 1.0),
                    marks=[(int(h.split(".")[0]), int(h.split(".")[1])) for h in marked],
                    alt=f"Head by layer map of the {title.lower()}; largest {float(values.max()):.2f}.",
                    width_cm=5.4,
                ),
            )
        )
    return made


def _attention(data: xarray.Dataset, heads: Mapping[str, Sequence[str]]) -> Figure:
    scores = data["head_induction"].mean("sequence")
    best = max(
        heads["induction"], key=lambda h: float(scores.sel(layer=int(h.split(".")[0]), head=int(h.split(".")[1])))
    )
    layer, head = (int(part) for part in best.split("."))
    panels = []
    for case in data["case"].values:
        one = data.sel(case=case)
        score = float(data["head_induction"].sel(layer=layer, head=head, sequence=int(one["case_sequence"])))
        panels.append(
            draw.AttentionPanel(
                one["attention"].sel(shown_layer=layer, head=head).values,
                [str(t) for t in one["tokens"].values],
                f"{case} sequence, score {score:.2f}",
                _followed(one),
            )
        )
    return Figure(
        name="attention",
        slot="attention",
        title=f"Attention of head {best}",
        caption=(
            f"Where head {best}, the one with the highest score, looks from each token. Outlined: the tokens that "
            "followed earlier copies of the current one, at the positions where an earlier copy tells what comes next."
        ),
        basis="two examples, chosen by rule: the sequences in which this head's score is the median and the lowest",
        picture=draw.attention_grid(
            panels,
            columns=2,
            alt=f"Attention maps of head {best} on the median and the worst sequence.",
        ),
        view=_view(data, heads, best),
    )


def _view(data: xarray.Dataset, heads: Mapping[str, Sequence[str]], best: str) -> draw.View:
    median = data.sel(case="median")
    names = [f"{layer}.{head}" for layer in data["shown_layer"].values for head in data["head"].values]
    chosen = [*heads["induction"], *heads["previous-token"]]
    if len(names) > 24:
        names = [name for name in names if name in chosen]
    patterns = [
        median["attention"].sel(shown_layer=int(n.split(".")[0]), head=int(n.split(".")[1])).values for n in names
    ]
    return draw.attention_view(
        np.stack(patterns),
        tokens=[str(t) for t in median["tokens"].values],
        heads=names,
        marked=[name for name in names if name in chosen],
        start=best,
        alt="Interactive attention on the median sequence: pick a head, then a token.",
    )


def _followed(one: xarray.Dataset) -> np.ndarray:
    """Where induction attends: followers of earlier copies, seen from the predictable positions."""
    keys = followers(torch.from_numpy(one["tokens"].values)[None])[0].numpy()
    return keys & one["predictable"].values[:, None]


def _costs(data: xarray.Dataset, heads: Mapping[str, Sequence[str]], summary: Summary) -> Figure:
    together = summary(data["ablation_cost"].values)
    bars = [draw.BarRow("found heads together", *_ends(together), kind="found heads", group="together")]
    if "matched_set" in data:
        for name, values in zip(data["matched_set"].values[:6], data["matched_set_cost"].values):
            bars.append(draw.BarRow(str(name), *_ends(summary(values)), kind="matched set", group="together"))
    singles = {str(h): summary(v) for h, v in zip(data["single_head"].values, data["single_cost"].values)}
    kinds = dict.fromkeys(heads["previous-token"], "previous-token heads")
    kinds |= dict.fromkeys(heads["induction"], "found heads")
    order = sorted(singles, key=lambda h: -(singles[h].value or 0))[:12]
    bars += [draw.BarRow(h, *_ends(singles[h]), kind=kinds.get(h, "other heads"), group="singly") for h in order]
    matched = "" if "matched_set" in data else " No matched set exists in this network: that control is unavailable."
    return Figure(
        name="ablation",
        slot="secondary",
        title="What the heads are worth",
        caption="Rise of the loss inside repeats when heads are ablated, together and one at a time." + matched,
        basis=_n(data),
        width=0.5,
        picture=draw.interval_bars(
            bars,
            x_label="rise of the loss inside repeats [nats]",
            reference=0.0,
            alt="Costs of ablating the found heads together, matched sets, and single heads, with intervals.",
            width_cm=8.2,
        ),
    )


def _followups(name: str, claim: str, label: str, reference: float | None, levels: Sequence[ShownLevel]) -> Figure:
    rows = []
    for level in levels:
        estimate = level.estimates.get(claim)
        note = level.verdict + (f"; {level.diverged} diverged" if level.diverged else "")
        points = [p for p in level.per_seed.get(claim, ()) if p is not None]
        rows.append(
            draw.ForestRow(
                f"{level.value}{' (headline)' if level.baseline else ''}",
                estimate.value if estimate else None,
                estimate.low if estimate else None,
                estimate.high if estimate else None,
                points,
                level.factor,
                note,
            )
        )
    seeds = max(len(level.per_seed.get(claim, ())) for level in levels)
    return Figure(
        name=name,
        slot="followups",
        title=label[0].upper() + label[1:],
        caption="Each factor varied alone; small dots are networks trained from different seeds.",
        basis=f"n = {seeds} networks for each value; 95 % intervals over networks (t)",
        picture=draw.forest(
            rows, x_label=label, reference=reference, alt=f"Forest plot of {label} for every value of every factor."
        ),
    )


def _grid(data: xarray.Dataset, summary: Summary) -> Figure:
    bars = []
    for value in data["value"].values:
        bars.append(
            draw.BarRow(str(value), *_ends(summary(data["cost"].sel(value=value).values)), kind="found heads together")
        )
        if "matched_cost" in data:
            costs = data["matched_cost"].sel(value=value).values
            bars.append(draw.BarRow(str(value), *_ends(summary(costs)), kind="matched sets, mean"))
    return Figure(
        name="ablation-grid",
        slot="robustness",
        title="The choice of ablation",
        caption="Cost of ablating the found heads together, for each value that an ablated head's output can take.",
        basis=_n(data),
        width=0.6,
        picture=draw.interval_bars(
            bars,
            x_label="rise of the loss inside repeats [nats]",
            reference=0.0,
            alt="Ablation cost under zero, mean, mean by position and resample ablation, with intervals.",
            width_cm=10,
        ),
    )


def _ends(interval: Interval) -> tuple[float, float | None, float | None]:
    return _number(interval.value), interval.low, interval.high


def _number(value: float | None) -> float:
    return math.nan if value is None else value
