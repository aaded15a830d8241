"""The metric of a circuit: the network runs with everything outside the circuit ablated.

Noising runs the clean prompts; edges outside the circuit carry ablated outputs. Denoising runs the other prompts; the
circuit's edges carry what their writers write on the clean ones (Heimersheim & Nanda 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headwork.engine.metrics import Metric
from headwork.engine.run import Tokens, as_tokens
from headwork.errors import UserError, unknown
from headwork.methods.ablated_outputs import counterfactual, from_reference
from headwork.methods.ablation_choices import AblatedSet, AblationChoices, AblationValue, Component, Direction
from headwork.methods.ablation_source import partners
from headwork.methods.circuit import Circuit, Granularity
from headwork.methods.circuit_runs import CircuitRuns, bytes_per_prompt
from headwork.model.config import TransformerConfig
from headwork.model.transformer import Transformer
from headwork.tasks.prompt_pairs import PromptPairs, checked_metric, of_rows

_DEFAULT_MEMORY = 2**28
# Circuits whose masks are held at once.
_AT_ONCE = 64


@dataclass(frozen=True)
class CircuitMetric:
    """The metric of every prompt when only a circuit is left; make one with `circuit_metric`.

    A node circuit's embedding always belongs to the prompts that run: only heads and MLPs are ablated or restored.
    """

    config: TransformerConfig
    value: AblationValue
    direction: Direction
    labels: tuple[str, ...]
    noise: float
    runs: tuple[CircuitRuns, ...]

    def __call__(
        self, circuits: Sequence[Circuit], progress: Callable[[int], None] | None = None
    ) -> Float[np.ndarray, "circuit prompt"]:
        """In the metric's unit. Equal circuits are run once; `progress` gets the number of circuits done.

        Raises `UserError` for a circuit of another architecture.
        """
        for circuit in circuits:
            if circuit.config != self.config:
                raise UserError("The circuit is of another architecture than the network.")
        found: dict[Circuit, np.ndarray] = {}
        distinct = list(dict.fromkeys(circuits))
        for first in range(0, len(distinct), _AT_ONCE):
            some = distinct[first : first + _AT_ONCE]
            masks = torch.stack([self._mask(circuit) for circuit in some])
            with torch.no_grad():
                values = torch.cat([run(masks) for run in self.runs], 1).double().cpu().numpy()
            found.update(zip(some, values))
            if progress:
                progress(len(some))
        return np.array([found[circuit] for circuit in circuits]).reshape(len(circuits), len(self.labels))

    def _mask(self, circuit: Circuit) -> Bool[Tensor, "writer reader"]:
        if self.direction == "noising":
            return circuit.mask
        live = ~circuit.mask
        if circuit.granularity == "node":
            live[0] = True
        return live

    def choices(self, granularity: Granularity, ablated: AblatedSet = "complement") -> dict[str, str]:
        """The six ablation choices, as attributes."""
        component: Component = "heads by q, k, v and MLPs"
        if granularity == "node":
            component = "heads" if self.config.attention_only else "heads and MLPs"
        return AblationChoices(granularity, component, self.value, self.direction, ablated).attrs()

    def share(
        self,
        values: Float[np.ndarray, "*more prompt"],
        whole: Float[np.ndarray, " prompt"],
        empty: Float[np.ndarray, " prompt"],
    ) -> tuple[Float[np.ndarray, "*more"], Float[np.ndarray, "*more prompt"], dict[str, str]]:
        """(values − empty) ÷ (whole − empty): of the means, and prompt by prompt; NaN where nothing is to divide by.

        Third come attributes that say why, where the ratio of means is NaN.
        """
        gap, size = whole - empty, self.noise * (np.abs(whole) + np.abs(empty))
        by_prompt = np.full(values.shape, np.nan)
        np.divide(values - empty, gap, out=by_prompt, where=np.broadcast_to(np.abs(gap) > size, values.shape))
        if abs(gap.mean()) > size.mean():
            return np.asarray((values - empty).mean(-1) / gap.mean()), by_prompt, {}
        why = "the whole and the empty network have the same mean metric, so that there is nothing to recover"
        return np.full(values.shape[:-1], np.nan), by_prompt, {"undefined": why}


def circuit_metric(
    model: Transformer,
    pairs: PromptPairs,
    metric: Metric,
    *,
    value: AblationValue = "counterfactual",
    direction: Direction = "noising",
    reference: Tokens | None = None,
    seed: int = 0,
    memory: int | None = None,
    recorded: bool = False,
) -> CircuitMetric:
    """How circuits of this network will be measured on the clean prompts of `pairs`.

    `value`: ablated writers write what they write on the corrupt prompts (`counterfactual`), or `zero`, `mean`,
    `mean-by-position`, or the outputs on a prompt drawn with `seed` among those with the same padding (`resample`), the
    latter three of `reference` prompts (left out, the corrupt ones). Denoising needs a run to restore the clean outputs
    in: the corrupt prompts, or with `resample` the drawn ones. `memory` (bytes, beside the weights and one value per
    writer and prompt) bounds how many prompts and circuits run together; with `recorded`, so few prompts that one run
    can be differentiated.

    Raises `UserError` for what does not exist or fit, and for denoising with zero or mean values, which are no run.
    """
    for name, given, accepted in (("value", value, AblationValue), ("direction", direction, Direction)):
        if given not in get_args(accepted):
            raise unknown(f"{name} of an ablation:", str(given), get_args(accepted))
    if direction == "denoising" and value not in ("counterfactual", "resample"):
        raise UserError(
            f"Denoising restores clean outputs in the run of other prompts, and {value} values are no run; "
            "use counterfactual or resample."
        )
    pairs = pairs.on(model)
    batch, length = pairs.clean.shape
    checked_metric(model, metric, pairs.labels, length)
    others = _others(model, pairs, value, reference, seed)
    limit = _DEFAULT_MEMORY if memory is None else memory
    # Not even one prompt: the runs themselves say so.
    fit = max(1, min(batch, limit // bytes_per_prompt(model, length, recorded=recorded)))
    if fit < batch:
        of_rows(metric, slice(0, fit), batch)
    tokens = pairs.clean
    if direction == "denoising":
        tokens, ablated = others, counterfactual(model, pairs.clean)
    elif value in ("counterfactual", "resample"):
        ablated = counterfactual(model, others)
    else:
        ablated = from_reference(model, others, value)
    runs = []
    for first in range(0, batch, fit):
        part = slice(first, min(first + fit, batch))
        of_part = checked_metric(model, of_rows(metric, part, batch), pairs.labels[part], length)
        runs.append(CircuitRuns(model, tokens[part], of_part, ablated.rows(part), memory=memory))
    noise = 16 * torch.finfo(model.dtype).eps
    return CircuitMetric(model.config, value, direction, pairs.labels, noise, tuple(runs))


def _others(
    model: Transformer, pairs: PromptPairs, value: AblationValue, reference: Tokens | None, seed: int
) -> Int[Tensor, "other pos"]:
    """The prompts that ablated values come from; with `resample`, one drawn for each pair."""
    others = pairs.corrupt if reference is None or value == "counterfactual" else as_tokens(model, reference)
    if value != "resample":
        return others
    if others.shape[1] != pairs.clean.shape[1]:
        raise UserError(
            f"The reference prompts have {others.shape[1]} tokens, the prompts {pairs.clean.shape[1]}; to resample "
            "from them they must have as many."
        )
    if model.config.pad_token is not None:
        return others[partners(model.config, pairs.clean, others, False, seed)]
    generator = torch.Generator().manual_seed(seed)
    return others[torch.randint(len(others), (len(pairs.clean),), generator=generator).to(others.device)]
