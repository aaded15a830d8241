"""ACDC: cutting a network's edges one by one, from the output backwards, where that costs little (Conmy et al. 2023).

An edge is cut if, on top of all edges cut before it, cutting it makes the metric rise by less than a threshold. The
plain way runs the whole circuit once for every edge. Here a cut is followed only along the edges still kept
(`headwork.methods.live_circuit`), an edge into a node from which no kept path leads on costs nothing, and several edges
of one reader are tried at once, each as if all before it were cut: what comes before the first one that is kept is
exactly what the plain way would have found.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headwork.engine.metrics import Metric, kl_from
from headwork.errors import UserError
from headwork.methods.ablated_outputs import AblatedOutputs, counterfactual
from headwork.methods.ablation_choices import AblationChoices
from headwork.methods.circuit_runs import CircuitRuns, bytes_per_prompt
from headwork.methods.graph import Graph, graph
from headwork.methods.live_circuit import LiveCircuit, Trial
from headwork.model.transformer import Transformer
from headwork.tasks.prompt_pairs import PromptPairs, checked_metric

if TYPE_CHECKING:
    import xarray


@dataclass(frozen=True, eq=False)
class Acdc:
    """The circuit that ACDC found.

    `mask[writer, reader]` are the edges kept. `effects[writer, reader]`, in the metric's unit, is the metric without
    the edge less the metric with it, at the time it was tried (NaN where there is no edge; 0 where nothing that it
    leads to was kept). `start` and `metric` are the metric's means over prompts of the whole network and of the
    circuit. `evaluations` counts the cuts that were computed, `confirmed` those so close to the threshold that whole
    runs decided, and `margin` is the least |effect − threshold| of all edges.
    """

    graph: Graph
    mask: Bool[np.ndarray, "writer reader"]
    effects: Float[np.ndarray, "writer reader"]
    threshold: float
    start: float
    metric: float
    evaluations: int
    confirmed: int
    margin: float
    attrs: dict[str, str]

    def to_xarray(self) -> xarray.Dataset:
        """`kept` and `effect`, both `[writer, reader]`; everything else as attributes."""
        import xarray

        numbers = ("threshold", "start", "metric", "evaluations", "confirmed", "margin")
        dims = ("writer", "reader")
        return xarray.Dataset(
            {"kept": (dims, self.mask), "effect": (dims, self.effects, {"units": "units of the metric"})},
            coords={
                "writer": [str(w) for w in self.graph.writers],
                "reader": [str(r) for r in self.graph.readers],
            },
            attrs=self.attrs | {name: getattr(self, name) for name in numbers},
        )


def acdc(
    model: Transformer,
    pairs: PromptPairs,
    metric: Metric | None,
    threshold: float,
    *,
    ablated: AblatedOutputs | None = None,
    memory: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Acdc:
    """Cut every edge of the graph whose loss makes `metric`, averaged over the clean prompts, rise by less than this.

    `metric` must grow as the circuit gets worse; None is KL(whole network ‖ circuit) at the last position, in nats. A
    cut edge carries `ablated`, by default what its writer writes on the paired corrupt prompt. Order: the readers of
    `headwork.methods.graph` from the last to the first (the logits; then, layer by layer from the last, the MLP, the
    values, keys and queries, each from the last head to the first), and for each its writers from the last to the
    first.

    Whole runs (`CircuitRuns`, in the network's own precision) decide where an effect is so close to the threshold that
    rounding could: within a thousandth of it, or within 64 units in the last place of the metric. So the circuit is the
    one that a whole run for every edge gives. `memory` (bytes, without the weights) bounds what is held, `progress` is
    called with the number of edges decided since the last call. Raises `UserError` for a threshold that is no number
    above 0, prompts, metrics and values that do not fit, and where `memory` is too little.
    """
    if not (math.isfinite(threshold) and threshold > 0):
        raise UserError(f"ACDC has threshold = {threshold}; it must be a number above 0, in the metric's unit.")
    pairs = pairs.on(model)
    batch, length = pairs.clean.shape
    if metric is None:
        metric = kl_from(model, pairs.clean, torch.full((batch,), length - 1))
    checked = checked_metric(model, metric, pairs.labels, length)
    if ablated is not None:
        ablated.require(model, batch, length)
    together = _variants_at_once(model, batch, length, memory)
    values = counterfactual(model, pairs.corrupt) if ablated is None else ablated
    with torch.no_grad():
        whole = CircuitRuns(model, pairs.clean, checked, values)
        search = _Search(LiveCircuit(model, pairs.clean, checked, values), whole, threshold, together)
        for reader in reversed(range(len(search.edges.readers))):
            search.decide(reader)
            if progress:
                progress(int(search.edges.visible[:, reader].sum()))
        return search.result(type(metric).__name__, values)


class _Search:
    """The state of one search: the circuit so far and what its cuts cost."""

    def __init__(self, circuit: LiveCircuit, whole: CircuitRuns, threshold: float, together: int) -> None:
        self.circuit, self.whole, self.edges = circuit, whole, circuit.edges
        self.threshold, self.together = threshold, together
        self.effects = np.full(self.edges.visible.shape, np.nan)
        self.start = circuit.value
        self.evaluations = self.confirmed = 0
        # How many edges were last tried at once, by kind of reader: more while all fall, fewer after one that stays.
        self.sizes: dict[str, int] = {}

    def decide(self, reader: int) -> None:
        """Cut what can be cut of one reader's edges."""
        circuit = self.circuit
        waiting = self.edges.visible[:, reader].nonzero()[0].tolist()[::-1]
        if not circuit.turn_to(reader):
            self.effects[waiting, reader] = 0
            circuit.kept[waiting, reader] = False
            return
        most = self._most(reader)
        size = min(self.sizes.get(self.edges.readers[reader].kind, _FIRST), most)
        while waiting:
            trial = circuit.without(waiting[:size])
            self.evaluations += len(trial.writers)
            cut = self._cut(trial)
            stopped = cut < len(trial.writers)
            waiting = waiting[cut + stopped :]
            size = max(1, (cut + size) // 2) if stopped else min(2 * size, most)
        self.sizes[self.edges.readers[reader].kind] = size

    def _cut(self, trial: Trial) -> int:
        """Cut edges up to the first that stays; how many."""
        before, cut = self.circuit.value, 0
        for writer in trial.writers:
            after = self.circuit.metric_of(trial, cut)
            effect = after - before
            rounding = max(1e-3 * self.threshold, 64 * torch.finfo(self.circuit.model.dtype).eps * max(1, abs(before)))
            if abs(effect - self.threshold) <= rounding:
                effect = self._confirmed(trial.reader, trial.writers[:cut], writer)
            self.effects[writer, trial.reader] = effect
            if effect >= self.threshold:
                break
            before, cut = after, cut + 1
        if cut:
            self.circuit.settle(trial, cut - 1, before)
        return cut

    def _most(self, reader: int) -> int:
        """How many cuts of a reader are tried at once: where each is much work, none is worth doing in vain."""
        rows = len(self.circuit.tokens) * (self.circuit.length - self.circuit.needed_by[reader])
        return max(1, min(self.together, _TOKENS // rows))

    def _confirmed(self, reader: int, cut: tuple[int, ...], writer: int) -> float:
        """The effect by two whole runs."""
        self.confirmed += 1
        mask = self.circuit.kept.clone()
        mask[list(cut), reader] = False
        before = self._whole(mask)
        mask[writer, reader] = False
        return self._whole(mask) - before

    def _whole(self, mask: Bool[Tensor, "writer reader"]) -> float:
        return float(self.whole(mask[None])[0].double().mean())

    def result(self, metric: str, values: AblatedOutputs) -> Acdc:
        mask = self.circuit.kept.numpy()
        choices = AblationChoices(
            granularity="edge",
            component="heads by q, k, v and MLPs",
            value=values.value,
            direction="noising",
            ablated="complement",
        )
        margin = np.abs(self.effects[self.edges.visible] - self.threshold).min()
        return Acdc(
            graph=self.edges,
            mask=mask,
            effects=self.effects,
            threshold=self.threshold,
            start=self.start,
            metric=self._whole(self.circuit.kept),
            evaluations=self.evaluations,
            confirmed=self.confirmed,
            margin=float(margin),
            attrs={"method": "ACDC", "metric_name": metric, **choices.attrs()},
        )


_FIRST, _MOST, _TOKENS = 4, 32, 2048


def _variants_at_once(model: Transformer, batch: int, length: int, memory: int | None) -> int:
    """How many cuts are tried together; `UserError` where not even one fits the memory."""
    once, each = (batch * n for n in bytes_per_pair(model, length))
    if memory is None:
        return _MOST
    if memory < once + each:
        raise UserError(
            f"ACDC on {batch} pairs of {length} tokens needs about {(once + each) / 1e6:,.1f} MB beside the weights; "
            f"the limit is {memory / 1e6:,.1f} MB."
        )
    return min(_MOST, (memory - once) // each)


def bytes_per_pair(model: Transformer, length: int) -> tuple[int, int]:
    """What one pair takes however many cuts are tried at once, and what each of them adds; estimates from above."""
    c, writers = model.config, len(graph(model.config).writers)
    element = model.embed.weight.element_size()
    heads = (2 * c.n_heads + 2 * c.kv_heads) * c.d_head
    state = length * (writers * c.d_model + c.n_layers * (heads + 5 * c.d_model))
    # A cut may change every writer (heads before W_O) and all queries, keys and values; one layer computes at a time.
    layer = max((4 if c.gated_mlp else 3) * c.d_mlp, 4 * c.n_heads * (c.d_head + length) * (2 - (c.attention_mix == 1)))
    each = length * (c.n_layers * (heads + c.d_model) + 8 * c.d_model + layer) + 3 * c.outputs
    return state * element + bytes_per_prompt(model, length), each * element
