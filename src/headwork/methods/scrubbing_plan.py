"""Hypotheses about a network, and which inputs each of their nodes may be computed from instead.

A hypothesis is a tree that hangs from the logits. Each node names something that writes into the residual stream and a
feature of the input; it claims that what this writer tells its reader matters only as far as it depends on the feature.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from headwork.errors import UserError, unknown
from headwork.methods.graph import graph
from headwork.model.config import TransformerConfig

REST = "rest"


@dataclass(frozen=True)
class Feature:
    """What of an input may matter: `of` maps tokens `[n, pos]` to whole numbers, `[n, …]`, or `[n, pos, …]` if it is
    `by_position`. Two inputs agree, at a position where it is by position, if all its numbers there are equal."""

    name: str
    of: Callable[[Int[Tensor, "n pos"]], Tensor]
    by_position: bool = False


def _before(tokens: Int[Tensor, "n pos"]) -> Int[Tensor, "n pos"]:
    return torch.cat([torch.full_like(tokens[:, :1], -1), tokens[:, :-1]], 1)


WHOLE_INPUT = Feature("the whole input", lambda tokens: tokens)
NOTHING = Feature("nothing", lambda tokens: torch.zeros_like(tokens[:, 0]))
TOKEN_HERE = Feature("the token here", lambda tokens: tokens, by_position=True)
TOKEN_BEFORE = Feature("the token before", _before, by_position=True)


@dataclass(frozen=True, eq=False)
class Node:
    """`writer` (`embed`, head `3.5`, MLP `m3`) tells its reader only the `feature`.

    `REST` as the writer stands for all that the reader sees and that no other node names. If the feature is by
    position, what is written at each position may depend on the feature there only. `inputs` go on with the claim: what
    the writer itself reads, by route (`q`, `k`, `v` of a head, `mlp` of an MLP). Where there are none, the writer is
    computed as it is on an input that agrees; where there are, whatever they do not mention does not matter.
    """

    writer: str
    feature: Feature
    inputs: Mapping[str, Sequence[Node]] | None = None


@dataclass(frozen=True, eq=False)
class Hypothesis:
    """What the logits read; whatever is not mentioned does not matter."""

    inputs: Sequence[Node] = ()


@dataclass(frozen=True, eq=False)
class Plan:
    """Rows of the dataset from which a node is computed, drawn at random.

    `rows [n, r]`: for each of n inputs, the inputs that agree with it; r is 1 at the logits and for nodes whose feature
    is of whole inputs what it is at the reader, else the reader's times the positions (positions last).
    `unmentioned [n, r]`: for a node with inputs of its own, where everything else that it reads comes from.
    `alone`: the share of the draws in which no other input agreed, so that nothing was tested.
    """

    name: str
    node: Node | None
    rows: Int[Tensor, "n r"]
    alone: float = 0.0
    unmentioned: Int[Tensor, "n r"] | None = None
    inputs: Mapping[str, tuple[Plan, ...]] = field(default_factory=dict)

    def walk(self) -> Iterator[Plan]:
        """This node and all below it."""
        yield self
        for plans in self.inputs.values():
            for plan in plans:
                yield from plan.walk()


def checked(config: TransformerConfig, hypothesis: Hypothesis) -> None:
    """Raise `UserError` where a node names what does not exist, or what its reader does not see."""
    if not config.n_layers:
        raise UserError("This network has no layers: its logits read the embedding and nothing else.")
    _check_inputs(config, "logits", hypothesis.inputs, "logits")


def _check_inputs(config: TransformerConfig, reader: str, nodes: Sequence[Node], path: str) -> None:
    edges = graph(config)
    column = edges.visible[:, edges.reader(reader)]
    seen = [str(w) for w, visible in zip(edges.writers, column) if visible]
    names = [node.writer for node in nodes]
    for node in nodes:
        if node.writer not in (*seen, REST):
            raise unknown(f"writer that {path} reads:", node.writer, [*seen, REST])
        if names.count(node.writer) > 1:
            raise UserError(f"The hypothesis names {node.writer} twice among what {path} reads.")
        routes = _routes(config, node.writer)
        for route, inner in (node.inputs or {}).items():
            if route not in routes:
                raise unknown(f"input of {node.writer}:", route, routes)
            _check_inputs(config, routes[route], inner, f"{path}<{node.writer}<{route}")


def _routes(config: TransformerConfig, writer: str) -> dict[str, str]:
    """By route, the reader's name in the graph."""
    if writer in ("embed", REST):
        return {}
    if writer.startswith("m"):
        return {"mlp": writer}
    layer, head = writer.split(".")
    shared = int(head) // (config.n_heads // config.kv_heads)
    return {"q": f"{writer}<q>", "k": f"{layer}.{shared}<k>", "v": f"{layer}.{shared}<v>"}


def draw(hypothesis: Hypothesis, tokens: Int[Tensor, "n pos"], generator: torch.Generator) -> Plan:
    """A random plan: for every node an input of the dataset that agrees on its feature, another one where there is one.

    As in Chan et al. 2022 all that a node reads and that is not mentioned comes from one other random input. Raises
    `UserError` for fewer than two inputs, and for features of a wrong shape.
    """
    if len(tokens) < 2:
        raise UserError(f"There is {len(tokens)} input; scrubbing needs others to take values from.")
    tokens = tokens.cpu()
    classes: dict[Feature, _Classes] = {}
    rows = torch.arange(len(tokens))[:, None]
    everything = _Classes(torch.zeros(len(tokens), 1, dtype=torch.long))

    def planned(node: Node, at: Int[Tensor, "n r"], path: str) -> Plan:
        if node.feature not in classes:
            classes[node.feature] = _Classes(_ids(node.feature, tokens))
        picked, alone = classes[node.feature].others(at, node.feature.by_position, generator)
        name = f"{path}<{node.writer}"
        if not node.inputs:
            return Plan(name, node, picked, alone)
        random, _ = everything.others(picked, False, generator)
        return Plan(name, node, picked, alone, random, below(node.inputs, picked, name))

    def below(inputs: Mapping[str, Sequence[Node]], at: Int[Tensor, "n r"], path: str) -> dict[str, tuple[Plan, ...]]:
        return {
            route: tuple(planned(node, at, f"{path}<{route}" if route else path) for node in nodes)
            for route, nodes in inputs.items()
        }

    random, _ = everything.others(rows, False, generator)
    return Plan("logits", None, rows, 0.0, random, below({"": hypothesis.inputs}, rows, "logits"))


def _ids(feature: Feature, tokens: Int[Tensor, "n pos"]) -> Int[Tensor, "n places"]:
    """A number for each value of the feature; one place for whole inputs, else a place for each position."""
    found = feature.of(tokens)
    wanted = tuple(tokens.shape) if feature.by_position else tuple(tokens.shape[:1])
    if not isinstance(found, Tensor) or tuple(found.shape[: len(wanted)]) != wanted or found.is_floating_point():
        shape = f"{found.dtype} of shape {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise UserError(
            f"The feature {feature.name!r} gave {shape}; it must give whole numbers, one or more for each "
            f"{'position of each input' if feature.by_position else 'input'}."
        )
    places = found.reshape(*wanted, -1) if feature.by_position else found.reshape(len(tokens), 1, -1)
    return places.flatten(0, 1).cpu().unique(dim=0, return_inverse=True)[1].view(len(tokens), -1)


class _Classes:
    """Inputs that agree, for each place: `order` lists them class by class."""

    def __init__(self, ids: Int[Tensor, "n places"]) -> None:
        by_place = ids.T
        self.order = by_place.sort(dim=1, stable=True).indices
        ranked = by_place.gather(1, self.order)
        first = torch.searchsorted(ranked.contiguous(), ranked.contiguous())
        end = torch.searchsorted(ranked.contiguous(), ranked.contiguous(), right=True)
        # Of every input: where its class begins, how large it is, and which of its members it is.
        back = self.order.argsort(1)
        self.first, self.size = first.gather(1, back), (end - first).gather(1, back)
        self.member = back - self.first

    def others(
        self, rows: Int[Tensor, "n r"], by_position: bool, generator: torch.Generator
    ) -> tuple[Int[Tensor, "n picked"], float]:
        """For each row, at each place if by position, another of its class, uniformly; itself where it is alone."""
        places = torch.arange(len(self.order))
        at = rows[:, :, None].expand(-1, -1, len(places)) if by_position else rows[:, :, None]
        place = places.expand_as(at)
        size, member = self.size[place, at], self.member[place, at]
        uniform = torch.rand(at.shape, generator=generator, dtype=torch.float64)
        step = (uniform * (size - 1)).long().clamp(max=(size - 2).clamp(min=0))
        step = torch.where(size > 1, step + (step >= member), 0)
        lonely: Bool[Tensor, "n r places"] = size == 1
        return self.order[place, self.first[place, at] + step].flatten(1), float(lonely.double().mean())
