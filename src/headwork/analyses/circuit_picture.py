"""The pictures of a circuit: its edges with their measured effects, and its faithfulness among other sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from headwork.draw import CircuitEdge, CircuitNode, Picture, Reference, Series, circuit, curves
from headwork.methods.circuit import Circuit, rows
from headwork.methods.graph import Reader, Writer, graph
from headwork.model.config import TransformerConfig
from headwork.studies.record import Estimate
from headwork.tasks.task_prompts import TaskPrompts

if TYPE_CHECKING:
    import xarray


@dataclass(frozen=True)
class Drawn:
    """What the metric falls by without each of the measured edges, and which of them the diagram shows.

    In the order of their scores on discovery prompts, so that what is shown is not chosen by what is measured.
    """

    effects: Mapping[str, Estimate]
    shown: tuple[str, ...]


def circuit_picture(
    config: TransformerConfig, prompts: TaskPrompts, found: Circuit, drawn: Drawn, method: str
) -> Picture:
    """The shown edges, each with what the metric falls by when it alone leaves the circuit, and its interval."""
    nodes: dict[str, CircuitNode] = {}
    edges = []
    for name in drawn.shown:
        writer, reader = _ends(config, name)
        source = _writer_node(writer)
        nodes[source.id] = source
        for target, route in _reader_nodes(config, reader, {str(w) for w in _writers(config, found)}):
            nodes[target.id] = target
            effect = drawn.effects[name]
            value = 0.0 if effect.value is None else effect.value
            edges.append(CircuitEdge(source.id, target.id, value, effect.low, effect.high, route=route))
    left_out = "" if len(found) == len(drawn.shown) else f", {len(drawn.shown)} of {len(found)} edges drawn"
    n = f"{len(prompts)} held-out prompts, 95 %" if len(prompts) > 1 else "one prompt"
    largest = max(drawn.shown, key=lambda name: abs(drawn.effects[name].value or 0.0))
    return circuit(
        list(nodes.values()),
        edges,
        effect_label=f"fall of the metric without the edge ({n})",
        title=f"{prompts.task}: circuit by {method}{left_out}",
        alt=(
            f"Circuit diagram of {len(nodes)} nodes and {len(drawn.shown)} edges out of {len(found)}, with what "
            f"{prompts.metric_words} falls by when one edge alone is ablated. Largest: {largest}, "
            f"{drawn.effects[largest].value or 0.0:.2f}."
        ),
    )


def _ends(config: TransformerConfig, name: str) -> tuple[Writer, Reader]:
    known = graph(config)
    writer, _, reader = name.partition("->")
    return known.writers[known.writer(writer)], known.readers[known.reader(reader)]


def _writers(config: TransformerConfig, found: Circuit) -> list[Writer]:
    return [w for w, here in zip(graph(config).writers, rows(found.edges)) if here]


def _writer_node(writer: Writer) -> CircuitNode:
    return CircuitNode(str(writer), _label(writer), writer.layer, kind=writer.kind)


def _label(node: Writer) -> str:
    return {"embed": "embedding", "head": str(node), "mlp": f"MLP {node.layer}"}[node.kind]


def _reader_nodes(config: TransformerConfig, reader: Reader, kept: set[str]) -> list[tuple[CircuitNode, str]]:
    """The nodes that read by this input, each with the port; keys and values of a group feed all of its heads that are
    in the circuit, or its first one."""
    if reader.kind == "logits":
        return [(CircuitNode("logits", "logits", config.n_layers, kind="logits"), "")]
    if reader.kind == "mlp":
        return [(_writer_node(Writer(reader.layer, "mlp")), "")]
    group = 1 if reader.kind == "q" else config.n_heads // config.kv_heads
    heads = [Writer(reader.layer, "head", reader.index * group + i) for i in range(group)]
    named = [head for head in heads if str(head) in kept] or heads[:1]
    return [(_writer_node(head), reader.kind) for head in named]


def curve_picture(prompts: TaskPrompts, curve: xarray.Dataset, share: float, own: Estimate) -> Picture:
    """Faithfulness by the share of edges kept, as MIB measures it, and the circuit's own with its interval."""
    values = curve["faithfulness"].values
    fractions = curve["fraction"].values
    cpr, cmd = (curve[name].item() for name in ("cpr", "cmd"))
    areas = "" if np.isnan(cpr) else f" (CPR {cpr:.3f}, CMD {cmd:.3f})"
    series = [Series("circuits by score", fractions, values)]
    if own.value is not None:
        ends = (None, None) if own.low is None or own.high is None else ([own.low], [own.high])
        series.append(Series("the circuit, 95 %", [share], [own.value], *ends, style="points"))
    return curves(
        series,
        x_label="share of all edges kept",
        y_label="faithfulness",
        references=[Reference(1.0, "whole network"), Reference(0.0, "all ablated")],
        x_log=True,
        title=f"{prompts.task}: faithfulness by size{areas}",
        alt=(
            f"Faithfulness of circuits by the share of edges they keep, on {len(prompts)} prompts: from "
            f"{values[0]:.2f} at {fractions[0]:g} to {values[-1]:.2f} at {fractions[-1]:g}."
        ),
        width_cm=14.0,
        height_cm=5.5,
    )
