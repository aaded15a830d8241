"""Ablation: what a metric loses when components write something else than what they compute.

What is written instead decides what is measured: nothing (`zero`), which the rest of the network never met; a `mean`,
which removes what differs between prompts and keeps what they share; another prompt's output (`resample`, Chan et al.
2022; `counterfactual`, Vig et al. 2020), which stays among values that the network meets. See Zhang & Nanda 2024 and
Miller et al. 2024 for how much results depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headwork.engine.edits import Edit, replace
from headwork.engine.metrics import Metric
from headwork.engine.resume import trace
from headwork.engine.run import Tokens, as_tokens, bytes_kept
from headwork.engine.sweep import sweep
from headwork.errors import UserError, unknown
from headwork.methods.ablated_outputs import AblatedOutputs
from headwork.methods.ablation_choices import AblationChoices, AblationValue, Component
from headwork.methods.ablation_source import AblationSource, Reference, ablation_source
from headwork.methods.cells import chosen, unless_all
from headwork.methods.components import Group, writers_named
from headwork.methods.effects import IN_METRIC, effect_variables
from headwork.methods.graph import Writer, graph
from headwork.methods.room import copies_that_fit
from headwork.model.config import TransformerConfig
from headwork.model.transformer import Transformer
from headwork.tasks.prompt_pairs import CheckedMetric, PromptPairs, checked_metric, of_rows, prompt_labels

if TYPE_CHECKING:
    import xarray

Kind = Literal["heads", "mlps", "layers"]
Positions = Sequence[int] | Tensor | None


def ablation_effects(
    model: Transformer,
    prompts: PromptPairs | Tokens,
    metric: Metric,
    *,
    value: AblationValue | Sequence[AblationValue] = "mean",
    of: Kind | Sequence[Group] = "heads",
    reference: Reference = None,
    positions: Positions = None,
    joint: bool = False,
    labels: Sequence[str] = (),
    seed: int = 0,
    memory: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> xarray.Dataset:
    """What each prompt's metric becomes when components are ablated, minus what it is.

    `of`: each of the `heads`, of the `mlps` or of the `layers` (a layer's heads and its MLP together) by itself; or
    names of heads and MLPs (`3.5`, `m3`), each by itself, and groups of names, each group together. With `joint`
    everything named is ablated at once. A head's output is z · W_O without attention's output bias, which stays; an
    MLP's output includes its bias.

    `value`, one or several: `zero`; `mean` over the prompts and positions (padding included) of `reference`;
    `mean-by-position` over its prompts; `resample`, the output on a reference prompt drawn for each prompt by `seed`,
    among those with its padding; `counterfactual`, the output on the paired prompt, where `prompts` are `PromptPairs`
    (their clean prompts are ablated). The reference `[batch, pos]`, as long as the prompts where positions matter, is
    the prompts themselves where it is left out; none is then resampled from itself. `positions` are numbers, or a mask
    `[batch, pos]`; all where left out.

    `memory` is in bytes, beside the weights and one chunk of the reference; `progress` is called with the number of
    ablated runs done since the last call (once for each chunk of prompts). `labels` name prompts that are not pairs.

    The dataset has dims `layer` and `head`, or `layer`, or `component`, none of them with `joint`, before them `value`
    where several are given, and `prompt`:

    - `effect` [.., prompt], in the metric's unit: ablated − base;
    - `normalised` [..]: mean effect ÷ mean base; −1 says that all is lost. NaN where the base's mean is 0;
    - `normalised_by_prompt` [.., prompt]: effect ÷ base, NaN where base is 0;
    - `base` [prompt]: the metric of the untouched run.

    Raises `UserError`, before any work, for what does not exist or does not fit together; and for a metric that is not
    finite, wherever it is met.
    """
    values, several = _values(value)
    plan = _plan(model.config, of, joint)
    given = prompts.on(model) if isinstance(prompts, PromptPairs) else as_tokens(model, prompts)
    tokens, named = (given.clean, given.labels) if isinstance(given, PromptPairs) else (given, labels)
    names = prompt_labels(tuple(labels) or named, len(tokens))
    where = _where(positions, tokens)
    checked_metric(model, metric, names, tokens.shape[1])
    source = ablation_source(model, given, values, reference, seed)
    found = _swept(model, _Job(tokens, names, metric, plan, where, source, values), memory, progress)
    base, effect = (torch.cat(parts, -1) for parts in zip(*found))
    effect = effect.unflatten(1, plan.shape) if plan.shape else effect[:, 0]
    coords = {"value": list(values)} | plan.coords if several else plan.coords
    effect = effect if several else effect[0]
    return _dataset(effect, coords, names, base, _attrs(plan, source, where, values, metric, seed))


@dataclass(frozen=True)
class _Plan:
    """Groups of components to ablate, the axes that they fill, and in words what they are."""

    groups: tuple[tuple[Writer, ...], ...]
    coords: dict[str, list[Any]]
    component: Component
    of: str
    joint: bool

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(values) for values in self.coords.values())


def _plan(config: TransformerConfig, of: Kind | Sequence[Group], joint: bool) -> _Plan:
    every = [w for w in graph(config).writers if w.kind != "embed"]
    layers = list(range(config.n_layers))
    coords: dict[str, list[Any]] = {"layer": layers}
    if isinstance(of, str) and of in get_args(Kind):
        kinds = {"heads": ["head"], "mlps": ["mlp"], "layers": ["head", "mlp"]}[of]
        taken = [w for w in every if w.kind in kinds]
        if not taken:
            raise UserError(f"This network has no {of} to ablate: it has {config.n_layers} layers and no MLP.")
        if of == "heads":
            coords["head"] = list(range(config.n_heads))
            groups = [(w,) for w in taken]
        else:
            groups = [tuple(w for w in taken if w.layer == layer) for layer in layers]
    else:
        if isinstance(of, str) and of not in {str(w) for w in every}:
            raise unknown("component to ablate", of, [*get_args(Kind), *map(str, every)])
        named = writers_named(config, of, "component to ablate", ("head", "mlp"))
        coords, groups = {"component": list(named)}, list(named.values())
    if joint:
        coords, groups = {}, [tuple(dict.fromkeys(w for group in groups for w in group))]
    met = {w.kind for group in groups for w in group}
    component: Component = "heads and MLPs" if len(met) > 1 else "heads" if "head" in met else "MLPs"
    words = of if isinstance(of, str) else "given components"
    return _Plan(tuple(groups), coords, component, words, joint)


def _values(value: AblationValue | Sequence[AblationValue]) -> tuple[tuple[AblationValue, ...], bool]:
    """The values to ablate with, and whether several were asked for."""
    values = (value,) if isinstance(value, str) else tuple(value)
    for one in values:
        if one not in get_args(AblationValue):
            raise unknown("ablation value", str(one), get_args(AblationValue))
    if not values or len(set(values)) < len(values):
        raise UserError(f"The ablation values are {list(values)}; at least one is needed, and each once.")
    return values, not isinstance(value, str)


def _where(positions: Positions, tokens: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
    """Which positions are ablated."""
    if isinstance(positions, Tensor):
        mask = positions
        if mask.shape != tokens.shape or mask.dtype != torch.bool or not mask.any():
            raise UserError(
                f"A mask of positions must be boolean, of the prompts' shape {list(tokens.shape)}, and true somewhere; "
                f"this one is {mask.dtype} of shape {list(mask.shape)}."
            )
        return mask.to(tokens.device)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    mask[:, list(chosen("position", positions, tokens.shape[1], "The prompts"))] = True
    return mask


@dataclass(frozen=True, eq=False)
class _Job:
    """What is ablated on which prompts, and how it is measured."""

    tokens: Int[Tensor, "batch pos"]
    names: tuple[str, ...]
    metric: Metric
    plan: _Plan
    where: Bool[Tensor, "batch pos"]
    source: AblationSource
    values: tuple[AblationValue, ...]


def _swept(
    model: Transformer, job: _Job, memory: int | None, progress: Callable[[int], None] | None
) -> Iterator[tuple[Float[Tensor, " b"], Float[Tensor, "value group b"]]]:
    """Base and effects of one chunk of prompts after the other."""
    config, (batch, length) = model.config, job.tokens.shape
    sites = ["blocks.*.attn.z"] + ["blocks.*.mlp_out"] * (not config.attention_only)
    beside = 2 * bytes_kept(model, 1, length, sites)
    size, copies = copies_that_fit(model, batch, length, beside, memory, "Ablation")
    for first in range(0, batch, size):
        rows = slice(first, min(first + size, batch))
        metric = CheckedMetric(of_rows(job.metric, rows, batch), job.names[rows])
        base_trace = trace(model, job.tokens[rows])
        with torch.no_grad():
            base = metric(model, base_trace.resid_final, 0)
        effect = base.new_zeros(len(job.values), len(job.plan.groups), len(base))
        for i, value in enumerate(job.values):
            outputs = job.source.outputs(model, value, rows)
            edits = list(_edits(config, job, outputs, rows))
            for at in range(0, len(edits), copies):
                part = edits[at : at + copies]
                effect[i, at : at + len(part)] = sweep(model, base_trace, part, metric, progress) - base
        yield base, effect


def _edits(config: TransformerConfig, job: _Job, outputs: AblatedOutputs, rows: slice) -> Iterator[list[Edit]]:
    """The edits that ablate each group on these prompts; none where nothing can change."""
    mask = job.where[rows]
    if outputs.tokens is not None and config.causal:
        # Before the first difference the other prompts' outputs are these prompts' own.
        same = (outputs.tokens == job.tokens[rows]).all(0).long().cumprod(0).bool()
        mask = mask & ~same
    if not mask.any():
        return
    alike = bool((mask == mask[0]).all())
    positions = unless_all(tuple(mask[0].nonzero()[:, 0].tolist()), mask.shape[1]) if alike else mask
    for group in job.plan.groups:
        edits = []
        for layer in sorted({w.layer for w in group}):
            heads = tuple(w.index for w in group if w.layer == layer and w.kind == "head")
            if heads:
                at = unless_all(heads, config.n_heads)
                edits.append(replace(f"blocks.{layer}.attn.z", outputs.z[layer], at, positions))
            if any(w.layer == layer and w.kind == "mlp" for w in group):
                edits.append(replace(f"blocks.{layer}.mlp_out", outputs.mlp_out[layer], None, positions))
        yield edits


def _attrs(
    plan: _Plan, source: AblationSource, where: Tensor, values: tuple[AblationValue, ...], metric: Metric, seed: int
) -> dict[str, Any]:
    same = bool((where == where[0]).all())
    numbers = where[0].nonzero()[:, 0].tolist()
    text = "all" if bool(where.all()) else str(numbers) if same else "a mask"
    choices = AblationChoices("node", plan.component, values[0], "noising", "circuit", text).attrs()
    return {
        "method": "ablation",
        "of": plan.of,
        "joint": int(plan.joint),
        "metric": type(metric).__name__,
        "reference_prompts": len(source.reference),
        "seed": seed,
        **choices,
        "ablation_value": ", ".join(values),
    }


def _dataset(
    effect: Float[Tensor, "*cells batch"],
    coords: dict[str, list[Any]],
    names: tuple[str, ...],
    base: Float[Tensor, " batch"],
    attrs: dict[str, Any],
) -> xarray.Dataset:
    import xarray

    variables = effect_variables(effect, list(coords), base, base.abs())
    variables["base"] = (("prompt",), base.double().cpu().numpy(), IN_METRIC)
    return xarray.Dataset(variables, coords | {"prompt": list(names)}, attrs)
