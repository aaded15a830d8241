"""Linear probes on few units: what can be read off an activation, and from how many of its neurons or entries.

Sparse probing (Gurnee et al. 2023): choose k units, fit a linear probe on them, score it on held-out examples. Units,
fit, choice of penalty and of k, and score each have examples of their own. The null is the same procedure, choice of
units included, on shuffled labels: what choosing the best of many units gains by luck is paid for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from headwork.engine.run import Tokens, as_tokens
from headwork.errors import UserError, unknown
from headwork.methods.linear_fit import fit_classes, fit_numbers, informative_units, lasso_units
from headwork.methods.probe_data import Splits, shuffled, split, standardised
from headwork.methods.probe_scores import MEASURES, interval
from headwork.methods.site_vectors import Place, Positions, as_positions, vectors_at
from headwork.model.sites import resolve
from headwork.model.transformer import Transformer

if TYPE_CHECKING:
    import xarray

Selection = Literal["mean difference", "lasso"]
Count = int | Literal["all"]
CHOSEN = "chosen"


def probe(
    model: Transformer,
    tokens: Tokens,
    labels: Tensor | Sequence[int] | Sequence[float],
    sites: Sequence[str] | str,
    *,
    positions: Positions = -1,
    k: Sequence[Count] = (1, 4, 16, "all"),
    selection: Selection = "mean difference",
    penalties: Sequence[float] = (1e-3, 1e-2, 1e-1, 1.0),
    groups: Sequence[int] | Int[Tensor, " n"] | None = None,
    splits: Splits | None = None,
    shuffles: int = 100,
    seed: int = 0,
    memory: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> xarray.Dataset:
    """How well `labels` can be read off each site with k of its units, on held-out examples.

    An example is a chosen position of a prompt: labels are `[batch]`, or `[batch, n]` for n positions each. Whole
    numbers are classes (softmax regression with an L2 penalty), other numbers are predicted (ridge regression). Units
    are ranked by `mean difference` (variance between the classes' means ÷ all variance; for numbers the squared
    correlation) or by when they enter a `lasso` path. `groups` name examples that belong together (prompts of one
    template; by default all positions of a prompt): they are never split. `memory` (bytes) bounds what the network and
    the fits hold at once; `progress` is called with the number of sites done since the last call.

    The dataset has dims `site` and `k`; its last entry, `chosen`, is the k that does best on the validation part, and
    its null chooses k again for each shuffle. For classes `accuracy` and `balanced_accuracy`, for numbers `r2`, each
    with, for the test part:

    - `…_interval` [bound]: 95 %, over examples, or over groups where there are some;
    - `…_null` [shuffle], `…_null_mean`, `…_null_95`: what shuffled labels reach;
    - `…_p_value`: (1 + shuffles that reach as much) ÷ (1 + shuffles); `…_p_value_over_all`: the same against the best
      of every site and k of a shuffle.

    And `units`, how many are used; `penalty`; `unit` [rank], which ones (−1 past the last, and none for `all`).

    Raises `UserError`, before any fit, for what does not exist, labels of a wrong number, parts that lack a class, and
    a memory limit that one prompt or one fit exceeds.
    """
    tokens = as_tokens(model, tokens)
    places = [Place(name).checked(model.config) for name in resolve(model.config, sites)]
    where = as_positions(positions, *_shape(tokens))
    each = tokens.shape[1] if where is None else where.shape[1]
    targets = _targets(labels, len(tokens), each)
    counts = _counts(k, min(place.width(model.config) for place in places))
    _check_choices(selection, penalties, shuffles)
    owners = _groups(groups, len(tokens), each)
    generator = torch.Generator().manual_seed(seed)
    parts = splits or split(targets, generator, owners)
    parts.check(targets)
    every = torch.cat([targets[None], shuffled(targets, parts, shuffles, generator, owners)])
    at = [v.flatten(0, 1) for v in vectors_at(model, tokens, places, positions, memory)]
    results = []
    for place, x in zip(places, at):
        if not x.isfinite().all():
            raise UserError(f"The activations at {place.site} are not finite; they cannot be probed.")
        results.append(_probed(x.double(), every, parts, counts, selection, sorted(penalties), memory))
        if progress:
            progress(1)
    attrs = {"method": "sparse probing", "selection": selection, "shuffles": shuffles, "seed": seed}
    attrs |= {f"{name}_examples": len(part) for name, part in parts.parts().items()}
    return _dataset([place.site for place in places], counts, results, every, parts, owners, attrs)


def linear_probe(
    activations: Float[Tensor, "n width"], labels: Int[Tensor, " n"] | Float[Tensor, " n"], penalty: float = 1e-2
) -> tuple[Float[Tensor, "width classes"], Float[Tensor, " classes"]]:
    """Weights and intercepts of one dense probe, fitted to all of these examples, for activations as they are.

    One column of weights for each class in order, or one for labels that are no whole numbers. The penalty is on
    activations divided by one number, their deviation over all units, so that directions keep their angles.
    """
    x, size = activations.double(), activations.double().std(0, correction=0).square().mean().sqrt()
    if not 0 < size < float("inf"):
        raise UserError("The activations must be finite and differ from each other to be probed.")
    found = _fit((x / size)[None], _numbered(labels)[None], penalty)[0]
    return found[:-1] / size, found[-1]


@dataclass(frozen=True, eq=False)
class _Fitted:
    """Of each labelling (the real one first) and each k, the last of which is the chosen one."""

    predictions: Tensor  # [k, labelling, test]
    penalty: Float[Tensor, "k labelling"]
    units: list[int]
    ranks: Int[Tensor, "labelling most"]


def _probed(
    x: Float[Tensor, "n d"],
    every: Tensor,
    parts: Splits,
    counts: Sequence[Count],
    selection: Selection,
    penalties: Sequence[float],
    memory: int | None,
) -> _Fitted:
    """Select, fit, and choose for every labelling at once, or for as many as fit."""
    classes = 1 if every.is_floating_point() else int(every.max()) + 1
    width = x.shape[1]
    most = max((n for n in counts if n != "all"), default=0)
    size = _labellings_at_once(len(every), len(x), width, max(classes, 1), most, memory)
    found = [_some(x, some, parts, counts, selection, penalties, most) for some in every.split(size)]
    predictions, scores, penalty, ranks = (torch.cat([one[i] for one in found], 1 if i < 3 else 0) for i in range(4))
    units = [width if n == "all" else n for n in counts]
    # The smallest k among the best; `counts` are in order.
    best = (scores == scores.amax(0)).int().argmax(0)
    rows = torch.arange(len(every))
    return _Fitted(
        torch.cat([predictions, predictions[best, rows][None]]),
        torch.cat([penalty, penalty[best, rows][None]]),
        [*units, units[int(best[0])]],
        ranks,
    )


def _some(
    x: Float[Tensor, "n d"],
    labels: Tensor,
    parts: Splits,
    counts: Sequence[Count],
    selection: Selection,
    penalties: Sequence[float],
    most: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Predictions on the test part, scores on the validation part and penalties of each k; and the units by rank."""
    order = torch.empty(len(labels), 0, dtype=torch.long)
    if most:
        picking = informative_units if selection == "mean difference" else lasso_units
        score = picking(x[parts.selection], _as_targets(labels[:, parts.selection], labels))
        order = score.sort(dim=1, descending=True, stable=True).indices[:, :most]
    measure = MEASURES["r2" if labels.is_floating_point() else "balanced_accuracy"]
    outcomes = []
    for count in counts:
        some = x[None] if count == "all" else x.T[order[:, :count]].transpose(1, 2)
        z, _, _ = standardised(some, parts.train)
        best: tuple[Tensor, ...] | None = None
        for penalty in penalties:
            weights = _fit(z[:, parts.train], labels[:, parts.train], penalty, int(labels.max()) + 1)
            guesses = [_predicted(z[:, rows], weights, labels) for rows in (parts.validation, parts.test)]
            score = measure(guesses[0], labels[:, parts.validation])
            now = (guesses[1], score, torch.full_like(score, penalty))
            if best is None:
                best = now
                continue
            # Of equal scores the larger penalty, which comes later.
            better = score >= best[1]
            best = (
                torch.where(better[:, None], now[0], best[0]),
                *(torch.where(better, a, b) for a, b in zip(now[1:], best[1:])),
            )
        assert best is not None, "there is a penalty"  # noqa: S101 – seen to by `_check_choices`
        outcomes.append(best)
    predictions, scores, chosen = (torch.stack(values) for values in zip(*outcomes))
    return predictions, scores, chosen, order


def _fit(x: Tensor, y: Tensor, penalty: float, classes: int | None = None) -> Tensor:
    if y.is_floating_point():
        return fit_numbers(x, y, penalty)
    return fit_classes(x, y, classes or int(y.max()) + 1, penalty)


def _predicted(x: Tensor, weights: Tensor, labels: Tensor) -> Tensor:
    found = x @ weights[:, :-1] + weights[:, -1:]
    return found[..., 0] if labels.is_floating_point() else found.argmax(-1)


def _as_targets(labels: Tensor, every: Tensor) -> Float[Tensor, "p n target"]:
    if labels.is_floating_point():
        return labels[..., None]
    return torch.nn.functional.one_hot(labels, int(every.max()) + 1).double()


def _numbered(labels: Tensor) -> Tensor:
    """Classes as 0, 1, … in order; numbers in float64."""
    if labels.is_floating_point():
        return labels.double()
    return labels.unique(return_inverse=True)[1]


def _shape(tokens: Int[Tensor, "batch pos"]) -> tuple[int, int]:
    return tokens.shape[0], tokens.shape[1]


def _targets(labels: Tensor | Sequence[int] | Sequence[float], batch: int, each: int) -> Tensor:
    found = torch.as_tensor(labels).cpu()
    if found.shape == (batch,):
        found = found[:, None].expand(-1, each)
    if found.shape != (batch, each) or found.is_complex():
        raise UserError(
            f"The labels have shape {list(found.shape)}; needed is one for each of {batch} prompts, or "
            f"[{batch}, {each}]."
        )
    found = found.flatten()
    if found.is_floating_point() and not found.isfinite().all():
        raise UserError("The labels must be finite numbers.")
    if len(found.unique()) < 2:
        raise UserError(f"All labels are {found[0].item()}; a probe needs at least two different ones.")
    return _numbered(found if found.is_floating_point() else found.long())


def _counts(k: Sequence[Count], width: int) -> list[Count]:
    whole = [n for n in k if n != "all"]
    wrong = [n for n in whole if not isinstance(n, int) or not 1 <= n <= width]
    if not k or wrong or len(set(k)) < len(k):
        raise UserError(f"k was {list(k)}; it takes numbers from 1 to {width}, the narrowest site's units, and 'all'.")
    return [*sorted(n for n in whole if isinstance(n, int)), *(["all"] if "all" in k else [])]


def _check_choices(selection: str, penalties: Sequence[float], shuffles: int) -> None:
    if selection not in get_args(Selection):
        raise unknown("way to select units:", str(selection), get_args(Selection))
    if not penalties or not all(0 < p < float("inf") for p in penalties):
        raise UserError(f"The penalties are {list(penalties)}; they must be above 0, and at least one is needed.")
    if shuffles < 1:
        raise UserError(f"{shuffles} shuffles were asked for; the null needs at least 1.")


def _groups(groups: Sequence[int] | Tensor | None, batch: int, each: int) -> Int[Tensor, " n"] | None:
    """The group of each example; None where every example is one of its own."""
    if groups is None:
        return None if each == 1 else torch.arange(batch).repeat_interleave(each)
    found = torch.as_tensor(groups).cpu()
    if found.shape == (batch,):
        found = found.repeat_interleave(each)
    if found.shape != (batch * each,) or found.is_floating_point():
        raise UserError(f"Groups are given for {len(found)} prompts; there are {batch}, and each is in one group.")
    return found.long()


def _labellings_at_once(count: int, examples: int, width: int, classes: int, most: int, memory: int | None) -> int:
    if memory is None:
        # Enough to keep the products busy; the result does not depend on it.
        return max(1, min(count, 2**27 // (examples * (most + 6 * classes) + 25 * width * classes)))
    shared = 3 * 8 * examples * width
    each = 8 * (examples * (3 * most + 6 * classes) + 25 * (width + 1) * classes)
    if memory < shared + each:
        raise UserError(
            f"Probes on {examples} examples of {width} units need about {(shared + each) / 1e6:,.1f} MB; the limit is "
            f"{memory / 1e6:,.1f} MB."
        )
    return min(count, (memory - shared) // each)


def _dataset(
    sites: list[str],
    counts: Sequence[Count],
    results: list[_Fitted],
    every: Tensor,
    parts: Splits,
    groups: Tensor | None,
    attrs: dict[str, Any],
) -> xarray.Dataset:
    import xarray

    held, owners = every[:, parts.test], None if groups is None else groups[parts.test]
    names = [*map(str, counts), CHOSEN]
    ranks = torch.stack([_by_count(one.ranks[0], [*counts, one.units[-1]]) for one in results])
    variables: dict[str, Any] = {
        "units": (("site", "k"), [one.units for one in results]),
        "penalty": (("site", "k"), np.stack([one.penalty[:, 0].numpy() for one in results])),
        "unit": (("site", "k", "rank"), ranks.numpy()),
    }
    for measure in ("r2",) if every.is_floating_point() else ("accuracy", "balanced_accuracy"):
        variables |= _scores(measure, results, held, owners)
    return xarray.Dataset(variables, coords={"site": sites, "k": names, "bound": ["low", "high"]}, attrs=attrs)


def _by_count(ranks: Int[Tensor, " most"], counts: Sequence[Count]) -> Int[Tensor, "k most"]:
    """The units of each k, −1 past the last; none where all are used."""
    found = torch.full((len(counts), len(ranks)), -1)
    for row, count in zip(found, counts):
        if count != "all" and count <= len(ranks):
            row[:count] = ranks[:count]
    return found


def _scores(measure: str, results: list[_Fitted], held: Tensor, groups: Tensor | None) -> dict[str, Any]:
    """The variables of one measure; scores are [site, k, labelling], the real labels first."""
    scores = torch.stack(
        [torch.stack([MEASURES[measure](guesses, held) for guesses in one.predictions]) for one in results]
    ).numpy()
    real, null = scores[..., 0], scores[..., 1:]
    bounds = [[interval(measure, guesses[0], held[0], groups) for guesses in one.predictions] for one in results]
    best = null.max((0, 1))
    count, share = null.shape[-1], {"units": "1"}
    dims = ("site", "k")
    return {
        measure: (dims, real, share),
        f"{measure}_interval": ((*dims, "bound"), np.array(bounds), share),
        f"{measure}_null": ((*dims, "shuffle"), null, share),
        f"{measure}_null_mean": (dims, null.mean(-1), share),
        f"{measure}_null_95": (dims, np.quantile(null, 0.95, axis=-1), share),
        f"{measure}_p_value": (dims, (1 + (null >= real[..., None]).sum(-1)) / (1 + count)),
        f"{measure}_p_value_over_all": (dims, (1 + (best >= real[..., None]).sum(-1)) / (1 + count)),
    }
