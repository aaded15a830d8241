"""Slow twins of the methods: values put into a full forward pass by hand, one head and position at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from headwork.methods.path_patching import Route
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


def said_otherwise(
    clean: Mapping[str, Tensor], corrupt: Mapping[str, Tensor], senders: Sequence[Head], below: int
) -> Tensor:
    """What the senders below a layer write in the corrupt run minus in the clean one, from the sites of both."""
    change = torch.zeros_like(clean["blocks.0.resid_pre"])
    for sender in senders:
        if sender.layer < below:
            site = f"blocks.{sender.layer}.attn.result"
            change = change + corrupt[site][:, :, sender.head] - clean[site][:, :, sender.head]
    return change


def slow_paths(
    model: Transformer,
    tokens: Tensor,
    clean: Mapping[str, Tensor],
    corrupt: Mapping[str, Tensor],
    senders: Sequence[Head],
    receivers: Sequence[Head],
    route: Route,
) -> Tensor:
    """The logits of a full run on `tokens` in which only the receivers read a stream with the senders' corrupt outputs.

    `clean` and `corrupt` are the sites of the two runs by the oracle.
    """
    values: dict[str, dict[int, Tensor]] = {}
    for receiver in receivers:
        if [s for s in senders if s.layer < receiver.layer]:
            index = key_head(model, receiver, route)
            stream = clean[f"blocks.{receiver.layer}.resid_pre"]
            stream = stream + said_otherwise(clean, corrupt, senders, receiver.layer)
            site = values.setdefault(f"blocks.{receiver.layer}.attn.{route}", {})
            site[index] = projected(model, receiver.layer, route, index, stream)
    return logits_with(model, tokens, values)
