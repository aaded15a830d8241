"""What the methods' slow twins share: a tap that puts values into a full forward pass, and one head's projections."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from headwork.model.sites import Head
from headwork.model.transformer import NO_TAP, Transformer

NETWORKS = (
    "attention-only-rotary-half",
    "attention-only-learned",
    "gpt2",
    "neox",
    "llama",
    "one-kv-head",
    "shortformer",
)


class Put:
    """Puts `values[site][:, :, head]` into a forward pass, head by head."""

    def __init__(self, values: Mapping[str, Mapping[int, Tensor]]) -> None:
        self.values = values

    def given(self, site: str) -> Tensor | None:
        return None

    def wants(self, site: str) -> bool:
        return site in self.values

    def __call__(self, site: str, value: Tensor) -> Tensor:
        if site not in self.values:
            return value
        value = value.clone()
        for head, new in self.values[site].items():
            value[:, :, head] = new
        return value


def logits_with(model: Transformer, tokens: Tensor, values: Mapping[str, Mapping[int, Tensor]]) -> Tensor:
    """The logits of a full run with these values put in."""
    with torch.no_grad():
        return model(tokens, Put(values))


def projected(model: Transformer, layer: int, route: str, head: int, stream: Tensor) -> Tensor:
    """What one head (of keys or values: one key–value head) reads of a residual stream, position by position."""
    attn = model.layers[layer].attn
    weight = {"q": attn.W_Q, "k": attn.W_K, "v": attn.W_V}[route][head]
    bias = {"q": attn.b_Q, "k": attn.b_K, "v": attn.b_V}[route][head]
    read = model.layers[layer].ln1(stream, NO_TAP, "")
    found = torch.empty(*stream.shape[:2], weight.shape[1], dtype=stream.dtype)
    for b in range(stream.shape[0]):
        for p in range(stream.shape[1]):
            x = read[b, p]
            if model.config.positions == "shortformer" and route != "v":
                x = x + model.W_pos[p]
            found[b, p] = x @ weight + bias
    return found


def key_head(model: Transformer, head: Head, route: str) -> int:
    """The index of a head among the queries, or among the keys or values that it shares with its group."""
    shared = model.config.n_heads // (model.config.n_kv_heads or model.config.n_heads)
    return head.head if route == "q" else head.head // shared
