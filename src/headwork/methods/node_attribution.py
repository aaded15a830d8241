"""Attribution patching: activation patching to first order, at every cell of every layer from few passes.

effect ≈ Σ over the cell of (other − base) · ∂metric/∂site, with the gradient taken in the base run (Nanda 2023; Syed et
al. 2023). One pass forward and one back stand for one patched pass per cell. The estimate is exact where the metric is
linear in the site. It fails where it is not: a saturated softmax hides what changing queries or keys would do, large
outputs of early layers meet norms and curved MLPs, and positive and negative direct and indirect effects cancel (Kramár
et al. 2024 show the cases). Averaging the gradient over points between the two runs (integrated gradients, Sundararajan
et al. 2017) mends part of this; confirm what matters by `activation_patching`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headwork.engine.metrics import Metric
from headwork.engine.run import bytes_kept
from headwork.errors import UserError, unknown
from headwork.methods.ablation_choices import Direction
from headwork.methods.cells import By, Cells, cells_of
from headwork.methods.edge_attribution import bytes_per_pair
from headwork.methods.edge_gradients import Prompts, prompts_from
from headwork.methods.effects import between_runs
from headwork.model.transformer import Transformer
from headwork.tasks.prompt_pairs import CheckedMetric, PromptPairs, checked_metric, of_rows

if TYPE_CHECKING:
    import xarray

Between = Literal["inputs", "activations"]

_DEFAULT_MEMORY = 2**29


def node_attribution(
    model: Transformer,
    pairs: PromptPairs,
    metric: Metric,
    *,
    site: str = "resid_pre",
    by: By = "position",
    direction: Direction = "denoising",
    steps: int = 1,
    between: Between = "inputs",
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    memory: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> xarray.Dataset:
    """What patching `site` of each layer would do to the metric, to first order.

    Arguments and dataset are those of `headwork.methods.activation_patching`, so that the two can be drawn against each
    other: `effect` [layer, position, head, prompt] in the metric's unit, `normalised`, `normalised_by_prompt`, and
    `clean` and `corrupt`, the metric of the two runs. Estimates add up: a layer's is the sum of its cells'.

    With `steps` > 1 the gradient is the mean over runs k/steps of the way from the base run to the other, k = 0 …
    steps − 1: between their embeddings (`inputs`: one more pass a step), or, layer by layer, between their activations
    at the site itself (`activations`: one more pass from there a step and layer). The latter is complete: as steps grow
    a layer's estimate becomes the effect of patching all of it.

    `memory` (bytes, beside the weights) bounds how many pairs are held at once; left out, half a gigabyte, or one pair.
    `progress` is called with the number of pairs done since the last call. Raises `UserError` for what does not exist,
    steps below 1, a metric that is not finite or has no finite gradient, and where `memory` is too little.
    """
    pairs = pairs.on(model)
    if direction not in get_args(Direction):
        raise unknown("direction", direction, get_args(Direction))
    if between not in get_args(Between):
        raise unknown("way between the runs", str(between), get_args(Between))
    if steps < 1:
        raise UserError(f"Attribution patching has steps = {steps}; it needs 1 or more.")
    cells = cells_of(model.config, pairs, site, by, layers, heads, positions)
    batch, length = pairs.clean.shape
    checked_metric(model, metric, pairs.labels, length)
    read = metric.reads(length)
    start = min(cells.start, read)
    size = _pairs_at_once(model, cells, batch, bytes_per_pair(model, length, start, read), memory)
    parts = []
    for first in range(0, batch, size):
        rows = slice(first, min(first + size, batch))
        some = pairs.part(rows)
        into, source = (some.corrupt, some.clean) if direction == "denoising" else (some.clean, some.corrupt)
        checked = CheckedMetric(of_rows(metric, rows, batch), some.labels)
        parts.append(_attributed(_Pair(model, into, source, start, checked), cells, steps, between))
        if progress:
            progress(len(into))
    base, other, effect = (torch.cat(values, -1) for values in zip(*parts))
    attrs = {
        "method": "attribution patching",
        "direction": direction,
        "metric": type(metric).__name__,
        "steps": steps,
        "between": between,
    }
    effect = cells.labelled(effect)
    return between_runs(effect, cells.coords, pairs.labels, base, other, direction, attrs | cells.attrs())


def _pairs_at_once(model: Transformer, cells: Cells, batch: int, backward: int, memory: int | None) -> int:
    """How many pairs fit: what edge attribution holds for one, and the site's values, changes and gradients."""
    each = backward + 4 * bytes_kept(model, 1, cells.every_position, [cells.name(layer) for layer in cells.layers])
    fit = (_DEFAULT_MEMORY if memory is None else memory) // each
    if memory is not None and not fit:
        raise UserError(
            f"Attribution patching on one pair of {cells.every_position} tokens needs about {each / 1e6:,.1f} MB "
            f"beside the weights; the limit is {memory / 1e6:,.1f} MB."
        )
    return max(1, min(batch, fit))


class _Meet:
    """A tap that keeps what it meets at some sites, and puts other values in at some."""

    def __init__(self, keep: Collection[str], put: Mapping[str, Tensor]) -> None:
        self.keep, self.put = keep, put
        self.kept: dict[str, Tensor] = {}

    def given(self, site: str) -> Tensor | None:
        return None

    def wants(self, site: str) -> bool:
        return site in self.keep or site in self.put

    def __call__(self, site: str, value: Tensor) -> Tensor:
        value = self.put.get(site, value)
        if site in self.keep:
            self.kept[site] = value
        return value


@dataclass(frozen=True, eq=False)
class _Pair:
    """Two batches of prompts that are the same before position `start`, from which on they are run."""

    model: Transformer
    into: Int[Tensor, "b pos"]
    source: Int[Tensor, "b pos"]
    start: int
    metric: CheckedMetric

    def run(
        self,
        prompts: Prompts,
        resid: Float[Tensor, "b computed d_model"],
        keep: Collection[str],
        layer: int = 0,
        put: Mapping[str, Tensor] | None = None,
    ) -> tuple[Float[Tensor, " b"], dict[str, Tensor]]:
        """The metric of a run that enters at block `layer` with this stream, and the sites to keep."""
        tap = _Meet(keep, put or {})
        frame = self.model.frame(prompts.tokens, prompts.start, prompts.past)
        for block in prompts.model.layers[layer:]:
            resid = block(resid, frame, tap)
        return self.metric(self.model, resid, self.start), tap.kept


def _attributed(
    pair: _Pair, cells: Cells, steps: int, between: Between
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"], Float[Tensor, "layer position head b"]]:
    """The metric of both runs, and every cell's estimated effect."""
    prompts = prompts_from(pair.model, pair.into, pair.start)
    names = [cells.name(layer) for layer in cells.layers]
    streams = {layer: f"blocks.{layer}.resid_pre" for layer in cells.layers}
    with torch.no_grad():
        embedded, towards = (pair.model.embedded(t, start=pair.start) for t in (pair.into, pair.source))
        other, source = pair.run(prompts, towards, names)
    with torch.enable_grad():
        values, kept = pair.run(prompts, embedded.requires_grad_(), {*names, *streams.values()})
        # Copies, since they are added to, and two sites of one stream may share a gradient.
        slopes = [slope.clone() for slope in _slopes(values, [kept[name] for name in names])]
    kept = {name: value.detach() for name, value in kept.items()}
    embedded = embedded.detach()
    if between == "inputs":
        points = _inputs(pair, prompts, embedded, towards, names, steps)
    else:
        points = _activations(pair, prompts, cells, kept, source, steps)
    for at, slope in points:
        slopes[at] += slope
    effect = []
    for name, slope in zip(names, slopes):
        # Scores that are −∞ in both runs, and what has no gradient there, are no change.
        same = source[name] == kept[name]
        product = torch.where(same, 0, (source[name] - kept[name]) * slope) / steps
        effect.append(_summed(cells, product, pair.start))
    found = torch.stack(effect)
    wrong = (~found.isfinite()).any(0).any(0).any(0).nonzero()[:, 0].tolist()
    if wrong:
        raise UserError(
            f"The metric's gradient is not finite for prompt {pair.metric.labels[wrong[0]]}; attribution needs finite "
            "gradients."
        )
    return values.detach(), other, found


def _slopes(values: Float[Tensor, " b"], sites: list[Tensor]) -> tuple[Tensor, ...]:
    if not values.requires_grad:
        raise UserError("The metric has no gradient: it must be computed from the residual stream it is given.")
    return torch.autograd.grad(values.sum(), sites, materialize_grads=True)


def _inputs(
    pair: _Pair,
    prompts: Prompts,
    embedded: Float[Tensor, "b computed d_model"],
    towards: Float[Tensor, "b computed d_model"],
    names: list[str],
    steps: int,
) -> Iterator[tuple[int, Tensor]]:
    """Gradients at every layer's site in runs whose embeddings lie between the two."""
    for k in range(1, steps):
        with torch.enable_grad():
            stream = torch.lerp(embedded, towards, k / steps).requires_grad_()
            values, kept = pair.run(prompts, stream, names)
            slopes = _slopes(values, [kept[name] for name in names])
        yield from enumerate(slopes)


def _activations(
    pair: _Pair, prompts: Prompts, cells: Cells, base: Mapping[str, Tensor], source: Mapping[str, Tensor], steps: int
) -> Iterator[tuple[int, Tensor]]:
    """Gradients at one layer's site in base runs in which that site alone lies between the two."""
    for at, layer in enumerate(cells.layers):
        name = cells.name(layer)
        for k in range(1, steps):
            change = torch.where(source[name] == base[name], 0, source[name] - base[name])
            with torch.enable_grad():
                value = (base[name] + change * (k / steps)).requires_grad_()
                values, _ = pair.run(prompts, base[f"blocks.{layer}.resid_pre"], (), layer, {name: value})
                (slope,) = _slopes(values, [value])
            yield at, slope


def _summed(cells: Cells, product: Tensor, start: int) -> Float[Tensor, "position head b"]:
    """The sum over each cell; `product` has the site's axes, its positions from `start` on."""
    axes = cells.site.axes
    place = axes.index("query" if "query" in axes else "pos")
    head = next((i for i, axis in enumerate(axes) if axis in ("head", "kv_head")), None)
    inside = [i for i in range(len(axes)) if i not in (0, place, head)]
    by_head = product.sum(inside) if inside else product
    if head is None:
        by_head = by_head[..., None]
    elif head < place:
        by_head = by_head.transpose(1, 2)
    found = by_head.new_zeros(cells.every_position, by_head.shape[2], len(by_head))
    found[cells.start :] = by_head[:, cells.start - start :].permute(1, 2, 0)
    found = found[list(cells.positions)]
    found = found[:, list(cells.heads)] if head is not None else found
    found = found if cells.separate_positions else found.sum(0, keepdim=True)
    return found if cells.separate_heads else found.sum(1, keepdim=True)
