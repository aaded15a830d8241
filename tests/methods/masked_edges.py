"""The slow twin of every method that cuts edges: the hand-written pass in which each reader mixes what it reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from tests.methods.split_inputs import Pass, embeddings, forward
from torch import Tensor

from headwork.methods.graph import graph
from headwork.model.transformer import Transformer


@dataclass
class _Mixed(Pass):
    """Each reader reads, of every writer, its share of the live output and the rest of the ablated one."""

    ablated: Mapping[str, Tensor] = field(default_factory=dict)
    shares: Mapping[tuple[str, str], float] = field(default_factory=dict)

    def own(self, reader: str, stream: Tensor, writers: list[str]) -> Tensor:
        change = torch.zeros_like(stream)
        for writer in writers:
            lost = 1 - float(self.shares[writer, reader])
            change = change + lost * (self.ablated[writer] - self.outputs[writer])
        self.leaves[reader] = change
        return stream + change


def outputs(model: Transformer, tokens: Tensor) -> dict[str, Tensor]:
    """What every writer writes on these tokens, by name."""
    with torch.no_grad():
        return forward(model, tokens, embeddings(model, tokens))[0].outputs


def slow_logits(model: Transformer, tokens: Tensor, ablated: Mapping[str, Tensor], mask: Tensor) -> Tensor:
    """The logits of the run in which `mask [writer, reader]` gives the live share of every edge."""
    edges = graph(model.config)
    shares = {
        (str(w), str(r)): float(mask[i, j]) for i, w in enumerate(edges.writers) for j, r in enumerate(edges.readers)
    }
    with torch.no_grad():
        noted = _Mixed(tokens, ablated=ablated, shares=shares)
        return forward(model, tokens, embeddings(model, tokens), noted=noted)[1]
