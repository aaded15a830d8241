"""A head's weights as the residual stream meets them: what its OV and QK circuits are made of (Elhage et al. 2021).

With the pattern given, a head is linear in the stream through W_V W_O, and its scores are bilinear through W_Q W_Kᵀ,
but for norms and biases. Biases are left out throughout. Of a norm, dividing by the scale depends on the prompt and is
left out too; centring and gain are linear, and `norm` says whether they are `folded` into the weights behind the norm
(the norms of queries and keys, where there are such, likewise) or `ignored` with the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headwork.errors import UserError, unknown
from headwork.model.config import TransformerConfig
from headwork.model.rotary import rotary_table, rotate
from headwork.model.sites import Head, heads, parse_head
from headwork.model.transformer import NO_TAP, NoNorm, Norm, Transformer

NormTreatment = Literal["ignored", "folded"]
Start = Literal["embedding", "after MLP 0"]
Reads = Float[Tensor, "d_model d_head"]
Writes = Float[Tensor, "d_head d_model"]


def value_output(model: Transformer, head: Head, norm: NormTreatment) -> tuple[Reads, Writes]:
    """W_V and W_O of a head, in float64; the values are those of the key–value head that it shares with its group."""
    block = model.layers[head.layer]
    v = block.attn.W_V[key_value_head(model.config, head)].detach().double()
    return _behind(block.ln1, v, norm), block.attn.W_O[head.head].detach().double()


def query_key(model: Transformer, head: Head, norm: NormTreatment, offset: int | None) -> tuple[Reads, Reads]:
    """W_Q R(offset) × scale, and W_K, in float64: a query `offset` positions behind its key scores x W_Q R W_Kᵀ yᵀ.

    R is the identity without rotary positions (Su et al. 2021). `offset` must have passed `check_offset`.
    """
    config, block = model.config, model.layers[head.layer]
    q = block.attn.W_Q[head.head].detach().double()
    k = block.attn.W_K[key_value_head(config, head)].detach().double()
    if norm == "folded" and config.qk_norm:
        q, k = q * block.attn.q_norm.w.detach().double(), k * block.attn.k_norm.w.detach().double()
    if offset is not None and config.turned:
        table = rotary_table(config, torch.tensor([offset], device=q.device), torch.float64)
        q = rotate(q[None, None], *table, config)[0, 0]
    # Shortformer adds positions behind the norm: the norm still stands before what the stream itself is read with.
    return _behind(block.ln1, q, norm) * config.scale, _behind(block.ln1, k, norm)


def position_query_key(model: Transformer, head: Head, norm: NormTreatment) -> tuple[Reads, Reads]:
    """As `query_key`, for what the table of positions adds: shortformer positions do not pass the block's norm."""
    if model.config.positions == "learned":
        return query_key(model, head, norm, None)
    with_gains = query_key(model, head, "ignored", None)
    if norm == "ignored" or not model.config.qk_norm:
        return with_gains
    attn = model.layers[head.layer].attn
    return with_gains[0] * attn.q_norm.w.detach().double(), with_gains[1] * attn.k_norm.w.detach().double()


def token_vectors(model: Transformer, tokens: Int[Tensor, " token"], start: Start) -> Float[Tensor, "token d_model"]:
    """What the stream holds of a token itself, in float64: its embedding, or that and what MLP 0 makes of it alone.

    After MLP 0 it is W_E + MLP₀(norm(W_E)), with norm and biases as they are and without attention or positions: the
    extended embedding, where a copy score starts (Wang et al. 2022, who take it from real prompts).
    """
    found = model.W_E.detach()[tokens]
    if start == "after MLP 0":
        block = model.layers[0]
        with torch.no_grad():
            normed = block.ln2(found[None], NO_TAP, "")
            found = found + block.mlp(normed, NO_TAP, "")[0]
    return found.double()


def unembedding(
    model: Transformer, outputs: Int[Tensor, " output"], norm: NormTreatment
) -> Float[Tensor, "d_model output"]:
    """Columns of W_U, in float64, not centred over the vocabulary."""
    return _behind(model.ln_final, model.W_U[:, outputs].detach().double(), norm)


def _behind(
    module: Norm | NoNorm, weight: Float[Tensor, "d_model columns"], norm: NormTreatment
) -> Float[Tensor, "d_model columns"]:
    """A weight that reads the stream through a norm, with the norm's centring and gain folded in where asked for."""
    if norm == "ignored" or not isinstance(module, Norm):
        return weight
    weight = module.w.detach().double()[:, None] * weight
    return weight - weight.mean(0) if module.centred else weight


def key_value_head(config: TransformerConfig, head: Head) -> int:
    """The key–value head of a head: its own, or under grouped queries that of its group."""
    return head.head // (config.n_heads // config.kv_heads)


def chosen_heads(config: TransformerConfig, given: Sequence[Head | str] | None, what: str = "heads") -> list[Head]:
    """The heads asked for (`3.5` or `Head`), all by default; `UserError` for one that does not exist or is twice."""
    if given is None:
        if not config.n_layers:
            raise UserError("This network has no layers and so no heads.")
        return heads(config)
    found = [parse_head(str(head), config) for head in ([given] if isinstance(given, str) else given)]
    if not found or len(set(found)) < len(found):
        raise UserError(f"The {what} are {[str(h) for h in found]}; at least one is needed, and each once.")
    return found


def head_coordinates(config: TransformerConfig, chosen: Sequence[Head], dim: str = "head") -> dict[str, Any]:
    """Labels `layer.head` of a dimension, with layer and key–value head beside them."""
    prefix = "" if dim == "head" else f"{dim}_"
    return {
        dim: [str(head) for head in chosen],
        f"{prefix}layer": (dim, [head.layer for head in chosen]),
        f"{prefix}kv_head": (dim, [key_value_head(config, head) for head in chosen]),
    }


def check_norm(norm: str) -> None:
    """`UserError` for a treatment of norms that does not exist."""
    if norm not in get_args(NormTreatment):
        raise unknown("treatment of norms", norm, get_args(NormTreatment))


def check_start(config: TransformerConfig, start: str) -> None:
    """`UserError` for a start that does not exist, or not in this network."""
    if start not in get_args(Start):
        raise unknown("start of a circuit", start, get_args(Start))
    if start == "after MLP 0" and (config.attention_only or not config.n_layers):
        raise UserError("This network has no MLP 0; its circuits start at 'embedding'.")


def check_offset(config: TransformerConfig, offset: int | None) -> None:
    """`UserError` where scores depend on an offset and none is stated, the other way round, or it is out of range."""
    if not config.turned:
        if offset is not None:
            raise UserError(f"offset = {offset} was given, but this network has no rotary positions; leave it out.")
        return
    low, high = (0 if config.causal else 1 - config.n_ctx), config.n_ctx - 1
    if offset is None:
        raise UserError(
            "Under rotary positions W_Q W_Kᵀ depends on how far the query is behind its key; "
            f"state offset, from {low} to {high}."
        )
    if not low <= offset <= high:
        raise UserError(f"offset = {offset} is out of range; a query is {low} to {high} positions behind its key.")


def treatment(config: TransformerConfig, norm: NormTreatment, offset: int | None = None) -> dict[str, Any]:
    """Attributes that say how norms, biases and rotation were treated."""
    words = {
        "ignored": "ignored: centring, gain and scale left out",
        "folded": "folded: centring and gain folded in, scale left out",
    }
    normed = config.norm != "none" or config.qk_norm
    said = {"norm": words[norm] if normed else "the network has none", "biases": "left out"}
    return said | ({} if offset is None else {"offset": offset})
