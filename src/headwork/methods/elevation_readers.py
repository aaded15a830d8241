"""Which heads of a bracket classifier read which way to be unbalanced (Redwood Research; McDougall 2023).

A string fails where its total elevation is not 0, or where the elevation is negative somewhere. Most strings that fail
do so in both ways, so the mean of what a head writes over one kind of failure says little of what it reads. Each
component's direct contribution to logit[unbalanced] − logit[balanced] is therefore regressed on both at once.
Contributions saturate: two failures write less than the sum of one each, so the weights of a regression would depend on
how many strings of each kind there are. Each of the four kinds therefore counts alike, and the `interaction` is
reported.

From which side the elevation is taken matters where the total is not 0: from the left it is negative where a start of
the string closes more brackets than it opens, from the right where an end opens more than it closes. Networks are free
to use either, so both are fitted, and what each explains is reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headwork.engine.metrics import LogitDifference
from headwork.errors import UserError
from headwork.methods.direct_attribution import direct_attribution
from headwork.model.transformer import Transformer
from headwork.tasks.brackets import BalancedBrackets

if TYPE_CHECKING:
    import xarray

SIDES = ("left", "right")
FEATURES = ("total", "negative")
_CLOSE = 1e-9


def elevation_features(
    task: BalancedBrackets, tokens: Int[Tensor, "string pos"]
) -> tuple[Bool[Tensor, " string"], Bool[Tensor, "side string"]]:
    """Whether the total elevation is not 0, and whether it is negative somewhere, taken from the left and the right."""
    steps = (tokens == task.opening).long() - (tokens == task.closing).long()
    below = torch.stack([(steps.cumsum(1) < 0).any(1), (steps.flip(1).cumsum(1) > 0).any(1)])
    return steps.sum(1) != 0, below


def elevation_readers(model: Transformer, task: BalancedBrackets, texts: Sequence[str]) -> xarray.Dataset:
    """What each component writes for unbalanced on these strings, and its regression on both ways to fail.

    Dims `component` (as in `direct_attribution`, those whose contribution varies), `string`, `side` (from which the
    elevation is taken), `feature` (`total`: it does not end at 0; `negative`: it is below 0 somewhere) and `bound`:

    - `contribution` [component, string]: logit[unbalanced] − logit[balanced], with the string's own final scale;
    - `total` [string], `negative` [side, string]: the features; `metric` [string]: the whole logit difference;
    - `coefficient` [side, component, feature], `coefficient_interval` [.., bound]: logits for each way to fail, the
      other held fixed, with 95 % intervals over strings that allow unequal variances (HC3, MacKinnon & White 1985);
    - `difference` [side, component], `difference_interval`: coefficient of `total` less that of `negative`;
    - `explained` [side, component]: the share of the contribution's variance, all kinds counting alike;
    - `class_mean` [side, component, total_fails, negative_fails]: for comparison (NaN where there is no such string);
    - `interaction` [side, component]: what both failures write together beyond the sum of one each, by class means;
    - `reads` [side, component]: `total` or `negative`, where by their intervals that coefficient is above 0 and above
      the other one; `both` where both are above 0 and neither is above the other; else `neither`.

    Attribute `side`: from which the features explain more of all heads' variance together. Raises `UserError` for a
    network that is no such classifier, and for strings that do not tell the two features apart.
    """
    import xarray

    check_classifier(model, task)
    examples = task.of(texts)
    total, negative = elevation_features(task, examples.tokens)
    designs = {side: _design(total, below, side) for side, below in zip(SIDES, negative)}
    zeros = torch.zeros(len(examples), dtype=torch.long)
    written = direct_attribution(model, examples.tokens, LogitDifference(zeros + examples.read[0], zeros, zeros + 1))
    varies = (written["contribution"].std("prompt") > _CLOSE).values
    contribution = written["contribution"].values[varies]
    components = [str(name) for name, kept in zip(written["component"].values, varies) if kept]
    fits = {side: _fit(design, contribution) for side, design in designs.items()}
    found = {name: np.stack([fit[name] for fit in fits.values()]) for name in fits["left"]}
    heads = ["." in name for name in components]
    unexplained = found["unexplained"][:, heads].sum(1)
    means = np.stack([_class_means(design, contribution) for design in designs.values()])
    logits, interval = {"units": "logits"}, ("side", "component")
    return xarray.Dataset(
        {
            "contribution": (("component", "string"), contribution, logits),
            "metric": ("string", written["metric"].values, logits),
            "total": ("string", total.numpy()),
            "negative": (("side", "string"), negative.numpy()),
            "coefficient": ((*interval, "feature"), found["coefficient"], logits),
            "coefficient_interval": ((*interval, "feature", "bound"), found["coefficient_interval"], logits),
            "difference": (interval, found["difference"], logits),
            "difference_interval": ((*interval, "bound"), found["difference_interval"], logits),
            "explained": (interval, found["explained"], {"units": "1"}),
            "class_mean": ((*interval, "total_fails", "negative_fails"), means, logits),
            "interaction": (
                interval,
                means[..., 1, 1] - means[..., 0, 1] - means[..., 1, 0] + means[..., 0, 0],
                logits,
            ),
            "reads": (interval, _reads(found["coefficient_interval"], found["difference_interval"])),
        },
        coords={
            "component": components,
            "side": list(SIDES),
            "feature": list(FEATURES),
            "bound": ["low", "high"],
            "total_fails": [False, True],
            "negative_fails": [False, True],
            "string": list(texts),
        },
        attrs={
            "method": "regression of direct contributions on both ways to be unbalanced",
            "side": SIDES[int(unexplained.argmin())],
            "norm_treatment": written.attrs["norm_treatment"],
        },
    )


def check_classifier(model: Transformer, task: BalancedBrackets) -> None:
    """`UserError` unless the network reads such strings and has one output for each class."""
    c = model.config
    needed = 1 + max(task.start, task.pad, task.end, task.opening, task.closing)
    for name, value, holds, accepted in (
        ("outputs", c.outputs, c.outputs == 2, "2: unbalanced and balanced"),
        ("d_vocab", c.d_vocab, c.d_vocab >= needed, f"{needed} or more, for the brackets, start, end and padding"),
        ("n_ctx", c.n_ctx, c.n_ctx >= task.length + 2, f"{task.length + 2} or more, the padded strings' length"),
        ("causal", c.causal, not c.causal, "false, since the answer is read at the first position"),
    ):
        if not holds:
            raise UserError(
                f"A bracket classifier is needed; this network has {name} = {value!r}, which must be {accepted}."
            )


def _design(total: Bool[Tensor, " n"], negative: Bool[Tensor, " n"], side: str) -> np.ndarray:
    """A constant and both features `[string, 3]`. HC3 needs two strings of each kind that pin a coefficient down."""
    kinds = torch.bincount(2 * total.long() + negative.long(), minlength=4).tolist()
    if sum(kind >= 2 for kind in kinds) < 3:
        named = ("none", "negative only", "total only", "both")
        counted = ", ".join(f"{name}: {kind}" for name, kind in zip(named, kinds))
        raise UserError(
            f"The two ways to be unbalanced are told apart by at least two strings each of three kinds; with the "
            f"elevation from the {side} there are {counted}."
        )
    return np.stack([np.ones(len(total)), total.numpy(), negative.numpy()], 1).astype(np.float64)


def _fit(design: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """Least squares of every component `[component, string]` with intervals, every kind of string counting alike."""
    from scipy import stats

    _, kind, counts = np.unique(design @ [0, 2, 1], return_inverse=True, return_counts=True)
    each = (len(design) / len(counts) / counts)[kind]
    away = y - (y @ each / len(design))[:, None]
    design, y = design * np.sqrt(each)[:, None], y * np.sqrt(each)
    inverse = np.linalg.inv(design.T @ design)
    solve = inverse @ design.T
    weights = y @ solve.T
    residual = y - weights @ design.T
    leverage = (design @ inverse * design).sum(1)
    # A string that alone pins a coefficient down would have leverage 1; `_design` refuses that.
    scaled = (residual / (1 - leverage)) ** 2
    covariance = np.einsum("is,cs,js->cij", solve, scaled, solve)
    quantile = float(stats.t.ppf(0.975, len(design) - design.shape[1]))

    def interval(contrast: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        centre = weights @ contrast
        half = quantile * np.sqrt(np.einsum("i,cij,j->c", contrast, covariance, contrast))
        return centre, np.stack([centre - half, centre + half], -1)

    features = [interval(np.eye(3)[1 + i]) for i in range(len(FEATURES))]
    difference, around = interval(np.array([0.0, 1.0, -1.0]))
    return {
        "coefficient": np.stack([centre for centre, _ in features], -1),
        "coefficient_interval": np.stack([bounds for _, bounds in features], -2),
        "difference": difference,
        "difference_interval": around,
        "unexplained": (residual**2).mean(1),
        "explained": 1 - (residual**2).mean(1) / (away**2 * each).mean(1),
    }


def _class_means(design: np.ndarray, y: np.ndarray) -> Float[np.ndarray, "component total negative"]:
    found = np.full((len(y), 2, 2), np.nan)
    for total in range(2):
        for negative in range(2):
            rows = (design[:, 1] == total) & (design[:, 2] == negative)
            if rows.any():
                found[:, total, negative] = y[:, rows].mean(1)
    return found


def _reads(coefficients: np.ndarray, difference: np.ndarray) -> np.ndarray:
    above = coefficients[..., 0] > 0
    more, less = difference[..., 0] > 0, difference[..., 1] < 0
    choices = [above[..., 0] & more, above[..., 1] & less, above.all(-1)]
    return np.select(choices, ["total", "negative", "both"], "neither")
