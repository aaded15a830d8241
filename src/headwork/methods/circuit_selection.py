"""Choosing a circuit of a given size from scores: the best edges or nodes, or a connected set grown from the logits.

And at random, as a control: of edges that lie on paths, since most of as many edges drawn evenly would do nothing.
"""

from __future__ import annotations

import heapq
import math
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float

from headwork.errors import UserError, unknown
from headwork.methods.circuit import Circuit, fed_by, rows
from headwork.methods.graph import graph
from headwork.model.config import TransformerConfig

if TYPE_CHECKING:
    import xarray

Order = Literal["absolute", "highest", "lowest"]
Selection = Literal["top-n", "greedy"]


def top_n(
    config: TransformerConfig,
    scores: xarray.DataArray,
    n: int | None = None,
    *,
    fraction: float | None = None,
    order: Order = "absolute",
) -> Circuit:
    """The circuit of the `n` best edges (scores with dims `writer`, `reader`) or nodes (dim `node`).

    `order`: `absolute` takes the largest sizes; the signed ones take the `highest` or `lowest` scores first. Which of
    these two means important depends on the scores: where they are the change of a logit difference under corruption,
    as in `edge_attribution`, the lowest; of a loss or divergence, the highest. Instead of `n`, a `fraction` of all
    edges (heads and MLPs), rounded down as MIB does (Mueller et al. 2025). Equal scores go in the graph's order:
    earlier writers first, then earlier readers.

    Raises `UserError` for scores of another architecture or with NaN on an edge, and a size that there is not.
    """
    values, is_node = _values(config, scores)
    goodness = _goodness(values, order)
    if is_node:
        names = [str(w) for w in graph(config).writers][1:]
        best = np.argsort(-goodness, kind="stable")[: size(len(goodness), n, fraction, "nodes")]
        return Circuit.from_nodes(config, [names[i] for i in best])
    return Circuit(config, _best(config, goodness, size(graph(config).edges, n, fraction)))


def greedy(
    config: TransformerConfig,
    scores: xarray.DataArray,
    n: int | None = None,
    *,
    fraction: float | None = None,
    order: Order = "absolute",
) -> Circuit:
    """A circuit of `n` edges grown backwards from the logits, so that every edge has a path to them.

    Again and again the best edge joins whose reader belongs to a node already in the circuit; its writer's node is in
    the circuit from then on (the greedy search of Hanna et al. 2024). `order`, `fraction`, ties and errors as in
    `top_n`; scores must be of edges.
    """
    values, is_node = _values(config, scores)
    if is_node:
        raise UserError("The greedy selection grows a circuit edge by edge; node scores can only be taken by top-n.")
    return Circuit(config, _grown(config, _goodness(values, order), size(graph(config).edges, n, fraction)))


def selected(
    config: TransformerConfig, scores: xarray.DataArray, n: int, selection: Selection, order: Order
) -> Circuit:
    """`top_n` or `greedy`, by name."""
    if selection not in get_args(Selection):
        raise unknown("selection of a circuit:", str(selection), get_args(Selection))
    return (top_n if selection == "top-n" else greedy)(config, scores, n, order=order)


def random_paths(config: TransformerConfig, n: int, draw: np.random.Generator) -> Circuit:
    """A random circuit of `n` edges that all lie on a path of it from the embedding to the logits, as far as possible.

    Edges are taken in random order, each with random ones that lead to it from what the embedding reaches and from it
    to what reaches the logits. Those that would make the circuit too large are left out; where only such are left, any
    edges fill it. Raises `UserError` for a size that there is not.
    """
    visible, feeds = graph(config).visible, fed_by(config)
    left = size(int(visible.sum()), n, None)
    chosen = np.zeros_like(visible)
    # Writers that the embedding reaches, and readers that reach the logits.
    reached, useful = np.zeros(visible.shape[0], bool), np.zeros(visible.shape[1], bool)
    reached[0] = useful[-1] = True

    def one(among: Bool[np.ndarray, " n"]) -> int:
        return int(draw.choice(np.flatnonzero(among)))

    def path_with(w: int, r: int) -> set[tuple[int, int]]:
        path = {(w, r)}
        while not useful[r]:
            writer = one(feeds[:, r])
            r = one(visible[writer])
            path.add((writer, r))
        while not reached[w]:
            reader = one(feeds[w])
            w = one(visible[:, reader])
            path.add((w, reader))
        return path

    before = -1
    while left and left != before:
        before = left
        for w, r in draw.permutation(np.argwhere(visible)).tolist():
            if not left or chosen[w, r]:
                continue
            path = [edge for edge in path_with(w, r) if not chosen[edge]]
            if len(path) > left:
                continue
            left -= len(path)
            for writer, reader in path:
                chosen[writer, reader] = reached[writer] = useful[reader] = True
                reached |= feeds[:, reader]
                useful |= feeds[writer]
    rest = np.argwhere(visible & ~chosen)
    for w, r in draw.permutation(rest)[:left]:
        chosen[w, r] = True
    return Circuit(config, chosen)


def node_scores(
    config: TransformerConfig, heads: xarray.DataArray, mlps: xarray.DataArray | None = None
) -> xarray.DataArray:
    """Scores of heads `[layer, head]` and of MLPs `[layer]`, as one array `[node]` under the graph's names.

    Such as the mean effects of `activation_patching` or `node_attribution` at `attn.z` by head and at `mlp_out` by
    layer. Raises `UserError` where one is missing, or is there for no MLP.
    """
    import xarray

    if (mlps is None) != config.attention_only:
        raise UserError(
            "The network has no MLPs, but scores of them were given."
            if config.attention_only
            else "The network has MLPs, but no scores of them were given."
        )
    for what, given, dims in (("heads", heads, ("layer", "head")), ("MLPs", mlps, ("layer",))):
        sizes = tuple(config.n_layers if dim == "layer" else config.n_heads for dim in dims)
        if given is not None and (given.dims != dims or given.shape != sizes):
            raise UserError(
                f"The scores of {what} are {list(map(str, given.dims))} {list(given.shape)}; this network needs "
                f"{list(dims)} {list(sizes)}."
            )
    nodes = graph(config).writers[1:]
    values = [heads[n.layer, n.index] if n.kind == "head" or mlps is None else mlps[n.layer] for n in nodes]
    return xarray.DataArray(
        np.array([float(value) for value in values]), dims="node", coords={"node": [str(node) for node in nodes]}
    )


def oriented(
    circuit: Circuit, scores: xarray.DataArray, order: Order
) -> tuple[Float[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """The scores of all edges (heads and MLPs), more being better, and whether each is in the circuit."""
    values, is_node = _values(circuit.config, scores)
    if is_node != (circuit.granularity == "node"):
        raise UserError(
            f"The circuit is of {circuit.granularity}s; the scores are of {'nodes' if is_node else 'edges'}."
        )
    goodness = _goodness(values, order)
    visible = graph(circuit.config).visible
    return (goodness, rows(circuit.edges)[1:]) if is_node else (goodness[visible], circuit.edges[visible])


def size(available: int, n: int | None, fraction: float | None, what: str = "edges") -> int:
    """How many of the available edges or nodes are asked for; `UserError` where that is unclear or impossible."""
    if (n is None) == (fraction is None):
        raise UserError("A circuit's size is either a number n or a fraction; give one of the two.")
    if n is None:
        share = float(fraction if fraction is not None else math.nan)
        if not 0 <= share <= 1:
            raise UserError(f"The fraction of {what} is {fraction}; it must be from 0 to 1.")
        # 0.29 · 100 is a little less than 29 in floating point.
        return math.floor(share * available + 1e-9)
    if not 0 <= n <= available:
        raise UserError(f"A circuit of {n} {what} was asked for; this network has {available}.")
    return n


def _values(config: TransformerConfig, scores: xarray.DataArray) -> tuple[np.ndarray, bool]:
    """The scores in the graph's order, checked: [writer, reader], or heads and MLPs; and whether they are of nodes."""
    known = graph(config)
    writers, readers = ([str(n) for n in nodes] for nodes in (known.writers, known.readers))
    if set(scores.dims) == {"writer", "reader"}:
        expected = {"writer": writers, "reader": readers}
    elif scores.dims == ("node",):
        expected = {"node": writers[1:]}
    else:
        raise UserError(
            f"The scores have dims {', '.join(map(str, scores.dims))}; edges need writer, reader; nodes node."
        )
    for dim, names in expected.items():
        here = [str(name) for name in scores[dim].values] if dim in scores.coords else []
        here = [name for name in here if dim != "node" or name not in ("embed", "logits")]
        if sorted(here) != sorted(names):
            odd = sorted(set(names) ^ set(here))
            raise UserError(
                f"The scores are of another architecture: their {dim}s differ from this network's in {odd[0]}"
                f"{' and others' if len(odd) > 1 else ''}."
            )
        if [str(name) for name in scores[dim].values] != names:
            scores = scores.sel({dim: names})
    values = scores.transpose(*expected).to_numpy().astype(np.float64)
    missing = np.argwhere(np.isnan(values) & (known.visible if values.ndim == 2 else True))
    if len(missing):
        where = "->".join(names[i] for names, i in zip(expected.values(), missing[0]))
        raise UserError(f"The score of {where} is NaN; every {'edge' if values.ndim == 2 else 'node'} needs one.")
    return values, values.ndim == 1


def _goodness(values: np.ndarray, order: Order) -> np.ndarray:
    """The scores turned so that more is better."""
    if order not in get_args(Order):
        raise unknown("order of scores:", str(order), get_args(Order))
    return {"absolute": np.abs, "highest": np.positive, "lowest": np.negative}[order](values)


def _best(config: TransformerConfig, goodness: np.ndarray, n: int) -> np.ndarray:
    visible = graph(config).visible
    where = np.flatnonzero(visible)
    chosen = np.zeros(visible.size, bool)
    chosen[where[np.argsort(-goodness.flat[where], kind="stable")[:n]]] = True
    return chosen.reshape(visible.shape)


def _grown(config: TransformerConfig, goodness: np.ndarray, n: int) -> np.ndarray:
    visible, feeds = graph(config).visible, fed_by(config)
    chosen, inside = np.zeros_like(visible), np.zeros(len(visible), bool)
    open_to = np.zeros(visible.shape[1], bool)
    heap: list[tuple[float, int, int]] = []

    def admit(readers: np.ndarray) -> None:
        for r in np.flatnonzero(readers & ~open_to):
            for w in np.flatnonzero(visible[:, r]):
                heapq.heappush(heap, (-goodness[w, r], int(w), int(r)))
        open_to[readers] = True

    last = np.zeros(visible.shape[1], bool)
    last[-1] = True
    admit(last)
    for _ in range(n):
        _, w, r = heapq.heappop(heap)
        chosen[w, r] = True
        if not inside[w]:
            inside[w] = True
            admit(feeds[w])
    return chosen
