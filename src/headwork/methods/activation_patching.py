"""Activation patching: what one activation of another run does to a metric (Vig et al. 2020; Meng et al. 2022).

Denoising puts clean activations into the corrupt run and asks what restores the answer; noising puts corrupt ones into
the clean run and asks what breaks it (Heimersheim & Nanda 2024; Zhang & Nanda 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headwork.engine.metrics import Metric
from headwork.engine.resume import Trace, trace
from headwork.engine.run import observe
from headwork.engine.sweep import sweep
from headwork.errors import unknown
from headwork.methods.ablation_choices import Direction
from headwork.methods.cells import By, Cells, cells_of
from headwork.methods.effects import between_runs
from headwork.methods.room import Room, room
from headwork.methods.screening import checked_count, screening
from headwork.model.products import with_bfloat16_products
from headwork.model.transformer import Transformer
from headwork.tasks.prompt_pairs import CheckedMetric, PromptPairs, checked_metric, of_rows

if TYPE_CHECKING:
    import xarray


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
    confirm: int | None = None,
    memory: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> xarray.Dataset:
    """The effect of patching `site` of each layer, by position, by head, by both, or the whole layer at once.

    `site` is a name without its layer: `resid_pre`, `resid_mid`, `attn.z`, `attn.q`, `attn.k`, `attn.v`,
    `attn.pattern` (positions are then queries), `attn_out`, `mlp_out`, …. What `by` does not separate is patched
    together; `layers`, `heads` and `positions` restrict what is patched at all. Positions before the first token that
    differs have no effect in a causal network and are not computed. `memory` is in bytes, beside the weights;
    `progress` is called with the number of patches done since the last call (once more for each chunk of prompts).

    With `confirm=K` every patch is first tried with products in bfloat16, which processors make two to four times as
    fast, and the K cells of the largest mean effect are computed again in the network's own precision. The others keep
    their rough values; `confirmed` says which are which, and the attribute `screening_error` how rough. The weights'
    copy in bfloat16 comes on top of `memory`.

    The dataset has dims `layer`, `position`, `head` (`kv_head` for keys and values: one for each head that the
    architecture has of them), as `by` asks for, and `prompt`:

    - `effect` [layer, position, head, prompt], in the metric's unit: patched − base, where base is the run that is
      patched into (denoising: corrupt);
    - `normalised` [layer, position, head]: mean effect ÷ mean of (other − base); 0 is no effect, 1 the other run's
      value. NaN where the two runs have the same mean. A ratio of means is used because single pairs with a small
      difference would rule a mean of ratios;
    - `normalised_by_prompt` [layer, position, head, prompt]: effect ÷ (other − base), NaN where a pair has none;
    - `clean`, `corrupt` [prompt]: the metric of the two unpatched runs;
    - `confirmed` [layer, position, head], with `confirm` only.

    Raises `UserError` for what does not exist, a metric that is not finite, and where `memory` is too little.
    """
    pairs = pairs.on(model)
    if direction not in get_args(Direction):
        raise unknown("direction", direction, get_args(Direction))
    cells = cells_of(model.config, pairs, site, by, layers, heads, positions)
    batch, length = pairs.clean.shape
    checked_metric(model, metric, pairs.labels, length)
    held = room(model, batch, length, cells.site.name, memory)
    sweeps = _Sweeps(pairs, metric, direction, cells, held, progress)
    screen = None
    if confirm is not None:
        count = checked_count(confirm)
        base, _, patched = sweeps.on(with_bfloat16_products(model, model.unembed))
        screen = screening(patched - base, count)
    base, other, patched = sweeps.on(model, None if screen is None else screen.chosen)
    effect, attrs = patched - base, {"method": "activation patching", "metric": type(metric).__name__} | cells.attrs()
    if screen is not None:
        attrs |= screen.attrs(effect)
        effect = screen.confirmed(effect)
    attrs |= {"direction": direction}
    found = between_runs(cells.labelled(effect), cells.coords, pairs.labels, base, other, direction, attrs)
    if screen is not None:
        found["confirmed"] = (list(cells.coords), cells.labelled(screen.chosen).cpu().numpy())
    return found


@dataclass(frozen=True, eq=False)
class _Sweeps:
    """What is patched on which prompts, some of them at a time."""

    pairs: PromptPairs
    metric: Metric
    direction: Direction
    cells: Cells
    held: Room
    progress: Callable[[int], None] | None

    def on(
        self, model: Transformer, chosen: Bool[Tensor, "layer position head"] | None = None
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"], Float[Tensor, "layer position head batch"]]:
        """The metric of the runs that are patched into, of those that patches come from, and of every patched one."""
        parts, (batch, length) = [], self.pairs.clean.shape
        for first in range(0, batch, self.held.prompts):
            rows = slice(first, min(first + self.held.prompts, batch))
            some = self.pairs.part(rows)
            into, source = (some.corrupt, some.clean) if self.direction == "denoising" else (some.clean, some.corrupt)
            checked = checked_metric(model, of_rows(self.metric, rows, batch), some.labels, length)
            base = trace(model, into)
            parts.append(_patched(model, base, source, self.cells, chosen, checked, self.held, self.progress))
        base, other, patched = (torch.cat(values, -1) for values in zip(*parts))
        return base, other, patched


def _patched(
    model: Transformer,
    base_trace: Trace,
    source: Int[Tensor, "batch pos"],
    cells: Cells,
    chosen: Bool[Tensor, "layer position head"] | None,
    metric: CheckedMetric,
    held: Room,
    progress: Callable[[int], None] | None,
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"], Float[Tensor, "layer position head batch"]]:
    """The metric of the run that is patched into, of the one that patches come from, and of every patched one."""
    with torch.no_grad():
        base = metric(model, base_trace.resid_final, 0)
    patched = base.expand(*cells.shape, -1).clone()
    other = base
    for first in range(0, len(cells.layers), held.layers):
        part = cells.layers[first : first + held.layers]
        values, final = observe(model, source, [cells.name(layer) for layer in part])
        if not first:
            with torch.no_grad():
                other = metric(model, final, 0)
        for row, layer in enumerate(part, first):
            patches = cells.patches(layer, values[cells.name(layer)])
            patches = [p for p in patches if chosen is None or chosen[(row, *p[0])]]
            for at in range(0, len(patches), held.copies):
                chunk = patches[at : at + held.copies]
                found = sweep(model, base_trace, [edit for _, edit in chunk], metric, progress)
                for ((i, j), _), one in zip(chunk, found):
                    patched[row, i, j] = one
    return base, other, patched
