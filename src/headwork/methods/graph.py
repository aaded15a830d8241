"""The computational graph of a transformer: who writes into the residual stream, who reads it, and every edge between.

Nodes are the embedding, every head, every MLP and the logits (Elhage et al. 2021). An edge runs from a writer to each
later reader: a head reads by its queries, keys and values separately. In a parallel block the MLP does not read its own
block's heads; under grouped-query attention keys and values belong to key–value heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from headwork.model.config import TransformerConfig


@dataclass(frozen=True, order=True)
class Writer:
    """What adds to the residual stream: `embed`, head `3.5`, or MLP `m3`."""

    layer: int
    kind: str
    index: int = 0

    def __str__(self) -> str:
        return {"embed": "embed", "head": f"{self.layer}.{self.index}", "mlp": f"m{self.layer}"}[self.kind]


@dataclass(frozen=True, order=True)
class Reader:
    """What reads the residual stream: a head's `q`, `k` or `v`, an MLP, or the logits."""

    layer: int
    kind: str
    index: int = 0

    def __str__(self) -> str:
        if self.kind == "logits":
            return "logits"
        return f"m{self.layer}" if self.kind == "mlp" else f"{self.layer}.{self.index}<{self.kind}>"


@dataclass(frozen=True)
class Graph:
    """Writers and readers in the order of the forward pass; `visible[w, r]` says whether the edge exists."""

    writers: tuple[Writer, ...]
    readers: tuple[Reader, ...]
    visible: np.ndarray

    @property
    def edges(self) -> int:
        """How many edges there are."""
        return int(self.visible.sum())

    def writer(self, name: str) -> int:
        """The row of a writer by its name."""
        return [str(w) for w in self.writers].index(name)

    def reader(self, name: str) -> int:
        """The column of a reader by its name."""
        return [str(r) for r in self.readers].index(name)


@lru_cache(maxsize=32)
def graph(config: TransformerConfig) -> Graph:
    """The graph of an architecture; GPT-2 small has 32,491 edges."""
    writers: list[Writer] = [Writer(-1, "embed")]
    readers: list[Reader] = []
    seen: list[int] = []
    for layer in range(config.n_layers):
        before = len(writers)
        heads = [Reader(layer, "q", h) for h in range(config.n_heads)]
        heads += [Reader(layer, kind, h) for kind in "kv" for h in range(config.kv_heads)]
        readers += heads
        seen += [before] * len(heads)
        writers += [Writer(layer, "head", h) for h in range(config.n_heads)]
        if not config.attention_only:
            readers.append(Reader(layer, "mlp"))
            seen.append(before if config.parallel else len(writers))
            writers.append(Writer(layer, "mlp"))
    readers.append(Reader(config.n_layers, "logits"))
    seen.append(len(writers))
    visible = np.arange(len(writers))[:, None] < np.array(seen)
    return Graph(tuple(writers), tuple(readers), visible)
