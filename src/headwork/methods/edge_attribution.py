"""Edge attribution: how much the metric would change if one edge carried the corrupt run's activation, to first order.

score(writer, reader) = Σ over positions of (writer's corrupt − clean output) · (the metric's gradient at the reader's
own input), averaged over prompts. EAP takes the gradient in the clean run (Syed et al. 2023); EAP-IG averages it over
runs whose embeddings lie between the two prompts' (Hanna et al. 2024).

No reader gets a copy of the residual stream: the gradient at the input of head h's queries is the norm's backward,
applied to dq_h · W_Q[h]ᵀ, and likewise for keys, values and MLPs. All scores are matrix products.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from headwork.engine.metrics import Metric
from headwork.engine.run import Tokens, Watch, as_tokens
from headwork.errors import UserError, unknown
from headwork.methods.graph import graph
from headwork.model.config import TransformerConfig
from headwork.model.transformer import NoNorm, Norm, Transformer

if TYPE_CHECKING:
    import xarray

Variant = Literal["eap", "inputs", "clean-corrupt"]
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
    `inputs`, the mean over `steps` runs on embeddings corrupt + k/steps · (clean − corrupt), k = 1 … steps. All of them
    go on with the clean prompts' positions and padding. Scores are means over prompts, or `[prompt, writer, reader]`
    with `per_example`; pairs of nodes without an edge are NaN. Writers and readers are named as in
    `headwork.methods.graph`.

    `memory` (bytes, without the weights) bounds how many pairs are held at once; left out, half a gigabyte, or one
    pair. Where the pairs do not fit at once the metric must be a dataclass whose tensors have one row per prompt, as
    the engine's are. `progress` is called with the number of pairs done since the last call.

    Raises `UserError`, before any work, for prompts that differ in shape or padding or not at all, an unknown variant,
    and a limit that one pair exceeds; for a metric with a wrong shape, without a gradient or not finite, at its first
    use.
    """
    import xarray

    before, after = _pairs(model, clean, corrupt)
    fractions = _fractions(variant, steps)
    batch, length = before.shape
    read = metric.reads(length)
    start = min(int((before != after).any(0).nonzero()[0]), read) if model.config.causal else 0
    size = _pairs_at_once(model, batch, length, start, read, memory)
    edges = graph(model.config)
    found = []
    for first in range(0, batch, size):
        part = slice(first, min(first + size, batch))
        chosen = metric if size == batch else _rows(metric, part, batch)
        scores = _scores(model, before[part], after[part], chosen, fractions, start).cpu().double()
        found.append(scores if per_example else scores.sum(0, keepdim=True))
        if progress:
            progress(len(scores))
    total = torch.cat(found) if per_example else torch.cat(found).sum(0) / batch
    return xarray.DataArray(
        np.where(edges.visible, total.numpy(), np.nan),
        dims=("prompt", "writer", "reader") if per_example else ("writer", "reader"),
        coords={"writer": [str(w) for w in edges.writers], "reader": [str(r) for r in edges.readers]},
        name="edge_attribution",
        attrs={
            "variant": variant,
            "steps": len(fractions),
            "metric": type(metric).__name__,
            "prompts": batch,
            "direction": "corrupt − clean",
        },
    )


def _pairs(model: Transformer, clean: Tokens, corrupt: Tokens) -> tuple[Int[Tensor, "b p"], Int[Tensor, "b p"]]:
    """Both as tokens, checked to be pairs."""
    before, after = as_tokens(model, clean), as_tokens(model, corrupt)
    if before.shape != after.shape:
        raise UserError(
            f"The clean prompts are {list(before.shape)} and the corrupt ones {list(after.shape)}; each clean prompt "
            "needs a corrupt one of the same length."
        )
    same = (before == after).all(1).nonzero()
    if len(same):
        raise UserError(f"The clean and the corrupt prompt of pair {int(same[0])} are identical; they must differ.")
    pad = model.config.pad_token
    if pad is not None and bool(((before == pad) != (after == pad)).any()):
        raise UserError(f"Clean and corrupt prompts must have padding (token {pad}) at the same positions.")
    return before, after


def _fractions(variant: Variant, steps: int) -> list[float]:
    """How far each gradient's run is from the clean embeddings (0) to the corrupt ones (1); the clean run is first."""
    if variant not in VARIANTS:
        raise unknown("variant of edge attribution", str(variant), VARIANTS)
    if variant == "eap":
        return [0.0]
    if variant == "clean-corrupt":
        return [0.0, 1.0]
    if steps < 1:
        raise UserError(f"Edge attribution with interpolated inputs has steps = {steps}; it needs 1 or more.")
    return [k / steps for k in range(steps)]


def _pairs_at_once(model: Transformer, batch: int, length: int, start: int, read: int, memory: int | None) -> int:
    """How many pairs fit the limit."""
    once, each = bytes_at_once(model), bytes_per_pair(model, length, start, read)
    fit = ((_DEFAULT_MEMORY if memory is None else memory) - once) // each
    if memory is not None and fit < 1:
        raise UserError(
            f"Edge attribution on one pair of {length} tokens needs {(once + each) / 1e6:.1f} MB; the limit is "
            f"{memory / 1e6:.1f} MB."
        )
    return max(1, min(batch, fit))


def bytes_at_once(model: Transformer) -> int:
    """What edge attribution holds however many pairs there are: centred copies of one weight at a time."""
    return 3 * max((r.weight.numel() for r in _readings(model)), default=0) * model.embed.weight.element_size()


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
    # The positions before `start` are computed first, one layer at a time; their keys and values stay, with copies.
    before = start * (kept + row * start)
    shared = start * 2 * c.n_layers * (heads + c.kv_heads) * c.d_head
    sources = computed * (len(edges.writers) + heads) * c.d_model
    readers = computed * slots * (2 * c.d_model + 4 * c.d_head)
    logits = 3 * (length - read) * c.outputs
    floats = max(before, layers + sources + readers + logits) + shared + 2 * edges.visible.size
    return floats * model.embed.weight.element_size()


def _rows(metric: Metric, part: slice, batch: int) -> Metric:
    """The metric of some of the prompts."""
    if not dataclasses.is_dataclass(metric) or isinstance(metric, type):
        raise UserError(
            f"The {batch} pairs do not fit the memory at once, and the metric {type(metric).__name__} is no dataclass "
            "that could be cut to fewer prompts; give a higher limit or one of headwork.engine.metrics."
        )
    values = {f.name: getattr(metric, f.name) for f in dataclasses.fields(metric) if f.init}
    cut = {name: v[part] for name, v in values.items() if isinstance(v, Tensor) and v.dim() and len(v) == batch}
    return dataclasses.replace(metric, **cut)


@dataclass(frozen=True, eq=False)
class _Reading:
    """Readers of one place in the stream, through one norm: a block's queries, keys and values, or its MLP.

    `sites` are what they compute; `weight` maps the norm's output to each reader's part of it.
    """

    sites: tuple[str, ...]
    stream: str
    norm: Norm | NoNorm
    weight: Float[Tensor, "reader inside d_model"]


def _readings(model: Transformer) -> Iterator[_Reading]:
    """In the order of the graph's readers; the logits are left out."""
    config = model.config
    for layer, block in enumerate(model.layers):
        here = f"blocks.{layer}"
        weight = block.attn.qkv.weight.detach().unflatten(0, (-1, config.d_head))
        yield _Reading(tuple(f"{here}.attn.{part}" for part in "qkv"), f"{here}.resid_pre", block.ln1, weight)
        if not config.attention_only:
            sites = (f"{here}.mlp.pre", *([f"{here}.mlp.pre_linear"] if config.gated_mlp else []))
            stream = f"{here}.resid_pre" if config.parallel else f"{here}.resid_mid"
            yield _Reading(sites, stream, block.ln2, block.mlp.inward.weight.detach()[None])


def _writing_sites(config: TransformerConfig) -> list[str]:
    parts = ["attn.z"] if config.attention_only else ["attn.z", "mlp_out"]
    return [f"blocks.{layer}.{part}" for layer in range(config.n_layers) for part in parts]


def _scores(
    model: Transformer,
    before: Int[Tensor, "b length"],
    after: Int[Tensor, "b length"],
    metric: Metric,
    fractions: list[float],
    start: int,
) -> Float[Tensor, "b writer reader"]:
    """The scores of a chunk of pairs, each on its own; pairs of nodes without an edge are 0."""
    config, edges = model.config, graph(model.config)
    readings = list(_readings(model))
    writing = _writing_sites(config)
    keep = {*writing, *(r.stream for r in readings), *(site for r in readings for site in r.sites)}
    with torch.no_grad():
        past = _past(model, before[:, :start])
        embedded = model.embedded(before, start=start)
        other = model.embedded(after, start=start)
        change = other - embedded
        _, corrupt = _run(model, before, other, past, start, writing)
    scores = embedded.new_zeros(len(before), *edges.visible.shape)
    sources = None
    for fraction in fractions:
        with torch.enable_grad():
            resid = (embedded + fraction * change).requires_grad_()
            final, kept = _run(model, before, resid, past, start, keep)
            values = _checked(metric(model, final, start), len(before))
            wanted = [kept[site] for reading in readings for site in reading.sites]
            *slopes, at_logits = torch.autograd.grad(values.sum(), [*wanted, final], materialize_grads=True)
        with torch.no_grad():
            if sources is None:  # the clean run
                sources = _sources(model, change, kept, corrupt)
                corrupt = {}
            column = 0
            for reading in readings:
                own = [slopes.pop(0).flatten(2) for _ in reading.sites]
                slope = torch.cat(own, -1).flatten(0, 1).unflatten(-1, reading.weight.shape[:2])
                gradient = _at_input(reading.norm, kept[reading.stream].detach().flatten(0, 1), slope, reading.weight)
                _add_products(scores, sources, gradient, column, int(edges.visible[:, column].sum()))
                column += len(gradient)
            _add_products(scores, sources, at_logits.flatten(0, 1)[None], column, len(sources))
    return scores / len(fractions)


def _past(model: Transformer, tokens: Int[Tensor, "b before"]) -> dict[int, tuple[Tensor, Tensor]] | None:
    """Keys (rotated) and values of the positions that both prompts share: no gradient is needed there."""
    if not tokens.shape[1]:
        return None
    parts = ("attn.rot_k" if model.config.turned else "attn.k", "attn.v")
    keep = [f"blocks.{layer}.{part}" for layer in range(model.config.n_layers) for part in parts]
    _, kept = _run(model, tokens, model.embedded(tokens), None, 0, keep)
    return {n: (kept[f"blocks.{n}.{parts[0]}"], kept[f"blocks.{n}.{parts[1]}"]) for n in range(model.config.n_layers)}


def _run(
    model: Transformer,
    tokens: Int[Tensor, "b length"],
    resid: Float[Tensor, "b pos d_model"],
    past: Mapping[int, tuple[Tensor, Tensor]] | None,
    start: int,
    keep: set[str] | list[str],
) -> tuple[Float[Tensor, "b pos d_model"], dict[str, Tensor]]:
    """All blocks on these embeddings at positions ≥ `start`: the final stream, and the sites to keep."""
    watch = Watch(model.config, keep, start=start)
    frame = model.frame(tokens, start, past)
    for block in model.layers:
        resid = block(resid, frame, watch)
    return resid, watch.kept


def _checked(values: Tensor, batch: int) -> Float[Tensor, " b"]:
    if values.shape != (batch,):
        raise UserError(f"The metric gave {list(values.shape)} for {batch} examples; one each is needed.")
    wrong = (~values.isfinite()).nonzero()
    if len(wrong):
        value = float(values.detach()[wrong[0]])
        raise UserError(f"The metric is {value} for an example; it must be finite to have a gradient.")
    if not values.requires_grad:
        raise UserError("The metric has no gradient: it must be computed from the residual stream it is given.")
    return values


def _sources(
    model: Transformer, embedding: Float[Tensor, "b pos d_model"], clean: dict[str, Tensor], corrupt: dict[str, Tensor]
) -> Float[Tensor, "writer rows d_model"]:
    """Corrupt − clean output of every writer at every position of every example."""
    edges = graph(model.config)
    found = embedding.new_empty(len(edges.writers), embedding.shape[0] * embedding.shape[1], embedding.shape[2])
    found[0] = embedding.flatten(0, 1)
    row = 1
    for site in _writing_sites(model.config):
        change = (corrupt[site] - clean[site]).flatten(0, 1)
        if site.endswith("mlp_out"):
            found[row] = change
            row += 1
        else:
            w_o = model.layers[edges.writers[row].layer].attn.W_O
            torch.bmm(change.transpose(0, 1), w_o, out=found[row : row + len(w_o)])
            row += len(w_o)
    return found


def _at_input(
    norm: Norm | NoNorm,
    x: Float[Tensor, "rows d_model"],
    slope: Float[Tensor, "rows reader inside"],
    weight: Float[Tensor, "reader inside d_model"],
) -> Float[Tensor, "reader rows d_model"]:
    """The gradient at each reader's own input, if it alone read x, from the gradient at what it computes there.

    With x̂ the normalised x, σ its scale and g = slope · weight · gain, a norm's backward is
    (g − mean g − x̂ mean(g · x̂)) / σ; centring (LayerNorm only) and gain are applied to the weights, which are fewer.
    """
    if isinstance(norm, NoNorm):
        return torch.bmm(slope.transpose(0, 1), weight)
    weight = weight * norm.w.detach()
    if norm.centred:
        x = x - x.mean(-1, keepdim=True)
        weight = weight - weight.mean(-1, keepdim=True)
    inverse = (x.square().mean(-1, keepdim=True) + norm.eps).rsqrt()
    x = x * inverse
    slope = (slope * inverse[:, None]).transpose(0, 1).contiguous()  # in this order the product is twice as fast
    gradient = torch.bmm(slope, weight)
    return gradient.addcmul_((gradient * x).mean(-1, keepdim=True), x, value=-1)


def _add_products(
    scores: Float[Tensor, "b writer all_readers"],
    sources: Float[Tensor, "writer rows d_model"],
    gradient: Float[Tensor, "reader rows d_model"],
    column: int,
    writers: int,
) -> None:
    """Add, for each example, the products of the first writers' changes with these readers' gradients."""
    batch = len(scores)
    left = sources[:writers].unflatten(1, (batch, -1)).flatten(2).transpose(0, 1)
    right = gradient.unflatten(1, (batch, -1)).flatten(2).transpose(0, 1)
    scores[:, :writers, column : column + len(gradient)] += left @ right.transpose(1, 2)
