"""Proved lower bounds on the accuracy of a network for the largest of k numbers (compact proofs, Gross et al. 2024).

Of a list with maximum m and last number q, the lead of m over another output w is, with the tables of `max_tables`,

    lead(w) = direct[q, m|w] + Σ_p pattern_p · value[t_p, p, m|w] + scale · bias[m|w],     x[m|w] = x[m] − x[w],

and the answer is right where all leads are positive. A proof is a list of inequalities that imply this for many inputs.

- `brute force` checks every input: lead · Σ_p exp(score_p) is a sum over positions, whose terms have known signs.
- `by output` never looks at an input. For a maximum m and a cap o it covers lists whose other numbers are o or less:
  the pattern on m is at least α, found with the largest scores that other numbers may have; the lead is linear in
  that pattern, so its least value is at α or at 1; each term is replaced by its least value over what may stand there:
  lead(w) ≥ min_q direct + α · min_p value[m] + (1 − α) · min_{t ≤ o, p} value[t]. Least values over t ≤ o are running
  minima, so all caps together cost as much as the largest one: n³ comparisons for n numbers, whatever k.
- `by lead` does the same with every table's lead over its own best other output, which for k = 2 takes n² comparisons;
  it loses where different parts favour different wrong answers.

Lists in which m is itself the last number and lists in which it stands before are covered apart.

All inequalities hold with outward rounding: tables come with bounds on their errors (`headwork.methods.rounding`),
which also cover how the network itself rounds, and every sum of theirs is widened by 2⁻⁴⁰ of the sizes that went into
it. What is proved is therefore right in exact arithmetic and in every evaluation in the network's own precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headwork.errors import UserError, unknown
from headwork.methods.max_tables import MaxTables, check_network, leads, max_tables
from headwork.methods.rounding import WIDER
from headwork.model.transformer import Transformer
from headwork.tasks.max_of_k import MaxOfK

if TYPE_CHECKING:
    import xarray

Strategy = Literal["brute force", "by output", "by lead"]
_ENTRIES = 2**21
_MOST_INPUTS = 2**26
_NARROWER = 2.0**-40


def accuracy_bounds(
    model: Transformer,
    task: MaxOfK,
    strategies: Sequence[Strategy] = get_args(Strategy),
    *,
    run: bool = True,
    progress: Callable[[int], None] | None = None,
) -> xarray.Dataset:
    """Lower bounds on the accuracy over all `vocab`^k lists, what they cost, and how tight they are.

    Dims `strategy` and `maximum`:

    - `bound` [strategy]: the share of inputs that are proved right; `proved` [strategy, maximum]: their number;
    - `inputs` [strategy]: how many whole inputs the strategy looks at; `comparisons`: how many inequalities it checks,
      counted with the entries of the tables of minima that they need; `multiplications`: those for the tables;
    - `tightness` [strategy]: bound ÷ accuracy (NaN without `run`, or where the accuracy is 0);
    - `cap` [strategy, case, maximum]: the largest other number that is covered, where the maximum is `last` or
      `earlier`; −1 where only lists of the maximum alone are, −2 where nothing is; NaN for brute force.

    Attributes: `accuracy`, the share of right answers of the network run on all inputs (with `run`), and
    `run_multiplications`, what that takes; trivial baselines on the same inputs: `always_largest` answers
    vocab − 1, `copies_last` the last number, `guesses` any. `progress` is called with the number of inputs enumerated.

    Raises `UserError` for another kind of network, a strategy that does not exist, and where inputs would have to be
    enumerated and are more than 2²⁶.
    """
    import xarray

    strategies = list(strategies)
    for name in strategies:
        _check_strategy(name)
    check_network(model, task)
    inputs = task.vocab**task.k
    if (run or "brute force" in strategies) and inputs > _MOST_INPUTS:
        raise UserError(
            f"There are {inputs:,} lists of {task.k} numbers below {task.vocab}; at most {_MOST_INPUTS:,} are "
            "enumerated. Leave out run and the strategy 'brute force'."
        )
    tables = max_tables(model, task)
    proofs = [proof(tables, task, name, progress) for name in strategies]
    accuracy = enumerated_accuracy(model, task, progress) if run else math.nan
    bound = [float(proof.proved.sum()) / inputs for proof in proofs]
    cases = [proof.cap for proof in proofs]
    return xarray.Dataset(
        {
            "bound": ("strategy", bound, {"units": "1"}),
            "proved": (("strategy", "maximum"), [proof.proved.tolist() for proof in proofs], {"units": "inputs"}),
            "inputs": ("strategy", [proof.inputs for proof in proofs]),
            "comparisons": ("strategy", [proof.comparisons for proof in proofs]),
            "multiplications": ("strategy", [tables.multiplications] * len(proofs)),
            "tightness": ("strategy", [b / accuracy if accuracy else math.nan for b in bound], {"units": "1"}),
            "cap": (("strategy", "case", "maximum"), [cap.tolist() for cap in cases]),
        },
        coords={"strategy": strategies, "case": ["last", "earlier"], "maximum": range(task.vocab)},
        attrs={
            "method": "proved lower bounds on accuracy",
            "accuracy": accuracy,
            "run_multiplications": inputs * _per_run(model, task),
            "domain": inputs,
            "norm": model.config.norm,
            "dtype": str(model.dtype),
            **_baselines(task),
        },
    )


def proof(tables: MaxTables, task: MaxOfK, strategy: Strategy, progress: Callable[[int], None] | None = None) -> Proof:
    """What one strategy proves from the tables. Raises `UserError` for a strategy that does not exist."""
    _check_strategy(strategy)
    return _PROOFS[strategy](tables, task, progress)


def _check_strategy(name: str) -> None:
    if name not in get_args(Strategy):
        raise unknown("strategy", name, get_args(Strategy))


def enumerated_accuracy(model: Transformer, task: MaxOfK, progress: Callable[[int], None] | None = None) -> float:
    """The share of right answers of the network itself, run in its own precision on every list."""
    right = 0
    for lists in _lists(task, model.config.outputs * task.k):
        examples = task.of(lists)
        with torch.no_grad():
            right += int(examples.correct(model(lists.to(model.device))).sum())
        if progress is not None:
            progress(len(lists))
    return right / task.vocab**task.k


def _baselines(task: MaxOfK) -> dict[str, float]:
    n, k = task.vocab, task.k
    copies = sum((m + 1) ** (k - 1) for m in range(n)) / n**k
    return {"always_largest": 1 - ((n - 1) / n) ** k, "copies_last": copies, "guesses": 1 / n}


def _per_run(model: Transformer, task: MaxOfK) -> int:
    c = model.config
    return task.k * (4 * c.d_model * c.d_head + 2 * task.k * c.d_head + c.d_model * c.outputs)


def _lists(task: MaxOfK, entries: int) -> Iterator[Int[Tensor, "list k"]]:
    """Every list of the task, as many at a time as `entries` numbers each allow."""
    count, size = task.vocab**task.k, max(1, _ENTRIES // entries)
    places = task.vocab ** torch.arange(task.k - 1, -1, -1)
    for first in range(0, count, size):
        yield torch.arange(first, min(first + size, count))[:, None] // places % task.vocab


@dataclass(frozen=True)
class Proof:
    """How many inputs of each maximum are proved right, the caps (as in `accuracy_bounds`), and what it took."""

    proved: Int[Tensor, " maximum"]
    cap: Float[Tensor, "case maximum"]
    inputs: int
    comparisons: int


def _brute_force(tables: MaxTables, task: MaxOfK, progress: Callable[[int], None] | None) -> Proof:
    """Σ_p exp(score_p) · (direct + value_p + scale · bias)[m|w] > 0 for every input and every other output w."""
    outputs, positions = tables.bias.value.shape[0], torch.arange(task.k)
    proved = torch.zeros(task.vocab, dtype=torch.long)
    for lists in _lists(task, outputs * task.k * 4):
        rows, query, maximum = torch.arange(len(lists)), lists[:, -1], lists.amax(1)
        low, high = (s[query[:, None], lists, positions] for s in (tables.score.low, tables.score.high))
        top = high.amax(1, keepdim=True)
        # The least of the normal numbers covers an exponential that underflows.
        low, high = (low - top).exp() / WIDER, (high - top).exp() * WIDER + 1e-300
        at = torch.zeros(len(lists), outputs, dtype=torch.bool)
        at[rows, maximum] = True
        least, size = _term(tables.direct.low[query], tables.direct.high[query], maximum, at)
        bias, bias_size = _term(tables.bias.low.expand(len(lists), -1), tables.bias.high, maximum, at)
        shortest, longest = (scale[:, None] for scale in tables.scale_of(lists))
        least = least + torch.where(bias > 0, shortest, longest) * bias
        size = size + longest * bias_size
        total, sizes = torch.zeros_like(least), torch.zeros_like(least)
        for p in range(task.k):
            read = lists[:, p]
            value, value_size = _term(tables.value.low[read, p], tables.value.high[read, p], maximum, at)
            lead = least + value
            total = total + torch.where(lead > 0, low[:, p, None], high[:, p, None]) * lead
            sizes = sizes + high[:, p, None] * (size + value_size)
        right = ((total > _NARROWER * sizes) | at).all(1)
        proved += torch.bincount(maximum[right], minlength=task.vocab)
        if progress is not None:
            progress(len(lists))
    inputs = task.vocab**task.k
    nothing = torch.full((2, task.vocab), torch.nan, dtype=torch.float64)
    return Proof(proved, nothing, inputs, inputs * task.k * (outputs - 1))


def _term(
    low: Float[Tensor, "list output"],
    high: Float[Tensor, "*list output"],
    maximum: Int[Tensor, " list"],
    at: Bool[Tensor, "list output"],
) -> tuple[Float[Tensor, "list output"], Float[Tensor, "list output"]]:
    """By how much the maximum leads at least, and how large the numbers are that say so; 0 against itself."""
    mine = low.gather(1, maximum[:, None])
    return (mine - high).masked_fill(at, 0.0), mine.abs() + high.abs()


@dataclass(frozen=True)
class _Leads:
    """Least leads of some maxima m over the outputs w (or, with one entry, over the best of them).

    `own[m, w, p]` is what reading m itself does.
    """

    direct: Float[Tensor, "m query w"]
    value: Float[Tensor, "m number pos w"]
    own: Float[Tensor, "m pos w"]
    ignore: Bool[Tensor, "m w"]


def _by_output(tables: MaxTables, task: MaxOfK, progress: Callable[[int], None] | None) -> Proof:
    outputs = tables.bias.value.shape[0]
    return _capped(tables, task, partial(_leads_over_each, tables, *tables.scale()), outputs)


def _leads_over_each(
    tables: MaxTables, shortest: Float[Tensor, " query"], longest: Float[Tensor, " query"], m: Int[Tensor, " m"]
) -> _Leads:
    bias = tables.bias.low[m, None] - tables.bias.high
    scale = torch.where(bias[:, None] > 0, shortest[:, None], longest[:, None])
    direct = tables.direct.low.T[m][..., None] - tables.direct.high + scale * bias[:, None]
    value = tables.value.low.permute(2, 0, 1)[m][..., None] - tables.value.high
    ignore = torch.arange(len(tables.bias.value)) == m[:, None]
    return _Leads(direct, value, value[torch.arange(len(m)), m], ignore)


def _by_lead(tables: MaxTables, task: MaxOfK, progress: Callable[[int], None] | None) -> Proof:
    bias = leads(tables.bias.low, tables.bias.high)
    shortest, longest = tables.scale()
    scale = torch.where(bias > 0, shortest[:, None], longest[:, None])
    direct = leads(tables.direct.low, tables.direct.high) + scale * bias
    value = leads(tables.value.low, tables.value.high)
    before = task.vocab * (task.k + 1) * bias.shape[0]
    return _capped(tables, task, partial(_leads_over_the_best, direct, value), 1, before)


def _leads_over_the_best(
    direct: Float[Tensor, "query output"], value: Float[Tensor, "number pos output"], m: Int[Tensor, " m"]
) -> _Leads:
    read = value.permute(2, 0, 1)[m][..., None]
    own = read[torch.arange(len(m)), m]
    return _Leads(direct.T[m][..., None], read, own, torch.zeros(len(m), 1, dtype=torch.bool))


def _capped(
    tables: MaxTables, task: MaxOfK, of: Callable[[Int[Tensor, " m"]], _Leads], width: int, before: int = 0
) -> Proof:
    """The largest caps whose inequalities hold, for some maxima at a time; `before` comparisons were made already."""
    n, k = task.vocab, task.k
    size = max(1, _ENTRIES // (n * max(k * width, n if k > 2 else 1)))
    caps = torch.cat([_caps(tables, task, of(m), m) for m in torch.arange(n).split(size)], 1)
    last, earlier = (caps[case] + 2 for case in range(2))
    with_last = torch.where(last > 0, last ** (k - 1), 0)
    without = (earlier - 1).clamp(min=0)
    proved = with_last + without * (earlier ** (k - 1) - without ** (k - 1))
    # Running minima of the direct and the value terms, and two ends for each of two cases; patterns beside them.
    checked = n * n * width * (k + 1 + 4) + n * n * (k if k == 2 else n * k * (k - 1))
    return Proof(proved, caps.double(), 0, before + checked)


def _caps(tables: MaxTables, task: MaxOfK, lead: _Leads, m: Int[Tensor, " m"]) -> Int[Tensor, "case m"]:
    """By case and maximum, the largest cap up to which all inequalities hold: −1 for none, −2 where not even alone."""
    n, k, rows = task.vocab, task.k, torch.arange(len(m))
    lowest = lead.value.cummin(1).values
    other_last = lowest[:, :, : k - 1].amin(2)
    other_earlier = lowest[:, :, k - 1] if k == 2 else lowest.amin(2)
    own_last, own_earlier = lead.own.amin(1), lead.own[:, : k - 1].amin(1)
    query_last, query_earlier = lead.direct[rows, m], lead.direct.cummin(1).values
    # The tables' own differences and leads were rounded too; the margin covers both.
    size = lead.direct.abs().amax((1, 2)) + 2 * lead.value.abs().amax((1, 2, 3))
    margin = 8 * _NARROWER * size[:, None]
    alpha_last, alpha_earlier = _least_pattern(tables, task, m)
    alone = ((query_last + own_last > margin) | lead.ignore).all(-1)
    below, ignore = torch.arange(n) < m[:, None], lead.ignore[:, None]
    last = _positive(query_last[:, None], own_last, other_last, alpha_last, margin, ignore) & below & alone[:, None]
    earlier = _positive(query_earlier, own_earlier, other_earlier, alpha_earlier, margin, ignore) & below
    # The first cap that fails ends it; a list without a number below its maximum ends with that maximum.
    counts = [held.long().cumprod(1).sum(1) - 1 for held in (last, earlier)]
    return torch.stack([torch.where(alone, counts[0], -2), counts[1]])


def _positive(
    query: Float[Tensor, "m each w"],
    own: Float[Tensor, "m w"],
    other: Float[Tensor, "m cap w"],
    alpha: Float[Tensor, "m cap"],
    margin: Float[Tensor, "m 1"],
    ignore: Bool[Tensor, "m 1 w"],
) -> Bool[Tensor, "m cap"]:
    """query + pattern · own + (1 − pattern) · other > 0 for every pattern from alpha to 1, and every w."""
    at_alpha = query + alpha[..., None] * own[:, None] + (1 - alpha[..., None]) * other
    positive = (at_alpha > margin[..., None]) & (query + own[:, None] > margin[..., None])
    return (positive | ignore).all(-1)


def _least_pattern(
    tables: MaxTables, task: MaxOfK, m: Int[Tensor, " m"]
) -> tuple[Float[Tensor, "m cap"], Float[Tensor, "m cap"]]:
    """At least how much attention all copies of m get, where m is last and where it stands before, by cap.

    One copy and the highest scores that the others may have are the worst case: each further copy takes the place of
    another number.
    """
    low, high, k = tables.score.low, tables.score.high, task.k
    highest = high[..., : k - 1].cummax(1).values
    # m is last: what the earlier positions weigh, against m's own weight.
    against = (highest[m] - low[m, m, k - 1][:, None, None]).exp().sum(-1)
    last = 1 / (1 + against * WIDER)
    own = high.diagonal(dim1=0, dim2=1)[k - 1]
    worst = torch.zeros(len(m), task.vocab, dtype=torch.float64)
    for place in range(k - 1):
        standing = low[:, m, place].T
        # The query is one of the other numbers; it is at most the cap, like the rest.
        weigh = (own - standing).exp()
        if k > 2:
            rest = [p for p in range(k - 1) if p != place]
            rises = (highest[..., rest] - standing[..., None, None]).exp().sum(-1)
            within = torch.ones(task.vocab, task.vocab, dtype=torch.bool).triu()
            weigh = (weigh[..., None] + rises).masked_fill(~within, 0).amax(1)
        else:
            weigh = weigh.cummax(1).values
        worst = worst.maximum(weigh)
    return last / WIDER, 1 / (1 + worst * WIDER) / WIDER


_PROOFS: dict[str, Callable[[MaxTables, MaxOfK, Callable[[int], None] | None], Proof]] = {
    "brute force": _brute_force,
    "by output": _by_output,
    "by lead": _by_lead,
}
