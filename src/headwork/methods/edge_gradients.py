"""What edge attribution multiplies: the writers' changes, and the metric's gradient at each reader's own input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headwork.engine.metrics import Metric
from headwork.engine.run import Watch
from headwork.errors import UserError
from headwork.methods.graph import graph
from headwork.model.config import TransformerConfig
from headwork.model.products import with_fixed_weights
from headwork.model.sites import key_site
from headwork.model.transformer import NoNorm, Norm, Transformer

_READERS_AT_ONCE = 6


@dataclass(frozen=True, eq=False)
class Reading:
    """Readers of one place in the stream, through one norm: a block's queries, keys and values, or its MLP.

    `column` is the first of them in the graph, and `writers` how many writers they see. `sites` are where the gradient
    is taken: what the readers compute, which `weight` maps the norm's output to; or that output itself where there is
    one reader (`weight` is None), since the way back to it is the pass's own.
    """

    column: int
    writers: int
    sites: tuple[str, ...]
    stream: str
    norm: Norm | NoNorm
    weight: Float[Tensor, "reader inside d_model"] | None

    @property
    def readers(self) -> int:
        """How many they are."""
        return 1 if self.weight is None else len(self.weight)


def readings(model: Transformer, writer: int = 0) -> Iterator[Reading]:
    """Those that see this writer (the embedding is seen by all), in the graph's order; the logits are left out."""
    config, column = model.config, 0
    seen = graph(config).visible.sum(0)
    for layer, block in enumerate(model.layers):
        here = f"blocks.{layer}"
        weight = block.attn.qkv.weight.detach().unflatten(0, (-1, config.d_head))
        if writer < seen[column]:
            sites = tuple(f"{here}.attn.{part}" for part in "qkv")
            yield Reading(column, int(seen[column]), sites, f"{here}.resid_pre", block.ln1, weight)
        column += len(weight)
        if config.attention_only:
            continue
        if writer < seen[column]:
            stream = f"{here}.resid_pre" if config.parallel else f"{here}.resid_mid"
            if isinstance(block.ln2, NoNorm):
                sites = (f"{here}.mlp.pre", *([f"{here}.mlp.pre_linear"] if config.gated_mlp else []))
                weight = block.mlp.inward.weight.detach()[None]
                yield Reading(column, int(seen[column]), sites, stream, block.ln2, weight)
            else:
                yield Reading(column, int(seen[column]), (f"{here}.ln2.normalized",), stream, block.ln2, None)
        column += 1


@dataclass(frozen=True, eq=False)
class Point:
    """A run in which gradients are taken, to score the edges of `writers` (rows of the graph).

    It enters at block `layer` with this stream; `given` holds the values of sites that are put in, not computed.
    """

    resid: Float[Tensor, "b pos d_model"]
    writers: slice
    layer: int = 0
    given: Mapping[str, Tensor] = field(default_factory=dict)


class _Given(Watch):
    """A tap that also puts values in, which spares the pass computing them."""

    def __init__(
        self, config: TransformerConfig, keep: Iterable[str], start: int, values: Mapping[str, Tensor]
    ) -> None:
        super().__init__(config, keep, start=start)
        self.values = values

    def given(self, site: str) -> Tensor | None:
        return self.values.get(site)


@dataclass(frozen=True, eq=False)
class Prompts:
    """The clean prompts; positions from `start` on are computed, against the keys and values of those before."""

    model: Transformer
    tokens: Int[Tensor, "b length"]
    start: int
    past: Mapping[int, tuple[Tensor, Tensor]] | None

    def run(self, point: Point, keep: Iterable[str]) -> tuple[Float[Tensor, "b pos d_model"], dict[str, Tensor]]:
        """The final stream, and the sites to keep."""
        watch = _Given(self.model.config, keep, self.start, point.given)
        frame = self.model.frame(self.tokens, self.start, self.past)
        resid = point.resid
        for block in self.model.layers[point.layer :]:
            resid = block(resid, frame, watch)
        return resid, watch.kept


def prompts_from(model: Transformer, tokens: Int[Tensor, "b length"], start: int) -> Prompts:
    """The prompts, ready to be run from `start` on."""
    if not start:
        return Prompts(with_fixed_weights(model), tokens, 0, None)
    return both_prompts(model, tokens, tokens[:, :start], start, [])[0]


def both_prompts(
    model: Transformer,
    clean: Int[Tensor, "b length"],
    corrupt: Int[Tensor, "b corrupt_length"],
    start: int,
    keep: Iterable[str],
) -> tuple[Prompts, dict[str, Tensor]]:
    """The clean prompts, ready to be run from `start` on, and there the corrupt run's sites to `keep`.

    The corrupt run also gives the keys and values before `start`, where the prompts do not differ; it may end there.
    """
    keep, model = set(keep), with_fixed_weights(model)
    config, names = model.config, range(model.config.n_layers)
    wanted = {n: (key_site(config, n), f"blocks.{n}.attn.v") for n in names} if start else {}
    with torch.no_grad():
        entry = Point(model.embedded(corrupt), slice(0))
        _, kept = Prompts(model, corrupt, 0, None).run(entry, keep.union(*wanted.values()))
        past = {n: (_before(kept[k], start), _before(kept[v], start)) for n, (k, v) in wanted.items()}
        return Prompts(model, clean, start, past or None), {
            site: kept.pop(site)[:, start:].contiguous() for site in keep
        }


def _before(value: Tensor, start: int) -> Tensor:
    """A copy, so that the rest need not be held."""
    return value[:, :start].contiguous()


@dataclass(frozen=True, eq=False)
class Gradients:
    """The metric's gradient at what the readers of `point` compute and at the final stream; and the sites kept."""

    point: Point
    slopes: dict[str, Tensor]
    final: Float[Tensor, "b pos d_model"]
    sites: dict[str, Tensor]


def gradients(prompts: Prompts, point: Point, metric: Metric, keep: Iterable[str] = ()) -> Gradients:
    """Run to the metric and back; the streams that readers read are kept besides `keep`."""
    read = list(readings(prompts.model, point.writers.start))
    wanted = [site for reading in read for site in reading.sites]
    stay = {*keep, *(reading.stream for reading in read)}
    with torch.enable_grad():
        entry = Point(point.resid.detach().requires_grad_(), point.writers, point.layer, point.given)
        final, kept = prompts.run(entry, {*stay, *wanted})
        values = metric(prompts.model, final, prompts.start)
        if not values.requires_grad:
            raise UserError("The metric has no gradient: it must be computed from the residual stream it is given.")
        inputs = [*(kept[site] for site in wanted), final]
        *slopes, at_final = torch.autograd.grad(values.sum(), inputs, materialize_grads=True)
    return Gradients(point, dict(zip(wanted, slopes)), at_final, {site: kept[site].detach() for site in stay})


def add_scores(
    scores: Float[Tensor, "b writer reader"],
    model: Transformer,
    changes: Float[Tensor, "writer rows d_model"],
    found: Gradients,
) -> None:
    """Add, for each example, the products of the writers' changes with the readers' gradients; slopes are used up."""
    writers, read = found.point.writers, list(readings(model, found.point.writers.start))
    most = max((reading.readers for reading in read), default=0)
    # One room for all layers: memory that is asked for anew costs as much as the products.
    room = changes.new_empty(most, *changes.shape[1:])
    for reading in read:
        own, norm = room[: reading.readers], reading.norm
        slopes = [found.slopes.pop(site) for site in reading.sites]
        if reading.weight is None:
            own[0] = slopes[0].flatten(0, 1)
        else:
            slope = torch.cat([slope.flatten(2) for slope in slopes], -1).flatten(0, 1)
            slope = slope.unflatten(-1, reading.weight.shape[:2]).transpose(0, 1).contiguous()  # twice as fast so
            torch.bmm(slope, reading.weight, out=own)
        if isinstance(norm, Norm):
            back_through(norm, found.sites[reading.stream].flatten(0, 1), own)
        _add_products(scores, changes, own, reading.column, slice(writers.start, min(writers.stop, reading.writers)))
    _add_products(scores, changes, found.final.flatten(0, 1)[None], scores.shape[2] - 1, writers)


def back_through(norm: Norm, x: Float[Tensor, "rows d_model"], gradient: Float[Tensor, "reader rows d_model"]) -> None:
    """Turn gradients at the norm's output into gradients at its input x, each as if its reader alone read x; in place.

    With x̂ the normalised x, σ its scale and g = gradient · gain, a norm's backward is (g − mean g − x̂ mean(g · x̂)) / σ,
    without mean g in RMSNorm.
    """
    if norm.centred:
        x = x - x.mean(-1, keepdim=True)
    inverse = (x.square().mean(-1, keepdim=True) + norm.eps).rsqrt()
    x = x * inverse
    # A few readers at a time stay in the processor's cache.
    room = torch.empty_like(gradient[:_READERS_AT_ONCE])
    for g in gradient.split(_READERS_AT_ONCE):
        g *= norm.w.detach()
        along = torch.mul(g, x, out=room[: len(g)]).mean(-1, keepdim=True)
        if norm.centred:
            g -= g.mean(-1, keepdim=True)
        g.addcmul_(along, x, value=-1).mul_(inverse)


def _add_products(
    scores: Float[Tensor, "b writer all_readers"],
    changes: Float[Tensor, "writer rows d_model"],
    gradient: Float[Tensor, "reader rows d_model"],
    column: int,
    writers: slice,
) -> None:
    batch = len(scores)
    left = changes[writers].unflatten(1, (batch, -1)).flatten(2).transpose(0, 1)
    right = gradient.unflatten(1, (batch, -1)).flatten(2).transpose(0, 1)
    scores[:, writers, column : column + len(gradient)] += left @ right.transpose(1, 2)


def writing_sites(config: TransformerConfig) -> list[str]:
    """What determines the writers' outputs, in the graph's order; the embedding is left out."""
    parts = ["attn.z"] if config.attention_only else ["attn.z", "mlp_out"]
    return [f"blocks.{layer}.{part}" for layer in range(config.n_layers) for part in parts]


def writers_changes(
    model: Transformer,
    embedding: Float[Tensor, "b pos d_model"],
    clean: Mapping[str, Tensor],
    corrupt: Mapping[str, Tensor],
) -> Float[Tensor, "writer rows d_model"]:
    """Corrupt − clean output of every writer at every position of every example; the embedding's is given."""
    edges = graph(model.config)
    found = embedding.new_empty(len(edges.writers), embedding.shape[0] * embedding.shape[1], embedding.shape[2])
    found[0] = embedding.flatten(0, 1)
    row = 1
    for site in writing_sites(model.config):
        change = (corrupt[site] - clean[site]).flatten(0, 1)
        if site.endswith("mlp_out"):
            found[row] = change
            row += 1
        else:
            w_o = model.layers[edges.writers[row].layer].attn.W_O.detach()
            torch.bmm(change.transpose(0, 1), w_o, out=found[row : row + len(w_o)])
            row += len(w_o)
    return found
