"""The slow twin of edge attribution: a forward pass by hand in which every reader has an input of its own.

Each reader reads the stream plus a leaf of zeros that nothing else reads, so that autograd gives the gradient at that
reader's input. It shares no code with the package but the names under which weights are found.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from headwork.model.config import TransformerConfig
from headwork.model.transformer import Attention, Norm, Transformer

Stream = Tensor
Final = Callable[[Tensor], Tensor]


@dataclass
class Pass:
    """What one pass leaves: each writer's output, each reader's leaf, and which writers each reader hears."""

    tokens: Tensor
    outputs: dict[str, Tensor] = field(default_factory=dict)
    leaves: dict[str, Tensor] = field(default_factory=dict)
    heard: dict[str, list[str]] = field(default_factory=dict)

    def own(self, reader: str, stream: Stream, writers: list[str]) -> Stream:
        self.leaves[reader] = torch.zeros_like(stream, requires_grad=True)
        self.heard[reader] = list(writers)
        return stream + self.leaves[reader]


def slow_edges(
    model: Transformer, clean: Tensor, corrupt: Tensor, metric: Final, steps: list[float]
) -> dict[tuple[str, str], Tensor]:
    """Score of every edge for every example; `steps` are the shares of the clean embeddings in each gradient's run.

    `metric` maps logits `[batch, pos, vocab]` to one number each.
    """
    ends = embeddings(model, clean), embeddings(model, corrupt)
    before, after = (forward(model, t, x)[0].outputs for t, x in zip((clean, corrupt), ends))
    found: dict[tuple[str, str], Tensor] = {}
    for share in steps:
        noted, logits = forward(model, clean, share * ends[0] + (1 - share) * ends[1])
        names = list(noted.leaves)
        gradients = torch.autograd.grad(metric(logits).sum(), [noted.leaves[n] for n in names])
        for reader, gradient in zip(names, gradients):
            for writer in noted.heard[reader]:
                score = ((after[writer] - before[writer]) * gradient).sum((1, 2)).detach() / len(steps)
                found[writer, reader] = found.get((writer, reader), torch.zeros(len(clean))) + score
    return found


def slow_edges_between_outputs(
    model: Transformer, clean: Tensor, corrupt: Tensor, metric: Final, steps: list[float]
) -> dict[tuple[str, str], Tensor]:
    """The same, where each gradient's run is clean but for one layer's heads, its MLP, or the embedding."""
    start = embeddings(model, clean)
    before = forward(model, clean, start)[0].outputs
    after = forward(model, corrupt, embeddings(model, corrupt))[0].outputs
    found: dict[tuple[str, str], Tensor] = {}
    for group in dict.fromkeys(name.split(".")[0] for name in before):
        members = [name for name in before if name.split(".")[0] == group]
        for share in steps:
            mixed = {name: (share * before[name] + (1 - share) * after[name]).detach() for name in members}
            noted, logits = forward(model, clean, mixed.get("embed", start), mixed)
            names = [r for r in noted.leaves if members[0] in noted.heard[r]]
            grads = torch.autograd.grad(metric(logits).sum(), [noted.leaves[n] for n in names])
            for reader, gradient in zip(names, grads):
                for writer in members:
                    score = ((after[writer] - before[writer]) * gradient).sum((1, 2)).detach() / len(steps)
                    found[writer, reader] = found.get((writer, reader), torch.zeros(len(clean))) + score
    return found


def embeddings(model: Transformer, tokens: Tensor) -> Stream:
    x = model.W_E[tokens]
    return (x + model.W_pos[: tokens.shape[1]] if model.config.positions == "learned" else x).detach()


def forward(
    model: Transformer,
    tokens: Tensor,
    stream: Stream,
    put: Mapping[str, Tensor] | None = None,
    noted: Pass | None = None,
) -> tuple[Pass, Tensor]:
    """Everything noted on the way, and the logits; the writers in `put` write that instead."""
    put = put or {}
    c, noted = model.config, noted or Pass(tokens)
    noted.outputs["embed"] = stream
    writers = ["embed"]
    for layer, block in enumerate(model.layers):
        added, names = torch.zeros_like(stream), []
        for head in range(c.n_heads):
            out = attend(c, block.attn, block.ln1, stream, layer, head, noted, writers, model)
            out = put.get(f"{layer}.{head}", out)
            noted.outputs[f"{layer}.{head}"] = out
            added = added + out
            names.append(f"{layer}.{head}")
        if c.out_bias:
            added = added + block.attn.out.bias
        if c.d_mlp:
            hears = writers if c.parallel else writers + names
            read = noted.own(f"m{layer}", stream if c.parallel else stream + added, hears)
            noted.outputs[f"m{layer}"] = out = put.get(f"m{layer}", mlp(c, block.mlp, normed(c, block.ln2, read)))
            added = added + out
            names.append(f"m{layer}")
        stream, writers = stream + added, writers + names
    final = normed(c, model.ln_final, noted.own("logits", stream, writers))
    bias = model.unembed.bias if c.unembed_bias else 0.0
    return noted, final @ model.W_U + bias


def attend(
    c: TransformerConfig,
    attn: Attention,
    norm: torch.nn.Module,
    stream: Stream,
    layer: int,
    head: int,
    noted: Pass,
    writers: list[str],
    model: Transformer,
) -> Stream:
    """One head's output. Heads that share keys and values share those readers, by adding the very same leaf."""
    shared = head // (c.n_heads // (c.n_kv_heads or c.n_heads))
    parts = {}
    for part, index in (("q", head), ("k", shared), ("v", shared)):
        name = f"{layer}.{index}<{part}>"
        read = stream + noted.leaves[name] if name in noted.leaves else noted.own(name, stream, writers)
        read = normed(c, norm, read)
        if c.positions == "shortformer" and part != "v":
            read = read + model.W_pos[: stream.shape[1]]
        weight = {"q": attn.W_Q, "k": attn.W_K, "v": attn.W_V}[part][index]
        bias = {"q": attn.b_Q, "k": attn.b_K, "v": attn.b_V}[part][index]
        parts[part] = read @ weight + bias
    if c.qk_norm:
        for part, gain in (("q", attn.q_norm.w), ("k", attn.k_norm.w)):
            parts[part] = parts[part] / (parts[part].pow(2).mean(-1, keepdim=True) + c.norm_eps).sqrt() * gain
    q, k = (turned(c, parts[part]) if c.positions == "rotary" else parts[part] for part in "qk")
    scores = torch.einsum("bqd,bkd->bqk", q, k) * (c.attention_scale or 1 / math.sqrt(c.d_head))
    sees = seen(c, noted.tokens, c.window if layer in c.local_layers else None)
    weights = torch.where(sees, scores.exp(), 0.0)
    total = weights.sum(-1, keepdim=True)
    pattern = c.attention_mix * weights / torch.where(total > 0, total, 1.0) + (1 - c.attention_mix) * sees.to(q)
    return pattern @ parts["v"] @ attn.W_O[head]


def seen(c: TransformerConfig, tokens: Tensor, window: int | None) -> Tensor:
    batch, length = tokens.shape
    found = torch.zeros(batch, length, length, dtype=torch.bool)
    for b in range(batch):
        for query in range(length):
            for key in range(length):
                near = window is None or abs(query - key) < window
                found[b, query, key] = near and (key <= query or not c.causal) and int(tokens[b, key]) != c.pad_token
    return found


def turned(c: TransformerConfig, x: Tensor) -> Tensor:
    r = c.rotary_dim or c.d_head
    columns = list(x.unbind(-1))
    for i in range(r // 2):
        a, b = (i, i + r // 2) if c.rotary_style == "half" else (2 * i, 2 * i + 1)
        angle = torch.arange(x.shape[1], dtype=x.dtype) * speed(c, c.rotary_base ** (-2 * i / r))
        columns[a], columns[b] = (
            columns[a] * angle.cos() - columns[b] * angle.sin(),
            columns[b] * angle.cos() + columns[a] * angle.sin(),
        )
    return torch.stack(columns, -1)


def speed(c: TransformerConfig, plain: float) -> float:
    """Radians a position, slowed for pairs that turn seldom where the configuration says so (Llama 3.1)."""
    if c.rotary_factor is None:
        return plain
    turns = c.rotary_trained_ctx * plain / (2 * math.pi)
    kept = min(1.0, max(0.0, (turns - c.rotary_low_factor) / (c.rotary_high_factor - c.rotary_low_factor)))
    return (1 - kept) * plain / c.rotary_factor + kept * plain


def normed(c: TransformerConfig, norm: torch.nn.Module, x: Tensor) -> Tensor:
    if c.norm == "none":
        return x
    assert isinstance(norm, Norm)
    if c.norm == "layernorm":
        x = x - x.mean(-1, keepdim=True)
    x = x / (x.pow(2).mean(-1, keepdim=True) + c.norm_eps).sqrt() * norm.w
    return x if norm.b is None else x + norm.b


def mlp(c: TransformerConfig, layer: torch.nn.Module, x: Tensor) -> Tensor:
    inward, outward = layer.inward, layer.outward
    assert isinstance(inward, torch.nn.Linear)
    assert isinstance(outward, torch.nn.Linear)
    inner = x @ inward.weight.T + (0.0 if inward.bias is None else inward.bias)
    post = activated(c, inner[..., : c.d_mlp])
    if c.activation == "solu_ln":
        neurons = layer.ln
        assert isinstance(neurons, Norm)
        post = post - post.mean(-1, keepdim=True)
        post = post / (post.pow(2).mean(-1, keepdim=True) + c.norm_eps).sqrt() * neurons.w
        post = post if neurons.b is None else post + neurons.b
    if c.gated_mlp:
        post = post * inner[..., c.d_mlp :]
    return post @ outward.weight.T + (0.0 if outward.bias is None else outward.bias)


def activated(c: TransformerConfig, x: Tensor) -> Tensor:
    if c.activation == "relu":
        return torch.where(x > 0, x, 0.0)
    if c.activation == "silu":
        return x / (1 + (-x).exp())
    if c.activation in ("solu", "solu_ln"):
        return x * x.exp() / x.exp().sum(-1, keepdim=True)
    if c.activation == "gelu":
        return x * (1 + torch.erf(x / math.sqrt(2))) / 2
    return x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
