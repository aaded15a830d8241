"""Finding a circuit by one of the published methods: scores of all edges, or the edges themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch

from headwork.errors import UserError, unknown
from headwork.methods.ablated_outputs import from_reference
from headwork.methods.ablation_choices import AblationValue
from headwork.methods.acdc import acdc
from headwork.methods.circuit import Circuit
from headwork.methods.edge_attribution import Variant, edge_attribution
from headwork.methods.edge_masks import edge_masks
from headwork.methods.edge_patching import edge_patching
from headwork.model.transformer import Transformer
from headwork.tasks.task_prompts import TaskPrompts

if TYPE_CHECKING:
    import xarray

Method = Literal["eap", "eap-ig", "eap-ig-activations", "clean-corrupt", "edge-patching", "acdc", "masks"]
VARIANTS: dict[str, Variant] = {
    "eap": "eap",
    "eap-ig": "inputs",
    "eap-ig-activations": "activations",
    "clean-corrupt": "clean-corrupt",
}
PAPERS: dict[Method, str] = {
    "eap": "Syed et al. 2023",
    "eap-ig": "Hanna et al. 2024",
    "eap-ig-activations": "Hanna et al. 2024; Mueller et al. 2025",
    "clean-corrupt": "Hanna et al. 2024",
    "edge-patching": "Syed et al. 2023",
    "acdc": "Conmy et al. 2023",
    "masks": "Bhaskar et al. 2024",
}


@dataclass(frozen=True)
class Scored:
    """What a method found: `scores` [writer, reader], by prompt where it has them, and the circuit where it chose one.

    `words` say what a score is.
    """

    scores: xarray.DataArray
    words: str
    by_prompt: xarray.DataArray | None = None
    circuit: Circuit | None = None


def check_method(method: str) -> None:
    """Raise `UserError` that names the nearest method for one that there is not."""
    if method not in get_args(Method):
        raise unknown("method of circuit discovery", method, get_args(Method))


def scored(
    model: Transformer,
    prompts: TaskPrompts,
    method: Method,
    *,
    n: int | None,
    threshold: float | None,
    value: AblationValue,
    steps: int,
    seed: int,
    memory: int | None,
    progress: Callable[[float], None],
) -> Scored:
    """Run the method on these prompts. `steps` are those of integrated gradients; `progress` gets the share done."""
    tick = _Share(progress)
    pairs = prompts.pairs
    if method in VARIANTS:
        found = edge_attribution(
            model,
            pairs.clean,
            pairs.corrupt,
            prompts.metric,
            variant=VARIANTS[method],
            steps=steps,
            memory=memory,
            per_example=True,
            progress=tick.of(len(prompts)),
        )
        scores = found.mean("prompt", keep_attrs=True)
        words = "estimated change of the metric when the edge carries the corrupt run's output"
        return Scored(scores, words, found)
    edges = len(Circuit.whole(model.config))
    if method == "edge-patching":
        found = edge_patching(model, pairs, prompts.metric, per_example=True, memory=memory, progress=tick.of(edges))
        words = "change of the metric when the edge alone carries the corrupt run's output"
        return Scored(found.mean("prompt", keep_attrs=True), words, found)
    if method == "acdc":
        if threshold is None:
            raise UserError("ACDC is given a threshold, not a number of edges; use --threshold.")
        random = torch.Generator().manual_seed(seed)
        reference = pairs.on(model).corrupt
        ablated = None if value == "counterfactual" else from_reference(model, reference, value, len(prompts), random)
        done = acdc(model, pairs, None, threshold, ablated=ablated, memory=memory, progress=tick.of(edges))
        data = done.to_xarray()
        words = "rise of KL(network ‖ circuit), in nats, when the edge was tried"
        return Scored(data["effect"].assign_attrs(data.attrs), words, circuit=Circuit(model.config, done.mask))
    if n is None:
        raise UserError("Learned masks are trained to a number of edges; use --edges.")
    trained = edge_masks(
        model, pairs, prompts.metric, n, value=value, seed=seed, memory=memory, progress=tick.of(_MASK_STEPS)
    )
    circuit = Circuit(model.config, trained["chosen"].values.astype(bool))
    return Scored(trained["log_alpha"].assign_attrs(trained.attrs), "log α of the edge's gate", circuit=circuit)


_MASK_STEPS = 300


def above(model: Transformer, scores: xarray.DataArray, threshold: float) -> Circuit:
    """All edges whose score is at least the threshold in size."""
    values = np.abs(scores.transpose("writer", "reader").values)
    return Circuit(model.config, np.nan_to_num(values, nan=-1.0) >= threshold)


class _Share:
    """Turns counts of what was done into the share done."""

    def __init__(self, progress: Callable[[float], None]) -> None:
        self.progress, self.done = progress, 0

    def of(self, total: int) -> Callable[[int], None]:
        """What a method calls with how many more it has done."""

        def report(count: int) -> None:
            self.done += count
            self.progress(min(self.done / total, 1.0))

        return report
