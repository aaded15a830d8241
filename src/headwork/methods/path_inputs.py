"""What receivers read when senders write another run's outputs and everything else on the way stays as it is."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headwork.engine.resume import Trace
from headwork.engine.run import run
from headwork.methods.graph import Writer
from headwork.model.transformer import NO_TAP, Block, Transformer

OnTheWay = Literal["frozen", "respond"]
Place = tuple[int, str]
Stream = Float[Tensor, "b some_pos d_model"]
Streams = Float[Tensor, "sender b some_pos d_model"]


@dataclass(frozen=True, eq=False)
class Change:
    """Another run's outputs minus the base run's, at `positions`: of the embedding, and by layer of heads and MLPs.

    Zero where nothing is sent.
    """

    positions: tuple[int, ...]
    embed: Float[Tensor, "b some_pos d_model"]
    z: tuple[Float[Tensor, "b some_pos head d_head"], ...]
    mlp_out: tuple[Float[Tensor, "b some_pos d_model"], ...]


def change(
    base: Trace, other: Int[Tensor, "b pos"], positions: tuple[int, ...], sent: Collection[int]
) -> tuple[Change, Float[Tensor, "b pos d_model"]]:
    """How the run on `other` tokens differs from the base run, at those positions that are `sent`; its final stream."""
    model, config = base.model, base.config
    layers, at = range(config.n_layers), list(positions)
    mlps = [] if config.attention_only else [f"blocks.{layer}.mlp_out" for layer in layers]
    end = [f"blocks.{config.n_layers - 1}.resid_post"] if config.n_layers else []
    done = run(model, other, [f"blocks.{layer}.attn.z" for layer in layers] + mlps + end).activations
    silent = [i for i, p in enumerate(positions) if p not in sent]

    def between(new: Tensor, old: Tensor) -> Tensor:
        found = new[:, at] - old[:, at]
        found[:, silent] = 0
        return found

    with torch.no_grad():
        embedded = model.embedded(other)
        here = between(embedded, model.embedded(base.tokens))
        z, mlp_out = (
            tuple(between(done[name], base.values[name]) for name in names)
            for names in ([f"blocks.{layer}.attn.z" for layer in layers], mlps)
        )
    return Change(positions, here, z, mlp_out), done[end[0]] if end else embedded


def inputs(
    base: Trace, changed: Change, senders: Sequence[Sequence[Writer]], wanted: Collection[Place], mlps: OnTheWay
) -> Iterator[tuple[Place, Stream, Streams]]:
    """What is read at the `wanted` places, in order: the base run's stream there, and each sender's addition to it.

    A sender is a group of writers that write what they do in the other run. The streams are at the changed positions.
    Places before the first sender are left out.
    """
    model, config, at = base.model, base.config, list(changed.positions)
    moved = changed.embed.new_zeros(len(senders), *changed.embed.shape)
    for s in _with(senders, Writer(-1, "embed")):
        moved[s] += changed.embed
    first, last = min(w.layer for group in senders for w in group), max(wanted)[0]
    for layer, block in list(enumerate(model.layers))[max(0, first) : last + 1]:
        here = f"blocks.{layer}"
        if (layer, "attention") in wanted:
            yield (layer, "attention"), base.values[f"{here}.resid_pre"][:, at], moved
        by_heads = _from_heads(model, changed, senders, layer)
        if config.attention_only:
            moved = moved + by_heads
            continue
        entering = base.values[f"{here}.resid_pre" if config.parallel else f"{here}.resid_mid"][:, at]
        read = moved if config.parallel else moved + by_heads
        if (layer, "mlp") in wanted:
            yield (layer, "mlp"), entering, read
        answer = torch.zeros_like(moved)
        if mlps == "respond":
            answer = answers(block, entering + read) - base.values[f"{here}.mlp_out"][:, at]
        for s in _with(senders, Writer(layer, "mlp")):
            answer[s] = changed.mlp_out[layer]
        moved = moved + by_heads + answer
    if (config.n_layers, "logits") in wanted:
        yield (config.n_layers, "logits"), base.resid_final[:, at], moved


def answers(block: Block, read: Streams) -> Streams:
    """What a block's MLP writes on reading these streams."""
    flat = read.flatten(0, 1)
    return block.mlp(block.ln2(flat, NO_TAP, ""), NO_TAP, "").view_as(read)


def _from_heads(model: Transformer, changed: Change, senders: Sequence[Sequence[Writer]], layer: int) -> Streams:
    """What the senders' heads of one layer write in the other run minus in the base run."""
    found = changed.embed.new_zeros(len(senders), *changed.embed.shape)
    w_o = model.layers[layer].attn.W_O
    for s, group in enumerate(senders):
        heads = [w.index for w in group if w.kind == "head" and w.layer == layer]
        if heads:
            found[s] = torch.einsum("bphd,hdm->bpm", changed.z[layer][:, :, heads], w_o[heads])
    return found


def _with(senders: Sequence[Sequence[Writer]], writer: Writer) -> list[int]:
    """Which senders this writer belongs to."""
    return [s for s, group in enumerate(senders) if writer in group]
