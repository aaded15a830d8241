"""Path patching (Wang et al. 2022; Goldowsky-Dill et al. 2023): what one head tells another, and nothing else.

A path runs from sender heads through the residual stream straight into the queries, keys or values of receiver heads,
or into the logits; every other head and MLP on the way keeps its clean value. Behind the receivers everything responds.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from headwork.engine.edits import Edit, add, replace
from headwork.engine.resume import Trace
from headwork.engine.run import Run
from headwork.model.sites import Head
from headwork.model.transformer import NO_TAP, Block, Transformer

Route = Literal["q", "k", "v"]


def path_edits(
    model: Transformer, clean: Trace, corrupt: Run, senders: Sequence[Head], receivers: Sequence[Head], route: Route
) -> list[Edit]:
    """Edits, for a resumed clean run, that give the receivers' `route` input the senders' corrupt outputs.

    `corrupt` must hold `blocks.*.attn.z` of the senders' layers. Senders not below a receiver have no path to it; where
    no sender has one, the list is empty. Under grouped-query attention a key or value belongs to its whole group: all
    heads that share it with a receiver receive too.
    """
    edits = []
    for layer, group in itertools.groupby(sorted(receivers), key=lambda h: h.layer):
        below = [s for s in senders if s.layer < layer]
        if not below:
            continue
        stream = clean.values[f"blocks.{layer}.resid_pre"] + difference(model, clean, corrupt, below)
        new = projected(model, model.layers[layer], stream, route)
        per_group = 1 if route == "q" else model.config.n_heads // model.config.kv_heads
        edits.append(replace(f"blocks.{layer}.attn.{route}", new, sorted({h.head // per_group for h in group})))
    return edits


def direct_edit(model: Transformer, clean: Trace, corrupt: Run, senders: Sequence[Head]) -> Edit:
    """The edit that gives the logits the senders' corrupt outputs and leaves all later layers clean."""
    last = model.config.n_layers - 1
    return add(f"blocks.{last}.resid_post", difference(model, clean, corrupt, senders))


def difference(
    model: Transformer, clean: Trace, corrupt: Run, senders: Sequence[Head]
) -> Float[Tensor, "batch pos d_model"]:
    """What the senders write in the corrupt run minus what they write in the clean one."""
    total = torch.zeros_like(clean.values["blocks.0.resid_pre"])
    for layer, group in itertools.groupby(sorted(set(senders)), key=lambda h: h.layer):
        site = f"blocks.{layer}.attn.z"
        heads = [h.head for h in group]
        change = (corrupt[site] - clean.values[site])[:, :, heads]
        total += torch.einsum("bphd,hdm->bpm", change, model.layers[layer].attn.W_O[heads])
    return total


def projected(
    model: Transformer,
    block: Block,
    stream: Float[Tensor, "batch pos d_model"],
    route: Route,
    heads: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
) -> Float[Tensor, "batch pos some_heads d_head"]:
    """Queries, keys or values (before norm and rotation) that a block computes from a residual stream.

    Of `heads` (key–value heads for keys and values), all where left out; the stream is at `positions`, or at the first
    ones of the prompts.
    """
    attention = block.attn
    normed = block.ln1(stream, NO_TAP, "")
    if route != "v" and model.config.positions == "shortformer":
        normed = normed + model.W_pos[list(range(stream.shape[1]) if positions is None else positions)]
    weight = {"q": attention.W_Q, "k": attention.W_K, "v": attention.W_V}[route]
    bias = {"q": attention.b_Q, "k": attention.b_K, "v": attention.b_V}[route]
    if heads is not None:
        weight, bias = weight[list(heads)], bias[list(heads)]
    return torch.einsum("bpm,hmd->bphd", normed, weight) + bias
