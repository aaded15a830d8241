"""Activation patching: what one activation of another run does to a metric (Vig et al. 2020; Meng et al. 2022).

Denoising puts clean activations into the corrupt run and asks what restores the answer; noising puts corrupt ones into
the clean run and asks what breaks it (Heimersheim & Nanda 2024; Zhang & Nanda 2024).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headwork.engine.edits import Edit, replace
from headwork.engine.metrics import Metric
from headwork.engine.resume import Trace, trace
from headwork.engine.run import run
from headwork.engine.sweep import sweep
from headwork.errors import UserError, unknown
from headwork.methods.room import Room, room
from headwork.model.config import TransformerConfig
from headwork.model.sites import SITES, Site
from headwork.model.transformer import Transformer
from headwork.tasks.prompt_pairs import CheckedMetric, PromptPairs, checked_metric, of_rows

if TYPE_CHECKING:
    import xarray

By = Literal["position", "head", "head-position", "layer"]
Direction = Literal["denoising", "noising"]


def activation_patching(
    model: Transformer,
    pairs: PromptPairs,
    metric: Metric,
    *,
    site: str = "resid_pre",
    by: By = "position",
    direction: Direction = "denoising",
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    memory: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> xarray.Dataset:
    """The effect of patching `site` of each layer, by position, by head, by both, or the whole layer at once.

    `site` is a name without its layer: `resid_pre`, `resid_mid`, `attn.z`, `attn.q`, `attn.k`, `attn.v`,
    `attn.pattern` (positions are then queries), `attn_out`, `mlp_out`, …. What `by` does not separate is patched
    together; `layers`, `heads` and `positions` restrict what is patched at all. Positions before the first token that
    differs have no effect in a causal network and are not computed. `memory` is in bytes, beside the weights;
    `progress` is called with the number of patches done since the last call (once more for each chunk of prompts).

    The dataset has dims `layer`, `position`, `head` (`kv_head` for keys and values: one for each head that the
    architecture has of them), as `by` asks for, and `prompt`:

    - `effect` [layer, position, head, prompt], in the metric's unit: patched − base, where base is the run that is
      patched into (denoising: corrupt);
    - `normalised` [layer, position, head]: mean effect ÷ mean of (other − base); 0 is no effect, 1 the other run's
      value. NaN where the two runs have the same mean. A ratio of means is used because single pairs with a small
      difference would rule a mean of ratios;
    - `normalised_by_prompt` [layer, position, head, prompt]: effect ÷ (other − base), NaN where a pair has none;
    - `clean`, `corrupt` [prompt]: the metric of the two unpatched runs.

    Raises `UserError` for what does not exist, a metric that is not finite, and where `memory` is too little.
    """
    pairs = pairs.on(model)
    if direction not in get_args(Direction):
        raise unknown("direction", direction, get_args(Direction))
    grid = _grid(model.config, pairs, site, by, layers, heads, positions)
    batch, length = pairs.clean.shape
    checked_metric(model, metric, pairs.labels, length)
    held = room(model, batch, length, grid.site.name, memory)
    parts = []
    for first in range(0, batch, held.prompts):
        rows = slice(first, min(first + held.prompts, batch))
        some = pairs.part(rows)
        into, source = (some.corrupt, some.clean) if direction == "denoising" else (some.clean, some.corrupt)
        checked = checked_metric(model, of_rows(metric, rows, batch), some.labels, length)
        parts.append(_patched(model, trace(model, into), source, grid, checked, held, progress))
    base, other, patched = (torch.cat(values, -1) for values in zip(*parts))
    return _dataset(grid, pairs, patched - base, base, other, direction, metric)


@dataclass(frozen=True)
class _Grid:
    """What is patched: `units` are the cells of a layer, (position index, head index, positions, heads)."""

    site: Site
    short: str
    by: By
    layers: tuple[int, ...]
    positions: tuple[int, ...]
    heads: tuple[int, ...]
    start: int
    every_position: int
    every_head: int

    @property
    def head_axis(self) -> str | None:
        return next((axis for axis in self.site.axes if axis in ("head", "kv_head")), None)

    @property
    def separate_positions(self) -> bool:
        return self.by in ("position", "head-position")

    @property
    def separate_heads(self) -> bool:
        return self.by in ("head", "head-position")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Layers, positions, heads; 1 for what is patched together."""
        apart_p, apart_h = self.separate_positions, self.separate_heads
        return len(self.layers), len(self.positions) if apart_p else 1, len(self.heads) if apart_h else 1

    def cells(self, layer: int, value: Tensor) -> list[tuple[tuple[int, int], Edit]]:
        """Index and edit of every patch in a layer that can have an effect."""
        where = [(p,) for p in self.positions] if self.separate_positions else [self.positions]
        which = [(h,) for h in self.heads] if self.separate_heads else [self.heads]
        reached = [(i, tuple(p for p in ps if p >= self.start)) for i, ps in enumerate(where)]
        name = self.site.name.format(l=layer)
        return [
            ((i, j), replace(name, value, _unless_all(hs, self.every_head), _unless_all(ps, self.every_position)))
            for (i, ps), (j, hs) in itertools.product(reached, enumerate(which))
            if ps
        ]


def _grid(
    config: TransformerConfig,
    pairs: PromptPairs,
    site: str,
    by: By,
    layers: Sequence[int] | None,
    heads: Sequence[int] | None,
    positions: Sequence[int] | None,
) -> _Grid:
    """The patches that were asked for; `UserError` for what does not exist."""
    described = {s.name.removeprefix("blocks.{l}."): s for s in SITES if s.per_layer and s.exists(config)}
    short = ".".join(part.removeprefix("hook_") for part in site.split("."))
    if short not in described or not config.n_layers:
        raise unknown("site to patch", site, described if config.n_layers else ())
    if by not in get_args(By):
        raise unknown("way to patch by", by, get_args(By))
    count = {"head": config.n_heads, "kv_head": config.kv_heads}.get(
        next((a for a in described[short].axes if "head" in a), ""), 0
    )
    if not count and (heads is not None or by in ("head", "head-position")):
        raise UserError(
            f"The site {short} has no heads; its axes are {', '.join(described[short].axes)}. "
            "Patch it by position or by layer, all of it."
        )
    return _Grid(
        described[short],
        short,
        by,
        _chosen("layer", layers, config.n_layers, "The network"),
        _chosen("position", positions, pairs.clean.shape[1], "The prompts"),
        _chosen("head", heads, count, f"The site {short}"),
        pairs.start(config),
        pairs.clean.shape[1],
        count,
    )


def _unless_all(chosen: tuple[int, ...], count: int) -> tuple[int, ...] | None:
    return None if len(chosen) == count else chosen


def _chosen(what: str, given: Sequence[int] | None, count: int, whose: str) -> tuple[int, ...]:
    chosen = tuple(range(count)) if given is None else tuple(given)
    wrong = [i for i in chosen if not 0 <= i < count]
    if wrong:
        verb = "have" if whose.endswith("s") else "has"
        raise UserError(f"{whose} {verb} {what}s 0–{count - 1}; {what} {wrong[0]} does not exist.")
    if given is not None and (not chosen or len(set(chosen)) < len(chosen)):
        raise UserError(f"The {what}s to patch are {list(chosen)}; at least one is needed, and each once.")
    return chosen


def _patched(
    model: Transformer,
    base_trace: Trace,
    source: Int[Tensor, "batch pos"],
    grid: _Grid,
    metric: CheckedMetric,
    held: Room,
    progress: Callable[[int], None] | None,
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"], Float[Tensor, "layer position head batch"]]:
    """The metric of the run that is patched into, of the one that patches come from, and of every patched one."""
    with torch.no_grad():
        base = metric(model, base_trace.resid_final, 0)
    patched = base.expand(*grid.shape, -1).clone()
    end = f"blocks.{model.config.n_layers - 1}.resid_post"
    other = base
    for first in range(0, len(grid.layers), held.layers):
        part = grid.layers[first : first + held.layers]
        values: Mapping[str, Tensor] = run(
            model, source, [grid.site.name.format(l=layer) for layer in part] + ([] if first else [end])
        ).activations
        if not first:
            with torch.no_grad():
                other = metric(model, values[end], 0)
        for row, layer in enumerate(part, first):
            cells = grid.cells(layer, values[grid.site.name.format(l=layer)])
            for at in range(0, len(cells), held.copies):
                chunk = cells[at : at + held.copies]
                found = sweep(model, base_trace, [edit for _, edit in chunk], metric, progress)
                for ((i, j), _), one in zip(chunk, found):
                    patched[row, i, j] = one
    return base, other, patched


def _dataset(
    grid: _Grid,
    pairs: PromptPairs,
    effect: Float[Tensor, "layer position head batch"],
    base: Float[Tensor, " batch"],
    other: Float[Tensor, " batch"],
    direction: Direction,
    metric: Metric,
) -> xarray.Dataset:
    import xarray

    # What rounding leaves of two equal values is no difference to divide by.
    noise = 16 * torch.finfo(effect.dtype).eps
    effect, base, other = effect.double().cpu(), base.double().cpu(), other.double().cpu()
    gap, size = other - base, other.abs() + base.abs()
    equal = gap.abs() <= noise * size
    equal_means = bool(gap.mean().abs() <= noise * size.mean())
    clean, corrupt = (other, base) if direction == "denoising" else (base, other)

    head = grid.head_axis or "head"
    apart = {"layer": True, "position": grid.separate_positions, head: grid.separate_heads}
    dims = [name for name, separate in apart.items() if separate]
    # By index, since an axis that is kept may be of size one too.
    effect = effect[tuple(slice(None) if separate else 0 for separate in apart.values())]
    by_prompt = torch.where(equal, torch.nan, effect / torch.where(equal, 1.0, gap))
    normalised = torch.full_like(effect[..., 0], torch.nan) if equal_means else effect.mean(-1) / gap.mean()
    values = {"layer": grid.layers, "position": grid.positions, head: grid.heads}
    return xarray.Dataset(
        {
            "effect": ((*dims, "prompt"), effect.numpy(), {"units": "units of the metric"}),
            "normalised": (dims, normalised.numpy(), {"units": "1"}),
            "normalised_by_prompt": ((*dims, "prompt"), by_prompt.numpy(), {"units": "1"}),
            "clean": ("prompt", clean.numpy(), {"units": "units of the metric"}),
            "corrupt": ("prompt", corrupt.numpy(), {"units": "units of the metric"}),
        },
        coords={name: list(values[name]) for name in dims} | {"prompt": list(pairs.labels)},
        attrs={
            "method": "activation patching",
            "site": grid.short,
            "by": grid.by,
            "direction": direction,
            "metric": type(metric).__name__,
            "first_position": grid.start,
            "patched_positions": list(grid.positions),
            "patched_heads": list(grid.heads),
        },
    )
