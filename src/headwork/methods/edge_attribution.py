"""Edge attribution: how much the metric would change if one edge carried the corrupt run's activation, to first order.

score(writer, reader) = Σ over positions of (writer's corrupt − clean output) · (the metric's gradient at the reader's
own input), averaged over prompts. EAP takes the gradient in the clean run (Syed et al. 2023); EAP-IG averages it over
runs whose embeddings, or whose writers' outputs, lie between the two prompts' (Hanna et al. 2024).

No reader gets a copy of the residual stream (`headwork.methods.edge_gradients`): the gradient at the input of head h's
queries is the norm's backward, applied to dq_h · W_Q[h]ᵀ, and likewise for keys, values and MLPs. All scores are matrix
products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headwork.engine.metrics import Metric
from headwork.engine.run import Tokens, as_tokens
from headwork.errors import UserError, unknown
from headwork.methods.edge_gradients import (
    Point,
    add_scores,
    both_prompts,
    gradients,
    writers_changes,
    writing_sites,
)
from headwork.methods.graph import graph
from headwork.model.config import TransformerConfig
from headwork.model.sites import layer_of
from headwork.model.transformer import Transformer
from headwork.tasks.prompt_pairs import CheckedMetric, PromptPairs, checked_metric, of_rows

if TYPE_CHECKING:
    import xarray

Variant = Literal["eap", "inputs", "activations", "clean-corrupt"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)

_DEFAULT_MEMORY = 2**29


def edge_attribution(
    model: Transformer,
    clean: Tokens,
    corrupt: Tokens,
    metric: Metric,
    *,
    variant: Variant = "eap",
    steps: int = 5,
    memory: int | None = None,
    per_example: bool = False,
    progress: Callable[[int], None] | None = None,
) -> xarray.DataArray:
    """Scores of all edges `[writer, reader]` in the metric's unit: its change, to first order, from clean to corrupt.

    Where the gradient is taken: `eap`, in the clean run; `clean-corrupt`, the mean of the clean and the corrupt run;
    `inputs`, the mean over `steps` runs on embeddings corrupt + k/steps · (clean − corrupt), k = 1 … steps;
    `activations`, for each layer's heads or MLP, the mean over `steps` otherwise clean runs in which their outputs are
    such mixtures. Scores are means over prompts, or `[prompt, writer, reader]` with `per_example`; nodes without an
    edge between them have NaN. Writers and readers are named as in `headwork.methods.graph`.

    `memory` (bytes, without the weights) bounds how many pairs are held at once; left out, half a gigabyte, or one
    pair. Where the pairs do not fit at once the metric must be a dataclass whose tensors have one row per prompt, as
    the engine's are. `progress` is called with the number of pairs done since the last call.

    Raises `UserError`, before any work, for prompts that differ in shape or padding or not at all, an unknown variant,
    a metric of other prompts, and a limit that one pair exceeds; for a metric with a wrong shape, without a gradient or
    not finite, at its first use.
    """
    import xarray

    fractions = _fractions(variant, steps)
    pairs = PromptPairs(as_tokens(model, clean), as_tokens(model, corrupt)).on(model)
    batch, length = pairs.clean.shape
    checked_metric(model, metric, pairs.labels, length)
    read = metric.reads(length)
    start = min(pairs.start(model.config), read)
    size = _pairs_at_once(model, batch, length, start, read, memory)
    edges = graph(model.config)
    found = []
    for first in range(0, batch, size):
        part = slice(first, min(first + size, batch))
        held = pairs.part(part)
        chosen = CheckedMetric(of_rows(metric, part, batch), held.labels)
        scores = _scores(model, held, chosen, variant, fractions, start).cpu().double()
        found.append(scores if per_example else scores.sum(0, keepdim=True))
        if progress:
            progress(len(scores))
    total = torch.cat(found) if per_example else torch.cat(found).sum(0) / batch
    coords = {"writer": [str(w) for w in edges.writers], "reader": [str(r) for r in edges.readers]}
    coords |= {"prompt": list(pairs.labels)} if per_example else {}
    return xarray.DataArray(
        np.where(edges.visible, total.numpy(), np.nan),
        dims=("prompt", "writer", "reader") if per_example else ("writer", "reader"),
        coords=coords,
        name="edge_attribution",
        attrs={
            "variant": variant,
            "steps": len(fractions),
            "metric": type(metric).__name__,
            "prompts": batch,
            "direction": "corrupt − clean",
        },
    )


def _fractions(variant: Variant, steps: int) -> list[float]:
    """How far each gradient's run is from the clean embeddings (0) to the corrupt ones (1); the clean run is first."""
    if variant not in VARIANTS:
        raise unknown("variant of edge attribution", str(variant), VARIANTS)
    if variant == "eap":
        return [0.0]
    if variant == "clean-corrupt":
        return [0.0, 1.0]
    if steps < 1:
        raise UserError(f"Edge attribution with interpolated {variant} has steps = {steps}; it needs 1 or more.")
    return [k / steps for k in range(steps)]


def _pairs_at_once(model: Transformer, batch: int, length: int, start: int, read: int, memory: int | None) -> int:
    """How many pairs fit the limit."""
    each = bytes_per_pair(model, length, start, read)
    fit = (_DEFAULT_MEMORY if memory is None else memory) // each
    if memory is not None and fit < 1:
        raise UserError(
            f"Edge attribution on one pair of {length} tokens needs {each / 1e6:.1f} MB; the limit is "
            f"{memory / 1e6:.1f} MB."
        )
    return max(1, min(batch, fit))


def bytes_per_pair(model: Transformer, length: int, start: int = 0, read: int = 0) -> int:
    """What edge attribution holds at most for one pair of prompts that differ from `start` on, weights not counted.

    `read` is the first position whose logits the metric reads.
    """
    c, edges = model.config, graph(model.config)
    heads, slots, computed = c.n_heads, c.n_heads + 2 * c.kv_heads, length - start
    # What autograd keeps at a position of a layer: streams and normed streams, projections (rotated, scaled, expanded)
    # and MLP activations, each with its gradient; and attention maps, one row for every key.
    kept = 8 * c.d_model + 4 * (slots + heads) * c.d_head + (8 if c.gated_mlp else 5) * c.d_mlp
    row = (5 if c.attention_mix == 1 else 8) * heads
    layers = c.n_layers * computed * (kept + row * length)
    # The corrupt prompts are run first, without gradients; the keys and values before `start` stay, with copies.
    before = length * (kept + row * length + len(edges.writers) * c.d_model)
    shared = start * 2 * c.n_layers * (heads + c.kv_heads) * c.d_head
    sources = computed * (len(edges.writers) + heads) * c.d_model
    readers = computed * slots * (2 * c.d_model + 4 * c.d_head)
    logits = 3 * (length - read) * c.outputs
    floats = max(before, layers + sources + readers + logits) + shared + 2 * edges.visible.size
    return floats * model.embed.weight.element_size()


def _scores(
    model: Transformer, pairs: PromptPairs, metric: Metric, variant: Variant, fractions: list[float], start: int
) -> Float[Tensor, "b writer reader"]:
    """The scores of a chunk of pairs, each on its own; pairs of nodes without an edge are 0."""
    config, edges = model.config, graph(model.config)
    everyone = slice(0, len(edges.writers))
    prompts, corrupt = both_prompts(model, pairs.clean, pairs.corrupt, start, writing_sites(config))
    with torch.no_grad():
        embedded, other = model.embedded(pairs.clean, start=start), model.embedded(pairs.corrupt, start=start)
    keep = {*writing_sites(config), *(f"blocks.{layer}.resid_pre" for layer in range(config.n_layers))}
    found = gradients(prompts, Point(embedded, everyone), metric, keep)
    clean = found.sites
    scores = embedded.new_zeros(len(pairs.clean), *edges.visible.shape)
    with torch.no_grad():
        change = other - embedded
        changes = writers_changes(model, change, clean, corrupt)
        add_scores(scores, model, changes, found)
        embeddings = everyone if variant != "activations" else slice(0, 1)
        points = (Point(embedded + fraction * change, embeddings) for fraction in fractions[1:])
        if variant == "activations":
            points = chain(points, _between_outputs(config, clean, corrupt, fractions[1:]))
        for point in points:
            add_scores(scores, model, changes, gradients(prompts, point, metric))
    return scores / len(fractions)


def _between_outputs(
    config: TransformerConfig, clean: Mapping[str, Tensor], corrupt: Mapping[str, Tensor], fractions: list[float]
) -> Iterator[Point]:
    """Runs clean but for one layer's heads, or its MLP, whose outputs lie between the clean and the corrupt ones."""
    row = 1
    for site in writing_sites(config):
        layer = layer_of(site)
        assert layer is not None  # noqa: S101 – writers' sites are in blocks
        writers = slice(row, row + (1 if site.endswith("mlp_out") else config.n_heads))
        attention = f"blocks.{layer}.attn.z"
        for fraction in fractions:
            put = {attention: clean[attention], site: torch.lerp(clean[site], corrupt[site], fraction)}
            yield Point(clean[f"blocks.{layer}.resid_pre"], writers, layer, put)
        row = writers.stop
