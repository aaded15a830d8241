"""Learned edge masks: gates on all edges, trained to keep the network's behaviour with few of them open.

Edge pruning (Bhaskar et al. 2024) with hard-concrete gates (Louizos et al. 2018): with u uniform on (0, 1) and
s = sigmoid((log u − log(1 − u) + log α) / β), a gate is z = clamp(s · (ζ − γ) + γ, 0, 1), exactly 0 or 1 with positive
probability; P(z > 0) = sigmoid(log α − β · log(−γ/ζ)). An edge carries z · live + (1 − z) · ablated output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headwork.engine.metrics import Metric
from headwork.engine.run import Tokens
from headwork.errors import UserError
from headwork.methods.ablation_choices import AblationValue
from headwork.methods.circuit import Circuit
from headwork.methods.circuit_metric import circuit_metric
from headwork.methods.circuit_runs import CircuitRuns
from headwork.methods.circuit_selection import size, top_n
from headwork.methods.graph import graph
from headwork.model.transformer import Transformer
from headwork.tasks.prompt_pairs import PromptPairs

if TYPE_CHECKING:
    import xarray

# β, γ, ζ of Louizos et al. 2018.
TEMPERATURE, LOW, HIGH = 2 / 3, -0.1, 1.1
_OPEN_AT_FIRST = 3.0


def edge_masks(
    model: Transformer,
    pairs: PromptPairs,
    metric: Metric,
    n: int | None = None,
    *,
    fraction: float | None = None,
    steps: int = 300,
    warm_up: float = 0.5,
    rate: float = 0.1,
    value: AblationValue = "counterfactual",
    reference: Tokens | None = None,
    seed: int = 0,
    memory: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> xarray.Dataset:
    """Gates trained until about `n` edges (or a `fraction` of all) are open, and the circuit of the `n` most open ones.

    The loss is the mean over prompts of |metric − the whole network's metric|, divided by the same for the network with
    every edge ablated, so that it is 0 for the whole network and 1 for nothing, whatever the metric's unit. With
    `KLDivergence` from the network itself that is the divergence which edge pruning minimises. To it is added
    λ₁(t − s) + λ₂(t − s)², where s is the expected share of closed edges, t its target, which grows from 0 to the whole
    during the first `warm_up` of the steps, and the λ ascend the loss that the gates descend (Wang et al. 2020). `rate`
    is Adam's step on both. One draw of the gates per step, by `seed`.

    The dataset has

    - `log_alpha`, `probability` [writer, reader]: log α and P(z > 0); NaN where there is no edge;
    - `chosen` [writer, reader]: the edges with the `n` highest log α;
    - `loss`, `open` [step]: the first term above, and the expected number of open edges.

    `value`, `reference` and `memory` as in `headwork.methods.circuit_metric`; `progress` gets the number of steps done.
    Raises `UserError` as that does, for a size that does not exist, and where ablating all edges changes nothing.
    """
    known = graph(model.config)
    kept = size(known.edges, n, fraction)
    if steps < 1 or rate <= 0 or not 0 <= warm_up <= 1:
        raise UserError(
            f"Edge masks have steps = {steps}, rate = {rate} and warm_up = {warm_up}; needed are 1 step or more, a "
            "rate above 0 and a warm-up from 0 to 1."
        )
    measure = circuit_metric(
        model, pairs, metric, value=value, reference=reference, seed=seed, memory=memory, recorded=True
    )
    whole, empty = measure([Circuit.whole(model.config), Circuit.empty(model.config)])
    scale = float(np.abs(whole - empty).mean())
    if scale <= measure.noise * np.abs(np.stack([whole, empty])).mean():
        raise UserError("The metric is the same with every edge ablated, so that there is nothing to keep.")
    task = _Task(measure.runs, torch.from_numpy(whole), scale, np.flatnonzero(known.visible), known.visible.shape)
    log_alpha, losses, opened = _trained(task, kept / known.edges, steps, warm_up, rate, seed, progress)
    attrs = {"steps": steps, "warm_up": warm_up, "rate": rate, "seed": seed, "metric": type(metric).__name__}
    return _dataset(model, log_alpha, losses, opened, kept, attrs | measure.choices("edge"))


class _Task:
    """How far the network is from itself under a draw of the gates, prompts chunk by chunk."""

    def __init__(
        self, runs: Sequence[CircuitRuns], whole: Tensor, scale: float, where: np.ndarray, shape: tuple[int, int]
    ) -> None:
        self.runs, self.shape, self.edges = runs, shape, len(where)
        self.where = torch.from_numpy(where)
        self.targets = whole.split([len(run.tokens) for run in runs])
        self.unit = 1 / (scale * len(whole))

    def __call__(self, gates: Float[Tensor, " edge"]) -> tuple[float, Float[Tensor, " edge"]]:
        """The loss and its gradient at these gates."""
        total, gradient = 0.0, torch.zeros_like(gates)
        for run, target in zip(self.runs, self.targets):
            leaf = gates.detach().requires_grad_()
            mask = leaf.new_zeros(math.prod(self.shape)).index_put((self.where,), leaf).view(1, *self.shape)
            found = run(mask)[0].double()
            loss = (found - target.to(found.device)).abs().sum() * self.unit
            gradient += torch.autograd.grad(loss, leaf)[0]
            total += loss.item()
        return total, gradient


def _trained(
    task: _Task,
    kept: float,
    steps: int,
    warm_up: float,
    rate: float,
    seed: int,
    progress: Callable[[int], None] | None,
) -> tuple[Float[Tensor, " edge"], list[float], list[float]]:
    """The gates' log α after training, and of each step the loss and the expected number of open edges."""
    draw = torch.Generator().manual_seed(seed)
    log_alpha = torch.full((task.edges,), _OPEN_AT_FIRST, dtype=torch.float64, requires_grad=True)
    weights = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    gates_down, weights_up = torch.optim.Adam([log_alpha], rate), torch.optim.Adam([weights], rate, maximize=True)
    losses, opened = [], []
    for step in range(steps):
        with torch.enable_grad():
            gates = hard_concrete(log_alpha, torch.rand(task.edges, generator=draw, dtype=torch.float64))
            loss, gradient = task(gates)
            share = open_probability(log_alpha).mean()
            # How far the expected share of open edges is above what it should be by now.
            target = 1 - (1 - kept) * min(1.0, (step + 1) / max(1.0, warm_up * steps))
            excess = share - target
            penalty = weights[0] * excess + weights[1] * excess.square()
            log_alpha.grad, weights.grad = torch.autograd.grad(
                [gates, penalty], [log_alpha, weights], [gradient, torch.ones_like(penalty)]
            )
        gates_down.step()
        weights_up.step()
        losses.append(loss)
        opened.append(share.item() * task.edges)
        if progress:
            progress(1)
    return log_alpha.detach(), losses, opened


def hard_concrete(log_alpha: Float[Tensor, "*gates"], uniform: Float[Tensor, "*gates"]) -> Float[Tensor, "*gates"]:
    """Gates drawn from uniform numbers between 0 and 1."""
    uniform = uniform.clamp(1e-6, 1 - 1e-6)
    s = ((uniform.log() - (-uniform).log1p() + log_alpha) / TEMPERATURE).sigmoid()
    return (s * (HIGH - LOW) + LOW).clamp(0, 1)


def open_probability(log_alpha: Float[Tensor, "*gates"]) -> Float[Tensor, "*gates"]:
    """How likely each gate is not exactly 0."""
    return (log_alpha - TEMPERATURE * math.log(-LOW / HIGH)).sigmoid()


def _dataset(
    model: Transformer,
    log_alpha: Float[Tensor, " edge"],
    losses: list[float],
    opened: list[float],
    kept: int,
    attrs: Mapping[str, object],
) -> xarray.Dataset:
    import xarray

    known = graph(model.config)
    coords = {"writer": [str(w) for w in known.writers], "reader": [str(r) for r in known.readers]}

    def on_edges(values: Tensor) -> xarray.DataArray:
        array = np.full(known.visible.shape, np.nan)
        array[known.visible] = values.numpy()
        return xarray.DataArray(array, dims=("writer", "reader"), coords=coords)

    scores = on_edges(log_alpha)
    return xarray.Dataset(
        {
            "log_alpha": scores,
            "probability": on_edges(open_probability(log_alpha)),
            "chosen": (("writer", "reader"), top_n(model.config, scores, kept, order="highest").edges),
            "loss": ("step", losses, {"units": "share of what ablating every edge changes"}),
            "open": ("step", opened, {"units": "edges"}),
        },
        attrs={"method": "edge masks", "size": kept, **attrs},
    )
