"""Circuits as objects: some edges of a transformer's graph, or whole nodes (Elhage et al. 2021; Conmy et al. 2023).

A node circuit keeps or loses the whole output of a head or an MLP, for every reader (Wang et al. 2022); the embedding
is in every node circuit, since ablating it would leave no input. An edge circuit keeps or loses what one reader gets of
one writer, the embedding among the writers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from headwork.errors import UserError, nearest, unknown
from headwork.methods.graph import Graph, Reader, graph
from headwork.model.config import TransformerConfig

Granularity = Literal["edge", "node"]


@dataclass(frozen=True, eq=False)
class Circuit:
    """Some of the edges of an architecture's graph; `edges[w, r]` says whether the edge is in the circuit.

    Writers and readers are those of `graph(config)`, in its order. With granularity `node` the edges are all those that
    leave the embedding and the chosen heads and MLPs, so that a whole row is in or out. Equal circuits compare equal.
    Raises `UserError` for a wrong shape, an edge that does not exist, and a node circuit that cuts a row.
    """

    config: TransformerConfig
    edges: Bool[np.ndarray, "writer reader"]
    granularity: Granularity = "edge"

    def __post_init__(self) -> None:
        if self.granularity not in get_args(Granularity):
            raise unknown("granularity of a circuit:", str(self.granularity), get_args(Granularity))
        known, given = self.graph, np.array(self.edges)
        if given.shape != known.visible.shape or given.dtype != bool:
            raise UserError(
                f"A circuit's edges are {given.dtype} of shape {list(given.shape)}; this network needs bool "
                f"{list(known.visible.shape)}, [writer, reader]."
            )
        wrong = np.argwhere(given & ~known.visible)
        if len(wrong):
            raise _no_edge(known, str(known.writers[wrong[0][0]]), str(known.readers[wrong[0][1]]))
        if self.granularity == "node" and (given != (rows(given)[:, None] & known.visible)).any():
            raise UserError(
                "A node circuit keeps or loses all edges of a writer; for single edges use granularity edge."
            )
        if self.granularity == "node" and not given[0].any():
            raise UserError("A node circuit has the embedding; only heads and MLPs can be left out.")
        given.flags.writeable = False
        object.__setattr__(self, "edges", given)

    @property
    def graph(self) -> Graph:
        """The graph that the circuit is a part of."""
        return graph(self.config)

    @property
    def mask(self) -> Bool[Tensor, "writer reader"]:
        """The edges as a tensor: true where an edge is live."""
        return torch.from_numpy(self.edges.copy())

    @property
    def names(self) -> tuple[str, ...]:
        """The edges by name, such as `embed->0.1<q>`, in the graph's order."""
        writers, readers = ([str(n) for n in nodes] for nodes in (self.graph.writers, self.graph.readers))
        return tuple(f"{writers[w]}->{readers[r]}" for w, r in np.argwhere(self.edges))

    @property
    def nodes(self) -> tuple[str, ...]:
        """What the circuit is made of, in the graph's order: a node circuit's heads and MLPs; of an edge circuit every
        node, embedding and logits included, that one of its edges leaves or enters."""
        writers = [str(w) for w in self.graph.writers]
        if self.granularity == "node":
            return tuple(name for name, kept in zip(writers[1:], rows(self.edges)[1:]) if kept)
        touched = rows(self.edges) | rows(fed_by(self.config) & self.edges.any(0))
        end = ("logits",) if self.edges[:, -1].any() else ()
        return (*(name for name, here in zip(writers, touched) if here), *end)

    def __len__(self) -> int:
        """How many edges there are; of a node circuit, how many heads and MLPs."""
        return int(self.edges.sum()) if self.granularity == "edge" else int(rows(self.edges)[1:].sum())

    def __bool__(self) -> bool:
        return len(self) > 0

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Circuit):
            return NotImplemented
        alike = self.config == other.config and self.granularity == other.granularity
        return alike and bool((self.edges == other.edges).all())

    def __hash__(self) -> int:
        return hash((self.config, self.granularity, self.edges.tobytes()))

    def __or__(self, other: Circuit) -> Circuit:
        """What is in either."""
        return Circuit(self.config, self.edges | self._alike(other).edges, self.granularity)

    def __and__(self, other: Circuit) -> Circuit:
        """What is in both."""
        return Circuit(self.config, self.edges & self._alike(other).edges, self.granularity)

    def __sub__(self, other: Circuit) -> Circuit:
        """What is in this one and not in the other; a node circuit keeps the embedding."""
        left = self.edges & ~self._alike(other).edges
        if self.granularity == "node":
            left[0] = self.edges[0]
        return Circuit(self.config, left, self.granularity)

    def _alike(self, other: Circuit) -> Circuit:
        if self.config != other.config or self.granularity != other.granularity:
            raise UserError(
                f"The circuits cannot be combined: one is of {self.granularity}s, the other of {other.granularity}s"
                + ("." if self.config == other.config else " of another architecture.")
            )
        return other

    def complement(self) -> Circuit:
        """Everything else; a node circuit's complement has the embedding too."""
        return Circuit.whole(self.config, self.granularity) - self

    def prune(self) -> Circuit:
        """The edges that lie on a path of the circuit from the embedding to the logits, as an edge circuit.

        A head is on the way from whatever feeds its queries, keys or values, under grouped-query attention with the
        keys and values of its group. Edges into nodes that do not reach the logits never matter. Those out of nodes
        that the embedding does not reach carry, under counterfactual ablation, what ablation would put there anyway, so
        that pruning leaves the metric as it is; under zero or mean ablation they carry the node's answer to ablated
        inputs, and pruning can change it.
        """
        feeds = fed_by(self.config)
        order = range(len(self.graph.writers))
        reached = np.zeros(len(order), bool)
        reached[0] = True
        for w in order[1:]:
            reached[w] = (self.edges[reached][:, feeds[w]]).any()
        useful = np.zeros(len(self.graph.readers), bool)
        useful[-1] = True
        for w in reversed(order):
            if self.edges[w, useful].any():
                useful |= feeds[w]
        return Circuit(self.config, self.edges & reached[:, None] & useful)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` is the inverse."""
        parts = {"edges": list(self.names)} if self.granularity == "edge" else {"nodes": list(self.nodes)}
        return {"config": self.config.to_dict(), **parts}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Circuit:
        """Read a circuit; `UserError` for keys, names or values that do not fit."""
        if set(values) not in ({"config", "edges"}, {"config", "nodes"}):
            raise UserError(f"A circuit has keys config and either edges or nodes; given were {', '.join(values)}.")
        config, names = values["config"], values.get("edges", values.get("nodes"))
        listed = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
        if not isinstance(config, Mapping) or not listed:
            raise UserError("A circuit's config must be a table of fields, and its edges or nodes a list of names.")
        build = cls.from_names if "edges" in values else cls.from_nodes
        return build(TransformerConfig.from_dict(config), names)

    @classmethod
    def from_names(cls, config: TransformerConfig, names: Iterable[str]) -> Circuit:
        """The circuit of these edges, such as `embed->0.1<q>` or `1.0->logits`; `UserError` names the nearest valid."""
        known = graph(config)
        row, column = ({str(node): i for i, node in enumerate(nodes)} for nodes in (known.writers, known.readers))
        edges = np.zeros(known.visible.shape, bool)
        for name in names:
            writer, _, reader = (part.strip() for part in name.partition("->"))
            if writer not in row or reader not in column or not known.visible[row[writer], column[reader]]:
                raise _no_edge(known, writer, reader)
            edges[row[writer], column[reader]] = True
        return cls(config, edges)

    @classmethod
    def from_nodes(cls, config: TransformerConfig, nodes: Iterable[str]) -> Circuit:
        """The embedding with these heads (`1.3`) and MLPs (`m2`); `UserError` names the nearest one."""
        known = graph(config)
        row = {str(node): i for i, node in enumerate(known.writers)}
        kept = np.zeros(len(row), bool)
        kept[0] = True
        for name in nodes:
            if name not in row:
                raise unknown("node", name, list(row)[1:])
            kept[row[name]] = True
        return cls(config, known.visible & kept[:, None], "node")

    @classmethod
    def whole(cls, config: TransformerConfig, granularity: Granularity = "edge") -> Circuit:
        """The whole network."""
        return cls(config, graph(config).visible, granularity)

    @classmethod
    def empty(cls, config: TransformerConfig, granularity: Granularity = "edge") -> Circuit:
        """Nothing; of a node circuit, the embedding alone."""
        if granularity == "node":
            return cls.from_nodes(config, ())
        return cls(config, np.zeros_like(graph(config).visible), granularity)


def rows(edges: Bool[np.ndarray, "writer reader"]) -> Bool[np.ndarray, " writer"]:
    """Whether each writer has an edge."""
    return np.asarray(edges.any(1))


@lru_cache(maxsize=32)
def fed_by(config: TransformerConfig) -> Bool[np.ndarray, "writer reader"]:
    """`[w, r]`: whether what reader r reads goes into writer w, as into a head its queries, keys and values."""
    known, group = graph(config), config.n_heads // config.kv_heads
    place: dict[Reader, int] = {reader: i for i, reader in enumerate(known.readers)}
    feeds = np.zeros(known.visible.shape, bool)
    for w, writer in enumerate(known.writers):
        if writer.kind == "head":
            inputs = [("q", writer.index), ("k", writer.index // group), ("v", writer.index // group)]
        else:
            inputs = [("mlp", 0)] if writer.kind == "mlp" else []
        for kind, index in inputs:
            feeds[w, place[Reader(writer.layer, kind, index)]] = True
    feeds.flags.writeable = False
    return feeds


def _no_edge(known: Graph, writer: str, reader: str) -> UserError:
    """The error for an edge that the graph lacks, with the nearest that it has."""
    row = {str(node): i for i, node in enumerate(known.writers)}
    close = [row[name] for name in ([writer] if writer in row else nearest(writer, row))]
    names = [f"{known.writers[w]}->{known.readers[r]}" for w in close for r in np.flatnonzero(known.visible[w])]
    return unknown("edge", f"{writer}->{reader}", names, "" if names else "An edge is named like embed->0.1<q>.")
