"""Interchange interventions: does a subspace of an activation carry a variable of a causal model?

The component that a source prompt's activation has inside the subspace is put into the base prompt's run; everything
after responds (Geiger et al. 2021, 2024). If the subspace is where the network keeps the variable, its answer becomes
the one that the causal model gives on the base with the source's value of the variable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headwork.engine.edits import Edit
from headwork.engine.metrics import Metric
from headwork.engine.resume import trace
from headwork.engine.run import run
from headwork.engine.sweep import sweep
from headwork.errors import UserError
from headwork.methods.ablation_choices import AblationChoices
from headwork.methods.interchange_pairs import InterchangePairs
from headwork.methods.room import room
from headwork.methods.site_vectors import Place
from headwork.methods.subspaces import Subspace, inside, random_basis
from headwork.model.config import TransformerConfig
from headwork.model.transformer import NO_TAP, Transformer
from headwork.tasks.prompt_pairs import CheckedMetric, checked_metric, of_rows

if TYPE_CHECKING:
    import xarray


def interchange(
    model: Transformer,
    pairs: InterchangePairs,
    subspace: Subspace,
    metric: Metric | None = None,
    *,
    draws: int = 20,
    seed: int = 0,
    memory: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> xarray.Dataset:
    """What the interchange does to the answers, to a metric on the base prompts, or to both.

    Beside the subspace, `draws` random ones of the same dimension are interchanged, each time scaled so that the
    activation changes by as much as under the subspace, at each position of each pair: the effect of any change of that
    size. They lie within the same heads; where the subspace is all of those, within the whole site; where it is all of
    that too, there is none, and they are NaN. `memory` is in bytes, beside the weights; `progress` is called with the
    number of interchanges done since the last call.

    The dataset has dims `prompt` and `draw`; what is about expected answers is there where the pairs have some, what is
    about a metric where there is one:

    - `interchange_accuracy`, with its 95 % Wilson `interchange_accuracy_interval` [bound]: the share of pairs that give
      the expected answer; `reached` [prompt] says which;
    - `random_accuracy` [draw], `random_accuracy_mean`, `random_accuracy_best`; `random_reached` [draw, prompt];
    - `unchanged_accuracy`: the share that gives the expected answer without any interchange;
    - `effect` [prompt] and `random_effect` [draw, prompt], in the metric's unit: interchanged − base; `base` [prompt];
      `random_effect_mean`, `random_effect_best` (of the draws' means the one largest in size, signed).

    Raises `UserError`, before any work, for what does not exist or does not fit, and where neither an expected answer
    nor a metric is given.
    """
    pairs, subspace = pairs.on(model), subspace.checked(model.config)
    batch, length = pairs.base.shape
    labels = tuple(pairs.labels)
    if draws < 1:
        raise UserError(f"{draws} random subspaces were asked for; the comparison needs at least 1.")
    metrics = _metrics(pairs, metric)
    for one in metrics.values():
        checked_metric(model, one, labels, length)
    control = control_place(model.config, subspace)
    variants = [Swap(subspace), *_random_swaps(model.config, subspace, control, draws, seed)]
    held = room(model, batch, max(length, pairs.source.shape[1]), subspace.place.site, memory)
    parts = []
    for rows in torch.arange(batch).split(held.prompts):
        some = {name: of_rows(one, slice(int(rows[0]), int(rows[-1]) + 1), batch) for name, one in metrics.items()}
        parts.append(_effects(model, pairs.rows(rows), some, variants, held.copies, progress))
    found = {name: torch.cat([part[name] for part in parts], -1).double().cpu() for name in metrics}
    return _dataset(model.config, pairs, subspace, control, found, draws, seed, metric)


@dataclass(frozen=True, eq=False)
class Answers:
    """1 where the network's likeliest answer is the wanted one, else 0; among `answers` only, if there are any."""

    positions: Int[Tensor, " batch"]
    wanted: Int[Tensor, " batch"]
    answers: tuple[int, ...] = ()

    def __call__(
        self, model: Transformer, resid: Float[Tensor, "batch pos d_model"], start: int
    ) -> Float[Tensor, " batch"]:
        logits = answer_logits(model, resid, self.positions.to(resid.device) - start, self.answers)
        best = logits.argmax(-1)
        if self.answers:
            best = torch.tensor(self.answers, device=best.device)[best]
        right = (best == self.wanted.to(best.device)).to(logits)
        return torch.where(logits.isfinite().all(-1), right, torch.nan)

    def reads(self, length: int) -> int:
        return int(self.positions.min())


def answer_logits(
    model: Transformer,
    resid: Float[Tensor, "batch pos d_model"],
    positions: Int[Tensor, " batch"],
    answers: Sequence[int] = (),
) -> Float[Tensor, "batch answer"]:
    """Logits at one position of each example, of the `answers` or of all tokens; nothing else is unembedded."""
    final = model.ln_final(resid[torch.arange(len(resid), device=resid.device), positions][:, None], NO_TAP, "ln_final")
    if not answers:
        return model.unembed(final)[:, 0]
    rows = torch.tensor(list(answers), device=resid.device)
    bias = model.unembed.bias
    return torch.nn.functional.linear(final[:, 0], model.unembed.weight[rows], None if bias is None else bias[rows])


@dataclass(frozen=True, eq=False)
class Swap:
    """The interchange of a subspace, or of a random one at `control` that changes the activation by as much.

    `columns` are those of the subspace's place within the control's.
    """

    subspace: Subspace
    control: Place | None = None
    basis: Float[Tensor, "width k"] | None = None
    columns: Int[Tensor, " n"] | None = None

    def edit(self, source: Tensor, mask: Tensor | None) -> Edit:
        """As an edit of the base's run; `source` is the site's activation, moved to the base's positions."""
        place = self.control or self.subspace.place
        return Edit(place.site, self.change, source, place.heads, mask)

    def change(self, old: Tensor, source: Tensor | None) -> Tensor:
        """The activation with the component put in; both are `[batch, pos, …]` at the place's heads."""
        assert source is not None, "an interchange is built with a source"  # noqa: S101 – an invariant of this file
        difference = (source - old).flatten(2)
        if self.basis is None:
            moved = inside(self.subspace.basis, difference)
        else:
            real = inside(self.subspace.basis, difference[..., self.columns])
            moved = inside(self.basis, difference)
            size = moved.norm(dim=-1, keepdim=True)
            moved = moved * torch.where(size > 0, real.norm(dim=-1, keepdim=True) / size, 0)
        return old + moved.view_as(old)


def control_place(config: TransformerConfig, subspace: Subspace) -> Place | None:
    """Where random subspaces of this dimension can lie and still differ from the subspace; None where nowhere."""
    k, place = subspace.dimension(config), subspace.place
    return next((p for p in (place, Place(place.site)) if k < p.width(config)), None)


def _random_swaps(
    config: TransformerConfig, subspace: Subspace, control: Place | None, draws: int, seed: int
) -> list[Swap]:
    if control is None:
        return []
    generator = torch.Generator().manual_seed(seed)
    width, k = control.width(config), subspace.dimension(config)
    columns = torch.arange(width) if control == subspace.place else subspace.place.columns(config)
    return [Swap(subspace, control, random_basis(width, k, generator), columns) for _ in range(draws)]


def _metrics(pairs: InterchangePairs, metric: Metric | None) -> dict[str, Metric]:
    found: dict[str, Metric] = {}
    expected = pairs.counterfactual
    if expected is not None:
        device = pairs.base.device
        found["answers"] = Answers(pairs.read[:, 0].to(device), expected.to(device), tuple(pairs.answers))
    if metric is not None:
        found["metric"] = metric
    if not found:
        raise UserError("An interchange needs expected answers in the pairs, or a metric, to say what it does.")
    return found


def _effects(
    model: Transformer,
    pairs: InterchangePairs,
    metrics: dict[str, Metric],
    variants: list[Swap],
    copies: int,
    progress: Callable[[int], None] | None,
) -> dict[str, Float[Tensor, "run batch"]]:
    """Each metric of the base run (first) and of every variant's."""
    base = trace(model, pairs.base)
    site = variants[0].subspace.place.site
    source = pairs.aligned(run(model, pairs.source, [site])[site])
    edits = [variant.edit(source, pairs.mask) for variant in variants]
    found = {}
    for number, (name, metric) in enumerate(metrics.items()):
        checked = CheckedMetric(metric, tuple(pairs.labels))
        with torch.no_grad():
            rows = [checked(model, base.resid_final, 0)[None].to(model.dtype)]
        for first in range(0, len(edits), copies):
            chunk = edits[first : first + copies]
            rows.append(sweep(model, base, chunk, checked, None if number else progress))
        found[name] = torch.cat(rows)
    return found


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The 95 % Wilson interval of a share."""
    from scipy import stats

    bounds = stats.binomtest(hits, count).proportion_ci(0.95, "wilson")
    return float(bounds.low), float(bounds.high)


def _dataset(
    config: TransformerConfig,
    pairs: InterchangePairs,
    subspace: Subspace,
    control: Place | None,
    found: dict[str, Float[Tensor, "run batch"]],
    draws: int,
    seed: int,
    metric: Metric | None,
) -> xarray.Dataset:
    import xarray

    batch = len(pairs.labels)
    variables: dict[str, Any] = {}
    missing = torch.full((draws, batch), torch.nan, dtype=torch.float64)
    if "answers" in found:
        unchanged, reached, *_ = found["answers"]
        random = found["answers"][2:] if control is not None else missing
        variables |= {
            "interchange_accuracy": ((), float(reached.mean()), {"units": "1"}),
            "interchange_accuracy_interval": ("bound", list(wilson(int(reached.sum()), batch)), {"units": "1"}),
            "reached": ("prompt", reached.bool().numpy()),
            "random_accuracy": ("draw", random.mean(1).numpy(), {"units": "1"}),
            "random_accuracy_mean": ((), float(random.mean()), {"units": "1"}),
            "random_accuracy_best": ((), float(random.mean(1).max()), {"units": "1"}),
            "random_reached": (("draw", "prompt"), random.numpy(), {"units": "1"}),
            "unchanged_accuracy": ((), float(unchanged.mean()), {"units": "1"}),
        }
    if "metric" in found:
        base, put, *_ = found["metric"]
        random = found["metric"][2:] - base if control is not None else missing
        means = random.mean(1)
        best = means[means.abs().nan_to_num(0).argmax()]
        unit = {"units": "units of the metric"}
        variables |= {
            "base": ("prompt", base.numpy(), unit),
            "effect": ("prompt", (put - base).numpy(), unit),
            "random_effect": (("draw", "prompt"), random.numpy(), unit),
            "random_effect_mean": ((), float(random.mean()), unit),
            "random_effect_best": ((), float(best), unit),
        }
    place = subspace.place
    here, _ = pairs.where
    choices = AblationChoices("node", "subspace", "counterfactual", "noising", "circuit", _in_words(here))
    coords: dict[str, Any] = {"prompt": list(pairs.labels), "draw": range(draws)}
    return xarray.Dataset(
        variables,
        coords=coords | ({"bound": ["low", "high"]} if "answers" in found else {}),
        attrs={
            "method": "interchange intervention",
            "site": place.site,
            "heads": "all" if place.heads is None else str(list(place.heads)),
            "dimension": subspace.dimension(config),
            "width": place.width(config),
            "random_subspaces_within": _control_in_words(control),
            "seed": seed,
            "metric": "none" if metric is None else type(metric).__name__,
        }
        | choices.attrs(),
    )


def _control_in_words(control: Place | None) -> str:
    if control is None:
        return "unavailable: the subspace is all of the site"
    return "the whole site" if control.heads is None else f"heads {list(control.heads)}"


def _in_words(positions: Int[Tensor, "batch n"] | None) -> str:
    if positions is None:
        return "all"
    return str(positions[0].tolist()) if bool((positions == positions[0]).all()) else "chosen for each prompt"
