"""`headwork patch`: activation patching on a task, chosen on discovery prompts and measured again on held-out ones."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from headwork.analyses.published import Published, publish_analysis
from headwork.analyses.setting import Setting, distinct, mean, plain, prompts_described, ratio
from headwork.draw import BarRow, Picture, heatmap, interval_bars
from headwork.errors import UserError
from headwork.methods.ablation_choices import AblationChoices, Direction
from headwork.methods.activation_patching import activation_patching
from headwork.methods.cells import By, cells_of
from headwork.methods.node_attribution import node_attribution
from headwork.methods.room import room
from headwork.model.transformer import Transformer
from headwork.tasks.task_prompts import TaskPrompts

if TYPE_CHECKING:
    import xarray

NAME = "patch"
_TOP = 8
_PATCHED = 0.8
"""The share of the work that the first map takes; the rest measures the best cells again."""


@dataclass(frozen=True, kw_only=True)
class Patching:
    """What is patched; `by` None is each head where the site has heads, otherwise each position."""

    site: str = "attn.z"
    by: By | None = None
    direction: Direction = "denoising"
    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    positions: tuple[int, ...] | None = None
    estimate: bool = False

    def options(self) -> dict[str, object]:
        """As options of the command line, the defaults left out."""
        listed = {name: getattr(self, name) for name in ("layers", "heads", "positions")}
        return {
            "site": None if self.site == "attn.z" else self.site,
            "by": self.by,
            "direction": None if self.direction == "denoising" else self.direction,
            **{name: None if v is None else ",".join(map(str, v)) for name, v in listed.items()},
            "estimate": self.estimate,
        }


def patch(setting: Setting, asked: Patching) -> Published:
    """Patch, draw the map, measure the largest effects on held-out prompts, and publish all of it.

    Raises `UserError`, before any long work, for what does not exist or fit.
    """
    started = time.perf_counter()
    out = setting.folder(NAME)
    model = setting.network()
    prompts = setting.source.build(model)
    held_out = setting.source.build(model, "held-out") if setting.source.splits else None
    chosen = _with_by(model, prompts, asked)
    _same_places(prompts, held_out, chosen)
    found = _measured(setting, model, prompts, chosen)
    top = _top(found)
    again = None if held_out is None else _again(setting, model, held_out, chosen, top)
    setting.progress("drawing", 0.97)
    pictures = {"effect": _picture(found, prompts, chosen, top)}
    summary = setting.described(NAME, model, asked.options())
    summary |= {
        "choices": _choices(found, asked),
        "discovery": prompts_described(prompts, found["clean"].values, found["corrupt"].values),
        "held_out": None
        if held_out is None or again is None
        else prompts_described(held_out, again[0]["clean"].values, again[0]["corrupt"].values),
        "top": [
            _cell_described(found, prompts, cell, held_out, None if again is None else again[i])
            for i, cell in enumerate(top)
        ],
        "next": _next(setting, asked, top),
        "seconds": round(time.perf_counter() - started, 3),
    }
    datasets = {"discovery": found}
    if again is not None:
        datasets["held_out"] = _joined(again, top)
    return publish_analysis(out, datasets, pictures, summary)


def _with_by(model: Transformer, prompts: TaskPrompts, asked: Patching) -> Patching:
    """What was asked for with `by` decided, and all of it checked to exist."""
    import dataclasses

    by: By = asked.by or "position"
    if asked.by is None:
        cells = cells_of(model.config, prompts.pairs, asked.site, "layer", asked.layers, asked.heads, asked.positions)
        by = "head" if cells.every_head else "position"
    cells_of(model.config, prompts.pairs, asked.site, by, asked.layers, asked.heads, asked.positions)
    return dataclasses.replace(asked, by=by)


def _same_places(prompts: TaskPrompts, held_out: TaskPrompts | None, asked: Patching) -> None:
    """Raise `UserError` where a position of the discovery prompts would be another place, or none, in held-out ones."""
    apart = asked.positions is not None or asked.by in ("position", "head-position")
    lengths = [some.pairs.clean.shape[1] for some in (prompts, held_out or prompts)]
    if apart and lengths[0] != lengths[1]:
        raise UserError(
            f"The discovery prompts of {prompts.task} have {lengths[0]} tokens, the held-out ones {lengths[1]}, so "
            "that positions are not the same places in both; give prompts of one length, or patch by head or by layer."
        )


def _measured(setting: Setting, model: Transformer, prompts: TaskPrompts, asked: Patching) -> xarray.Dataset:
    cells = cells_of(
        model.config, prompts.pairs, asked.site, asked.by or "layer", asked.layers, asked.heads, asked.positions
    )
    n, length = prompts.pairs.clean.shape
    if asked.estimate:
        total, doing = n, "estimating by attribution"
    else:
        held = room(model, n, length, cells.site.name, setting.memory)
        total, doing = math.prod(cells.shape) * math.ceil(n / held.prompts), "patching"
    done = 0

    def report(count: int) -> None:
        nonlocal done
        done += count
        setting.progress(doing, _PATCHED * min(done / total, 1.0))

    method = node_attribution if asked.estimate else activation_patching
    return method(
        model,
        prompts.pairs,
        prompts.metric,
        site=asked.site,
        by=asked.by or "layer",
        direction=asked.direction,
        layers=asked.layers,
        heads=asked.heads,
        positions=asked.positions,
        memory=setting.memory,
        progress=report,
    )


def _top(found: xarray.Dataset) -> list[dict[str, int]]:
    """The cells of the largest mean effects, whichever their sign."""
    effect = found["effect"].mean("prompt")
    order = np.argsort(-np.abs(effect.values).ravel(), kind="stable")[: min(_TOP, effect.size)]
    places = (np.unravel_index(i, effect.shape) for i in order)
    return [{str(d): int(found[d].values[j]) for d, j in zip(effect.dims, place)} for place in places]


def _again(
    setting: Setting, model: Transformer, prompts: TaskPrompts, asked: Patching, top: Sequence[Mapping[str, int]]
) -> list[xarray.Dataset]:
    """Each chosen cell patched in the held-out prompts: by patching, also where the choice was an estimate's."""
    found = []
    for i, cell in enumerate(top):
        setting.progress("measuring the largest on held-out prompts", _PATCHED + 0.15 * i / len(top))
        head = cell.get("head", cell.get("kv_head"))
        position = cell.get("position")
        found.append(
            activation_patching(
                model,
                prompts.pairs,
                prompts.metric,
                site=asked.site,
                by=asked.by or "layer",
                direction=asked.direction,
                layers=[cell["layer"]],
                heads=asked.heads if head is None else [head],
                positions=asked.positions if position is None else [position],
                memory=setting.memory,
            ).squeeze(list(cell))
        )
    return found


def _joined(again: Sequence[xarray.Dataset], top: Sequence[Mapping[str, int]]) -> xarray.Dataset:
    import xarray

    cells = [one.drop_vars(list(cell)) for one, cell in zip(again, top)]
    names = xarray.Variable("cell", [cell_name(cell) for cell in top])
    # The runs' own metrics are the same but for rounding, which depends on the site that is kept: the first one's stay.
    measured = ["effect", "normalised", "normalised_by_prompt"]
    joined = xarray.concat(cells, names, data_vars=measured, coords="minimal", compat="override")
    return joined.assign_attrs({**again[0].attrs, "patched_positions": [], "patched_heads": []})


def cell_name(cell: Mapping[str, int]) -> str:
    """`1.3 at 12`: head, or layer, and position."""
    head = cell.get("head", cell.get("kv_head"))
    where = f"layer {cell['layer']}" if head is None else f"{cell['layer']}.{head}"
    return where + (f" at {cell['position']}" if "position" in cell else "")


def _cell_described(
    found: xarray.Dataset,
    prompts: TaskPrompts,
    cell: Mapping[str, int],
    held_out: TaskPrompts | None,
    again: xarray.Dataset | None,
) -> dict[str, Any]:
    here = found.sel(dict(cell))
    spread = here["normalised_by_prompt"].values
    spread = spread[np.isfinite(spread)]
    described: dict[str, Any] = {
        "cell": cell_name(cell),
        **cell,
        "effect": plain(mean(here["effect"].values, prompts)),
        "normalised": plain(ratio(here["effect"].values, _gap(found), prompts)),
        "quartiles": [round(float(q), 6) for q in np.quantile(spread, [0.25, 0.75])] if len(spread) else None,
    }
    if "position" in cell:
        described["token"] = prompts.axis[cell["position"]]
    if held_out is not None and again is not None:
        described["held_out"] = {
            "effect": plain(mean(again["effect"].values, held_out)),
            "normalised": plain(ratio(again["effect"].values, _gap(again), held_out)),
        }
    return described


def _gap(found: xarray.Dataset) -> np.ndarray:
    """What there is to change at most: other run − base run."""
    gap = found["clean"].values - found["corrupt"].values
    return gap if found.attrs["direction"] == "denoising" else -gap


def _numbers(chosen: Sequence[int] | None) -> list[int] | str:
    return "all" if chosen is None else list(chosen)


def _choices(found: xarray.Dataset, asked: Patching) -> dict[str, Any]:
    attrs = found.attrs
    component = "residual stream" if "resid" in attrs["site"] else "MLPs" if "mlp" in attrs["site"] else "heads"
    positions = "each position apart" if "position" in found.dims else f"from {attrs['first_position']} on, together"
    choices = AblationChoices(
        granularity="node",
        component=component,
        value="counterfactual",
        direction=attrs["direction"],
        ablated="circuit",
        positions=positions,
    )
    return {
        "method": attrs["method"],
        "site": attrs["site"],
        "by": attrs["by"],
        "direction": attrs["direction"],
        "layers": _numbers(asked.layers),
        "heads": _numbers(asked.heads),
        "positions": _numbers(asked.positions),
        **choices.attrs(),
    }


def _picture(found: xarray.Dataset, prompts: TaskPrompts, asked: Patching, top: Sequence[Mapping[str, int]]) -> Picture:
    into, source = ("corrupt", "clean") if asked.direction == "denoising" else ("clean", "corrupt")
    estimated = " (estimate)" if asked.estimate else ""
    what = f"{found.attrs['site']} of the {source} run put into the {into} run{estimated}"
    undefined = not distinct(found["clean"].values, found["corrupt"].values, prompts)
    values = found["effect"].mean("prompt") if undefined else found["normalised"]
    verb = "restored" if asked.direction == "denoising" else "lost"
    label = "effect, in the metric's unit" if undefined else f"share of clean − corrupt {verb}"
    title = f"{prompts.task}: {found.attrs['site']}, {source} → {into}{estimated}"
    largest = top[0]
    alt = (
        f"Effect of {what} on {prompts.metric_words}, by {', '.join(map(str, values.dims))}, "
        f"mean of {len(prompts)} prompts. Largest at {cell_name(largest)}: {values.sel(dict(largest)).item():.2f}."
    )
    if values.dims == ("layer",):
        rows = [_bar(found, prompts, layer, undefined) for layer in found["layer"].values]
        return interval_bars(rows, x_label=f"{label} (95 %)", alt=alt, title=title)
    *row_dims, column_dim = map(str, values.dims)
    names = _row_names(found, row_dims)
    columns = _columns(prompts, column_dim, found[column_dim].values)
    array = values.values.reshape(-1, values.shape[-1])
    if found.sizes.get("head", found.sizes.get("kv_head", 0)) and "position" in values.dims:
        # Heads are a layer's rows, so that positions stand below each other.
        values = values.transpose("layer", ..., "position")
        names = _row_names(found, [str(d) for d in values.dims[:-1]])
        columns = _columns(prompts, "position", found["position"].values)
        array, column_dim = values.values.reshape(-1, values.shape[-1]), "position"
    marks = [_mark(found, values, cell) for cell in top[:1]]
    return heatmap(
        array,
        rows=names,
        columns=columns,
        row_label="layer" if values.ndim == 2 else "head",
        column_label={"kv_head": "key–value head"}.get(column_dim, column_dim),
        value_label=label,
        centre=0.0,
        marks=marks,
        alt=alt,
        title=title,
    )


def _bar(found: xarray.Dataset, prompts: TaskPrompts, layer: int, undefined: bool) -> BarRow:
    effect = found["effect"].sel(layer=layer).values
    estimate = mean(effect, prompts) if undefined else ratio(effect, _gap(found), prompts)
    return BarRow(f"layer {layer}", estimate.value, estimate.low, estimate.high)


def _row_names(found: xarray.Dataset, dims: Sequence[str]) -> list[str]:
    if len(dims) == 1:
        return [str(i) for i in found[dims[0]].values]
    return [f"{layer}.{head}" for layer in found[dims[0]].values for head in found[dims[1]].values]


def _columns(prompts: TaskPrompts, dim: str, values: np.ndarray) -> list[str]:
    if dim != "position":
        return [str(i) for i in values]
    return [prompts.axis[i] for i in values]


def _mark(found: xarray.Dataset, values: xarray.DataArray, cell: Mapping[str, int]) -> tuple[int, int]:
    place = [int(np.flatnonzero(found[d].values == cell[str(d)])[0]) for d in values.dims]
    row = int(np.ravel_multi_index(tuple(place[:-1]), values.shape[:-1]))
    return row, place[-1]


def _next(setting: Setting, asked: Patching, top: Sequence[Mapping[str, int]]) -> str:
    """What to look at now: where the best head works, or which edges carry it."""
    import dataclasses

    best = top[0]
    head = best.get("head", best.get("kv_head"))
    if head is not None and "position" not in best:
        closer = dataclasses.replace(asked, by="head-position", layers=(best["layer"],), heads=(head,), estimate=False)
        return setting.command(NAME, closer.options())
    return setting.command("circuit", {})
