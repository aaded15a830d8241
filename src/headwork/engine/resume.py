"""Traces, and resuming a forward pass from where an edit bites.

In a causal network an edit at layer L and position p changes nothing before layer L nor at positions before p; so only
layers ≥ L are computed again, at positions ≥ p, against the trace's keys and values. A bidirectional network resumes by
layer only. Inside layer L, parts that the edits do not reach are taken from the trace.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headwork.engine.edits import Edit
from headwork.engine.run import Run, Tokens, Watch, as_tokens, observe
from headwork.errors import UserError
from headwork.model import sites as places
from headwork.model.config import TransformerConfig
from headwork.model.sites import layer_of, resolve
from headwork.model.transformer import Transformer


@dataclass(frozen=True)
class Trace:
    """What one forward pass of `model` leaves and later edits need: `values` by site name, and the final stream."""

    model: Transformer
    tokens: Int[Tensor, "batch pos"]
    values: Mapping[str, Tensor]
    resid_final: Float[Tensor, "batch pos d_model"]

    @cached_property
    def logits(self) -> Float[Tensor, "batch pos d_vocab_out"]:
        """The unedited run's logits, made when they are first asked for."""
        with torch.no_grad():
            return self.model.logits(self.resid_final)

    @property
    def config(self) -> TransformerConfig:
        return self.model.config

    def require(self, model: Transformer) -> None:
        """Raise `UserError` unless the trace was made on this very network: another seed's has other values."""
        if model is not self.model:
            raise UserError("The trace was made on another network than the one to resume; trace this one first.")


def trace_sites(config: TransformerConfig) -> list[str]:
    """What a trace holds: stream at each sub-block, rotated keys, values, z, MLP outputs."""
    parts = ["resid_pre", "attn.v", "attn.z"]
    if not config.attention_only:
        parts += ["mlp_out"] if config.parallel else ["resid_mid", "mlp_out"]
    layers = range(config.n_layers)
    return [name for n in layers for name in (places.key_site(config, n), *(f"blocks.{n}.{part}" for part in parts))]


def trace(model: Transformer, tokens: Tokens) -> Trace:
    """Run the network once and keep what resuming needs."""
    tokens = as_tokens(model, tokens)
    values, final = observe(model, tokens, trace_sites(model.config))
    return Trace(model, tokens, values, final)


@dataclass(frozen=True)
class Entry:
    """Where a resumed pass enters: the first layer and position to compute, and what inside that layer stays valid."""

    layer: int
    start: int
    valid: frozenset[str] = frozenset()
    embeds: bool = False


def entry(config: TransformerConfig, edits: Sequence[Edit], keep: Sequence[str] = ()) -> Entry:
    """The latest entry that still recomputes everything that `edits` change and `keep` asks for."""
    described = places.sites(config)
    wanted = [*(e.site for e in edits), *keep]
    start = min((e.start for e in edits), default=0) if config.causal else 0
    if not {"embed", "pos_embed"}.isdisjoint(wanted):
        return Entry(0, start, embeds=True)
    layer = min((config.n_layers if (at := layer_of(w)) is None else at for w in wanted), default=config.n_layers)
    stages = {described[w].stage for w in wanted if layer_of(w) == layer}
    valid = set()
    if stages:
        earliest = min(stages)
        if earliest > places.SCORED:
            valid.add(f"blocks.{layer}.attn.z")
        if earliest > places.ATTENTION_OUT:
            valid.add(f"blocks.{layer}.resid_mid")
        reaches_mlp = {places.BLOCK_INPUT, places.BETWEEN, places.MLP_IN} if config.parallel else range(places.MLP_OUT)
        if not stages & set(reaches_mlp):
            valid.add(f"blocks.{layer}.mlp_out")
    return Entry(layer, start, frozenset(valid))


class _Resumption(Watch):
    """A watched pass that hands out what the trace still knows."""

    def __init__(self, base: Trace, where: Entry, edits: Sequence[Edit], keep: Iterable[str]) -> None:
        super().__init__(base.config, keep, edits, where.start)
        self.base, self.where = base, where

    def given(self, site: str) -> Tensor | None:
        known = site in self.where.valid and site in self.base.values
        return self.base.values[site][:, self.where.start :] if known else None


def _resumed_stream(model: Transformer, tap: _Resumption) -> Float[Tensor, "batch pos d_model"]:
    """The final residual stream from the entry's position on; sites after the last block are left to the caller."""
    config, base, where = model.config, tap.base, tap.where
    if where.layer >= config.n_layers and not where.embeds:
        return base.resid_final[:, where.start :]
    if where.embeds:
        resid = model.embedded(base.tokens, tap, where.start)
    else:
        resid = base.values[f"blocks.{where.layer}.resid_pre"][:, where.start :]
    before = slice(None), slice(where.start)
    past = {
        n: (base.values[places.key_site(config, n)][before], base.values[f"blocks.{n}.attn.v"][before])
        for n in range(where.layer, config.n_layers)
    }
    frame = model.frame(base.tokens, where.start, past, tap)
    for block in model.layers[where.layer :]:
        resid = block(resid, frame, tap)
    return resid


def resume(
    model: Transformer, base: Trace, edits: Iterable[Edit] | Edit = (), sites: Iterable[str] | str = ()
) -> tuple[Run, int]:
    """What `run(model, base.tokens, sites, edits)` would give, computing only what the edits change.

    Returns the run, its tokens, logits and activations covering the positions from the returned start on. Raises
    `UserError` for edits or sites that do not exist, or a trace of another network.
    """
    base.require(model)
    edits = [edits] if isinstance(edits, Edit) else edits
    edits = [edit.checked(model.config, *base.tokens.shape) for edit in edits]
    keep = resolve(model.config, sites)
    where = entry(model.config, edits, keep)
    tap = _Resumption(base, where, edits, keep)
    with torch.no_grad():
        logits = model.logits(_resumed_stream(model, tap), tap)
    tokens = base.tokens[:, where.start :]
    return Run(model.config, tokens, logits, {name: tap.kept[name] for name in keep}), where.start
