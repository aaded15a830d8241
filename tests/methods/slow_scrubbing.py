"""The slow twin of causal scrubbing: one example, one node and one position at a time, each reader's stream a sum."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch
from tests.methods import split_inputs as by_hand
from torch import Tensor

from headwork.methods.graph import graph
from headwork.methods.scrubbing_plan import REST, Plan
from headwork.model.transformer import Transformer


class Slow:
    """Values of a plan's nodes, by recursion over single examples."""

    def __init__(self, model: Transformer, tokens: Tensor) -> None:
        self.model, self.tokens, self.graph = model, tokens, graph(model.config)
        self.on = cache(self._on)

    def _on(self, row: int) -> Mapping[str, Tensor]:
        """What every writer writes `[pos, d_model]` on one input."""
        tokens = self.tokens[row : row + 1]
        with torch.no_grad():
            noted, _ = by_hand.forward(self.model, tokens, by_hand.embeddings(self.model, tokens))
        return {name: value[0] for name, value in noted.outputs.items()}

    def logits(self, plan: Plan, row: int) -> Tensor:
        stream = self.stream("logits", plan.inputs[""], plan, row, 0)
        final = by_hand.normed(self.model.config, self.model.ln_final, stream[None])
        bias = self.model.unembed.bias if self.model.config.unembed_bias else 0.0
        return (final @ self.model.W_U + bias)[0]

    def stream(self, reader: str, inputs: tuple[Plan, ...], plan: Plan, row: int, copy: int) -> Tensor:
        """What a reader reads in copy `copy` of its node, for example `row`."""
        assert plan.unmentioned is not None
        named = {p.node.writer: p for p in inputs if p.node is not None}
        other = int(plan.unmentioned[row, copy])
        total = torch.zeros(self.tokens.shape[1], self.model.config.d_model, dtype=torch.float64)
        seen = self.graph.visible[:, self.graph.reader(reader)]
        for writer in (str(w) for w, visible in zip(self.graph.writers, seen) if visible):
            if writer in named:
                total = total + self.written(named[writer], row, copy)
            elif REST in named:
                total = total + self.leaf(writer, named[REST], row, copy)
            else:
                total = total + self.on(other)[writer]
        layer = self.model.config.n_layers if reader == "logits" else int(reader.lstrip("m").split(".")[0])
        if reader.startswith("m") and not self.model.config.parallel:
            layer += 1  # an MLP reads its own block's attention, its bias included
        for block in self.model.layers[:layer]:
            if self.model.config.out_bias:
                total = total + block.attn.out.bias.detach()
        return total

    def leaf(self, writer: str, plan: Plan, row: int, copy: int) -> Tensor:
        """What a writer writes on the inputs that the plan drew for the reader's copy."""
        assert plan.node is not None
        length = self.tokens.shape[1]
        if not plan.node.feature.by_position:
            return self.on(int(plan.rows[row, copy]))[writer]
        return torch.stack([self.on(int(plan.rows[row, copy * length + p]))[writer][p] for p in range(length)])

    def written(self, plan: Plan, row: int, copy: int) -> Tensor:
        assert plan.node is not None
        if not plan.inputs:
            return self.leaf(plan.node.writer, plan, row, copy)
        if not plan.node.feature.by_position:
            return self.computed(plan, row, copy)
        length = self.tokens.shape[1]
        return torch.stack([self.computed(plan, row, copy * length + p)[p] for p in range(length)])

    def computed(self, plan: Plan, row: int, copy: int) -> Tensor:
        assert plan.node is not None
        c, writer = self.model.config, plan.node.writer
        if writer.startswith("m"):
            block = self.model.layers[int(writer[1:])]
            stream = self.stream(writer, plan.inputs.get("mlp", ()), plan, row, copy)[None]
            return by_hand.mlp(c, block.mlp, by_hand.normed(c, block.ln2, stream))[0]
        layer, head = map(int, writer.split("."))
        attn, shared = self.model.layers[layer].attn, head // (c.n_heads // c.kv_heads)
        parts = {}
        for route, index in (("q", head), ("k", shared), ("v", shared)):
            stream = self.stream(f"{layer}.{index}<{route}>", plan.inputs.get(route, ()), plan, row, copy)[None]
            read = by_hand.normed(c, self.model.layers[layer].ln1, stream)
            if c.positions == "shortformer" and route != "v":
                read = read + self.model.W_pos[: stream.shape[1]]
            weight = {"q": attn.W_Q, "k": attn.W_K, "v": attn.W_V}[route][index]
            parts[route] = read @ weight + {"q": attn.b_Q, "k": attn.b_K, "v": attn.b_V}[route][index]
        if c.qk_norm:
            for route, gain in (("q", attn.q_norm.w), ("k", attn.k_norm.w)):
                parts[route] = parts[route] / (parts[route].pow(2).mean(-1, keepdim=True) + c.norm_eps).sqrt() * gain
        q, k = (by_hand.turned(c, parts[r]) if c.positions == "rotary" else parts[r] for r in "qk")
        scores = (q @ k.transpose(1, 2)) * c.scale
        sees = by_hand.seen(
            c, self.tokens[int(plan.rows[row, copy])][None], c.window if layer in c.local_layers else None
        )
        weights = torch.where(sees, scores.exp(), 0.0)
        total = weights.sum(-1, keepdim=True)
        pattern = c.attention_mix * weights / torch.where(total > 0, total, 1.0) + (1 - c.attention_mix) * sees.to(q)
        return (pattern @ parts["v"] @ attn.W_O[head])[0]
