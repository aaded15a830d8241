"""`headwork circuit`: a circuit found on discovery prompts and measured on held-out ones."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from headwork.analyses.circuit_picture import Drawn, circuit_picture, curve_picture
from headwork.analyses.circuit_scores import PAPERS, Method, Scored, above, check_method, scored
from headwork.analyses.published import Published, publish_analysis
from headwork.analyses.setting import Setting, both_runs, mean, plain, prompts_described, ratio
from headwork.errors import UserError, unknown
from headwork.methods.ablation_choices import AblationValue
from headwork.methods.circuit import Circuit
from headwork.methods.circuit_curves import circuit_curve
from headwork.methods.circuit_measures import faithfulness, minimality
from headwork.methods.circuit_metric import circuit_metric
from headwork.methods.circuit_selection import Order, Selection, random_paths, selected
from headwork.methods.circuit_stability import circuit_stability
from headwork.model.transformer import Transformer
from headwork.studies.record import Estimate
from headwork.tasks.task_prompts import TaskPrompts

if TYPE_CHECKING:
    import xarray

NAME = "circuit"
ENOUGH = 0.85
"""The share of the metric that a circuit of no stated size must keep on the discovery prompts; as much may be added."""
_THRESHOLD = 0.01
_RANDOM = 20
_MOST_MEASURED = 128


@dataclass(frozen=True, kw_only=True)
class Discovery:
    """How a circuit is found and measured. `drawn` is how many edges the diagram shows at most.

    Its size is a number of `edges`, a `threshold` on the scores' sizes (for ACDC, of what a cut may cost, by default
    0.01 nats), or the smallest on a grid that keeps 85 % of the metric on the discovery prompts, and
    not over 115 %.
    """

    method: Method = "eap-ig"
    edges: int | None = None
    threshold: float | None = None
    ablation: AblationValue = "counterfactual"
    selection: Selection = "top-n"
    order: Order = "absolute"
    steps: int = 5
    drawn: int = 16

    def __post_init__(self) -> None:
        check_method(self.method)
        accepted = {"ablation": AblationValue, "selection": Selection, "order": Order}
        for name, kind in accepted.items():
            if getattr(self, name) not in get_args(kind):
                raise unknown(f"{name}", str(getattr(self, name)), get_args(kind))
        if self.edges is not None and self.threshold is not None:
            raise UserError("--edges and --threshold were given; a circuit's size is one of them.")
        for name, value in (("edges", self.edges), ("steps", self.steps), ("draw", self.drawn)):
            if value is not None and value < 1:
                raise UserError(f"--{name} is {value}; it must be 1 or more.")
        if self.threshold is not None and not (math.isfinite(self.threshold) and self.threshold > 0):
            raise UserError(f"--threshold is {self.threshold}; it must be a number above 0.")
        if (
            self.threshold is not None
            and self.method != "acdc"
            and (self.selection, self.order) != ("top-n", "absolute")
        ):
            raise UserError(
                "--threshold keeps every edge whose score is of that size or more, of either sign; --selection and "
                "--order choose a number of edges: give --edges with them."
            )
        if self.method == "acdc" and self.edges is not None:
            raise UserError("ACDC decides edge by edge; give it a --threshold instead of --edges.")
        if self.method == "masks" and self.threshold is not None:
            raise UserError("Learned masks are trained to a size; give them --edges instead of --threshold.")

    def options(self) -> dict[str, object]:
        """As options of the command line, the defaults left out."""
        standard = Discovery()
        names = {"drawn": "draw"}
        return {
            names.get(name, name): getattr(self, name)
            for name in ("method", "edges", "threshold", "ablation", "selection", "order", "steps", "drawn")
            if getattr(self, name) != getattr(standard, name)
        }


def circuit(setting: Setting, asked: Discovery) -> Published:
    """Find the circuit, measure it, draw it, and publish. Raises `UserError`, before any long work, for what does not
    exist or fit."""
    started = time.perf_counter()
    out = setting.folder(NAME)
    model = setting.network()
    whole = Circuit.whole(model.config)
    if asked.edges is not None and asked.edges > len(whole):
        raise UserError(f"--edges is {asked.edges}; this network has {len(whole)}.")
    prompts = setting.source.build(model)
    held_out = setting.source.build(model, "held-out") if setting.source.splits else prompts
    found = _found(setting, model, prompts, asked)
    chosen = found.circuit or _sized(setting, model, prompts, found.scores, asked)
    if not chosen:
        raise UserError(f"No edge passes the threshold {asked.threshold}; the largest score is {_largest(found):.3g}.")
    measured = _measured(setting, model, prompts, held_out, chosen, found, asked)
    setting.progress("drawing", 0.97)
    drawn = _drawn(measured["without_edge"], held_out, asked.drawn)
    pictures = {"circuit": circuit_picture(model.config, held_out, chosen, drawn, asked.method)}
    if "curve" in measured:
        own = faithfulness_of(measured["faithfulness"], held_out)
        pictures["curve"] = curve_picture(held_out, measured["curve"], len(chosen) / len(whole), own)
    summary = setting.described(NAME, model, asked.options())
    summary |= {
        "choices": _choices(asked, found, measured),
        "discovery": prompts_described(prompts, *both_runs(model, prompts)),
        "held_out": None if held_out is prompts else prompts_described(held_out, *both_runs(model, held_out)),
        "circuit": {"size": len(chosen), "of": len(whole), "nodes": list(chosen.nodes), "pruned": len(chosen.prune())},
        "measured": _numbers(measured, held_out),
        "edges": _edges(chosen, found.scores, drawn),
        "drawn": len(drawn.shown),
        "next": _next(setting, asked),
        "seconds": round(time.perf_counter() - started, 3),
    }
    datasets = dict(measured)
    datasets["scores"] = found.scores.to_dataset(name="score").assign(
        in_circuit=(("writer", "reader"), chosen.edges), visible=(("writer", "reader"), whole.edges)
    )
    return publish_analysis(out, datasets, pictures, summary)


def _found(setting: Setting, model: Transformer, prompts: TaskPrompts, asked: Discovery) -> Scored:
    n, threshold = asked.edges, asked.threshold
    if asked.method == "masks" and n is None:
        n = max(1, len(Circuit.whole(model.config)) // 5)
    if asked.method == "acdc" and threshold is None:
        threshold = _THRESHOLD
    doing = f"finding the circuit by {asked.method}"
    return scored(
        model,
        prompts,
        asked.method,
        n=n,
        threshold=threshold,
        value=asked.ablation,
        steps=asked.steps,
        seed=setting.source.seed,
        memory=setting.memory,
        progress=lambda share: setting.progress(doing, 0.5 * share),
    )


def _sized(
    setting: Setting, model: Transformer, prompts: TaskPrompts, scores: xarray.DataArray, asked: Discovery
) -> Circuit:
    """The circuit of the size asked for; without one, the smallest on the grid that is faithful enough."""
    if asked.edges is not None:
        return selected(model.config, scores, asked.edges, asked.selection, asked.order)
    if asked.threshold is not None:
        return above(model, scores, asked.threshold)
    setting.progress("choosing its size", 0.55)
    total = len(Circuit.whole(model.config))
    sizes = sorted({max(1, round(total * share)) for share in np.geomspace(0.002, 1, 25)})
    circuits = [selected(model.config, scores, n, asked.selection, asked.order) for n in sizes]
    measure = circuit_metric(
        model, prompts.pairs, prompts.metric, value=asked.ablation, seed=setting.source.seed, memory=setting.memory
    )
    values = measure([*circuits, Circuit.empty(model.config)]).mean(1)
    gap = values[-2] - values[-1]
    if abs(gap) < 1e-9 * (abs(values[-2]) + abs(values[-1])):
        raise UserError("Ablating every edge leaves the metric as it is, so there is no circuit to find on this task.")
    return circuits[first_faithful((values[:-1] - values[-1]) / gap)]


def first_faithful(shares: np.ndarray) -> int:
    """The first share within 1 − `ENOUGH` of 1; the last, that of the whole network, always is.

    Three times the metric is no more faithful than none of it: what held the circuit back is missing.
    """
    return int(np.flatnonzero(np.abs(1 - shares) <= 1 - ENOUGH)[0])


def _measured(
    setting: Setting,
    model: Transformer,
    discovery: TaskPrompts,
    prompts: TaskPrompts,
    chosen: Circuit,
    found: Scored,
    asked: Discovery,
) -> dict[str, xarray.Dataset]:
    """Everything that is measured on held-out prompts, and the stability of what was found on discovery ones."""
    import xarray

    common: Any = {"value": asked.ablation, "seed": setting.source.seed, "memory": setting.memory}
    pairs, metric, seed = prompts.pairs, prompts.metric, setting.source.seed
    setting.progress("measuring it on held-out prompts", 0.6)
    measured = {"faithfulness": faithfulness(model, pairs, metric, chosen, **common)}
    draw = np.random.default_rng(seed)
    others = [random_paths(model.config, len(chosen), draw) for _ in range(_RANDOM)]
    values = circuit_metric(model, pairs, metric, **common)(others)
    measured["random_circuits"] = xarray.Dataset(
        {"metric": (("sample", "prompt"), values, {"units": "units of the metric"})},
        coords={"prompt": list(pairs.labels)},
        attrs={"size": len(chosen), "seed": seed, "edges": "at random, on paths from the embedding to the logits"},
    )
    setting.progress("removing its edges one by one", 0.7)
    parts = _largest_edges(chosen, found.scores)
    measured["without_edge"] = minimality(model, pairs, metric, chosen, parts=parts, sets=0, **common)
    if found.circuit is None:
        setting.progress("measuring circuits of other sizes", 0.85)
        how: Any = {"selection": asked.selection, "order": asked.order}
        measured["curve"] = circuit_curve(model, pairs, metric, found.scores, **how, **common)
        groups = _groups(discovery)
        if found.by_prompt is not None and len(groups or discovery.templates) > 1:
            measured["stability"] = circuit_stability(
                model.config, found.by_prompt, len(chosen), groups=groups, seed=seed, **how
            )
    return measured


def _groups(prompts: TaskPrompts) -> tuple[str, ...] | None:
    """The templates, where several prompts share one and there is more than one."""
    distinct = len(set(prompts.templates))
    return prompts.templates if 1 < distinct < len(prompts) else None


def _largest_edges(chosen: Circuit, scores: xarray.DataArray) -> list[str]:
    """The circuit's edges by the size of their scores, at most so many as are measured one by one."""
    score = _score_of(chosen, scores)
    return sorted(chosen.names, key=lambda name: -abs(score[name]))[:_MOST_MEASURED]


def _score_of(chosen: Circuit, scores: xarray.DataArray) -> dict[str, float]:
    values = scores.transpose("writer", "reader").values
    return dict(zip(chosen.names, values[chosen.edges].tolist()))


def _largest(found: Scored) -> float:
    return float(np.nanmax(np.abs(found.scores.values)))


def _drawn(without: xarray.Dataset, prompts: TaskPrompts, most: int) -> Drawn:
    """What the metric falls by without each edge, and the edges that are drawn: those of the largest scores.

    Those of the largest falls would be chosen on the very prompts that the drawn falls are measured on.
    """
    change = without["change_by_prompt"].isel(set=0)
    effects = {str(name): mean(-change.sel(part=name).values, prompts) for name in without["part"].values}
    return Drawn(effects, tuple(effects)[:most])


def _choices(asked: Discovery, found: Scored, measured: Mapping[str, xarray.Dataset]) -> dict[str, Any]:
    six = {k: v for k, v in measured["faithfulness"].attrs.items() if k.startswith("ablation_")}
    size = {"edges": asked.edges, "threshold": asked.threshold}
    rule = next((f"--{name} {value}" for name, value in size.items() if value is not None), None)
    automatic = f"the smallest that keeps {ENOUGH:.0%} of the metric on the discovery prompts"
    if found.circuit is not None:
        automatic = f"--threshold {_THRESHOLD}" if asked.method == "acdc" else "a fifth of all edges"
    return {
        "method": asked.method,
        "paper": PAPERS[asked.method],
        "score": found.words,
        "size": rule or automatic,
        "selection": None if found.circuit is not None else asked.selection,
        "order": None if found.circuit is not None else asked.order,
        "steps": asked.steps if asked.method.startswith("eap-ig") else None,
        **six,
    }


def faithfulness_of(faithful: xarray.Dataset, prompts: TaskPrompts) -> Estimate:
    """The share of the metric that the circuit keeps, with its interval."""
    kept, gap = (faithful[name].values - faithful["empty"].values for name in ("circuit", "whole"))
    return ratio(kept, gap, prompts)


def _numbers(measured: Mapping[str, xarray.Dataset], prompts: TaskPrompts) -> dict[str, Any]:
    faithful = measured["faithfulness"]
    gap = faithful["whole"].values - faithful["empty"].values
    random = measured["random_circuits"]["metric"].values - faithful["empty"].values
    share = random.mean(1) / gap.mean() if gap.mean() else np.full(len(random), np.nan)
    numbers: dict[str, Any] = {
        "faithfulness": plain(faithfulness_of(faithful, prompts)),
        "circuit": plain(mean(faithful["circuit"].values, prompts)),
        "whole": plain(mean(faithful["whole"].values, prompts)),
        "empty": plain(mean(faithful["empty"].values, prompts)),
        "random": {"circuits": len(random), "faithfulness": _finite(share.mean()), "best": _finite(share.max())},
        "cpr": None,
        "cmd": None,
        "curve": None,
        "stability": None,
    }
    if "curve" in measured:
        curve = measured["curve"]
        numbers["cpr"], numbers["cmd"] = _finite(curve["cpr"].item()), _finite(curve["cmd"].item())
        numbers["curve"] = [
            {"fraction": float(f), "edges": int(n), "faithfulness": _finite(v)}
            for f, n, v in zip(curve["fraction"].values, curve["size"].values, curve["faithfulness"].values)
        ]
    if "stability" in measured:
        stable = measured["stability"]
        numbers["stability"] = {
            "jaccard": _finite(stable["jaccard"].item()),
            "low": _finite(stable["jaccard_low"].item()),
            "high": _finite(stable["jaccard_high"].item()),
            "resamples": int(stable.attrs["resamples"]),
            "resampled": stable.attrs["resampled"],
        }
    return numbers


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def _edges(chosen: Circuit, scores: xarray.DataArray, drawn: Drawn) -> list[dict[str, Any]]:
    """The circuit's edges, those of the largest scores first."""
    score = _score_of(chosen, scores)
    on_a_path = set(chosen.prune().names)
    return [
        {
            "edge": name,
            "score": _finite(score[name]),
            "effect": plain(drawn.effects[name]) if name in drawn.effects else None,
            "on_a_path": name in on_a_path,
        }
        for name in sorted(chosen.names, key=lambda name: -abs(score[name]))
    ]


def _next(setting: Setting, asked: Discovery) -> str:
    import dataclasses

    if asked.method != "acdc":
        other = dataclasses.replace(asked, method="acdc", edges=None, threshold=None)
    else:
        other = dataclasses.replace(asked, method="eap-ig", threshold=None)
    return setting.command(NAME, other.options())
