"""The clock and the pizza: two ways to add on a circle, and what each makes of the logits (Zhong et al. 2023).

With w = 2πk/p, both give logits of cos(w(a + b − c)). The clock multiplies two rotations, and its amplitude is the same
for all pairs. The pizza adds the two embeddings, and its amplitude is |cos(w(a − b)/2)|, which vanishes where the two
numbers stand opposite each other on the circle.

Several circles together make up for each other's weak pairs, so that the whole network's amplitude can be nearly that
of a clock although each of its circles is a pizza. `circle_patterns` therefore looks at one circle at a time: the
numbers' embeddings are cut down to their mean and one frequency, and the network is run again on all pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from headwork.engine.edits import replace
from headwork.engine.run import run
from headwork.errors import UserError
from headwork.methods.fourier import fourier_basis, frequency_of_row
from headwork.methods.key_frequencies import checked_keys, without_means
from headwork.methods.number_pairs import (
    PAIRS_AT_ONCE,
    Table,
    adding_pairs,
    addition_of,
    checked_table,
    distances,
    right_answers,
)
from headwork.model.transformer import Transformer
from headwork.tasks.modular_addition import ModularAddition

if TYPE_CHECKING:
    import xarray

Pairs = Float[Tensor, "first second"]


def logit_patterns(
    logits: Float[Tensor, "first second answer"], frequencies: Sequence[int], *, shifted: bool = False
) -> xarray.Dataset:
    """How much of the logits the clock's and the pizza's pattern explain at each of these frequencies.

    Variance is that of the logits less their mean over the answers and less each answer's mean over all pairs. The two
    numbers of a network with a vocabulary for each stand on circles of their own, turned against each other: with
    `shifted` the pizza is |cos(w(a − b − d)/2)|, with the one of the 2p shifts d = 0, ½, 1 … that explains most. Dims
    `frequency`, `distance` ((a − b) mod p):

    - `amplitude` [frequency, distance]: that of cos(w(a + b − c)), mean over the pairs of that distance, in logits;
    - `deviation` [frequency]: its standard deviation over all pairs, and `by_distance` the share of its variance over
      all pairs that lies between distances;
    - `clock`, `pizza` [frequency]: share of variance that cos(w(a + b − c)) explains, or that times |cos(w(a − b)/2)|;
      `both`: the two fitted together. Shares of different frequencies add up; those of the two patterns do not, since
      over all distances one explains nearly 8/π² = 0.81 of the other;
    - `constant`, `slope` [frequency]: that fit, amplitude ≈ constant + slope · |cos(w(a − b)/2)|, in logits;
    - `pizza_part` [frequency]: slope · mean |cos| ÷ (constant + slope · mean |cos|): 0 for a clock, 1 for a pizza; less
      or more where the amplitude varies against the pizza's pattern, or more than it;
    - `accompanying` [frequency]: share of variance that cos(v(a − b)) · cos(v(a + b − c)) explains, where v is half the
      frequency (2v ≡ ±w modulo 2π): what a circle makes whose points stand opposite each other at half the distance.
      NaN where p is even and the frequency odd;
    - `shift` [frequency]: the d above, 0 without `shifted`.

    Raises `UserError` for other shapes than [p, p, p], logits that are the same for all pairs, frequencies that do not
    exist.
    """
    values = without_means(checked_table(logits))
    p, total = len(values), values.square().sum()
    keys = checked_keys(frequencies, p).tolist()
    if not total > 0:
        raise UserError("The logits are the same for all pairs, so no pattern explains any of them.")
    answers = torch.fft.rfft(values, dim=2)
    amplitudes = {k: _amplitude(answers, k) for k in (*keys, *(_half(k, p) for k in keys)) if k}
    rows = [_row(amplitudes, k, total, shifted) for k in keys]
    import xarray

    numbers = {name: [row[name] for row in rows] for name in rows[0]}
    over = torch.stack([_mean_by_distance(amplitudes[k]) for k in keys])
    return xarray.Dataset(
        {
            "amplitude": (("frequency", "distance"), over.numpy(), {"units": "logit"}),
            **{name: ("frequency", row, {"units": _UNITS[name]}) for name, row in numbers.items()},
        },
        coords={"frequency": keys},
        attrs={"method": "logit patterns of the clock and the pizza", "modulus": p, "shifted": int(shifted)},
    )


_SHARE = "share of variance"
_UNITS = {
    "deviation": "logit",
    "by_distance": _SHARE,
    "clock": _SHARE,
    "pizza": _SHARE,
    "both": _SHARE,
    "constant": "logit",
    "slope": "logit",
    "pizza_part": "share",
    "accompanying": _SHARE,
    "shift": "numbers",
}


def circle_patterns(
    model: Transformer, frequencies: Sequence[int], *, task: ModularAddition | None = None
) -> xarray.Dataset:
    """`logit_patterns` of one circle at a time: each frequency's own, from the network that has only that circle.

    The shares are of the variance of what that circle alone makes of the logits; `accuracy` [frequency] is that of the
    network with one circle. Where each number has a vocabulary of its own, patterns are fitted `shifted`. Raises
    `UserError` for a network that does not add, and frequencies that do not exist.
    """
    task = addition_of(model, task)
    p = task.modulus
    found = []
    for k in checked_keys(frequencies, p).tolist():
        logits = circle_logits(model, k, task=task)
        one = logit_patterns(logits, [k], shifted=task.second > 0)
        right = (logits.argmax(-1) == right_answers(p)).double().mean().item()
        found.append(one.assign(accuracy=("frequency", [right], {"units": "share of pairs"})))
    import xarray

    joined = xarray.concat(found, "frequency")
    return joined.assign_attrs(method="logit patterns of single circles")


def circle_logits(model: Transformer, frequency: int, *, task: ModularAddition | None = None) -> Table:
    """The logits for all pairs where the numbers' embeddings keep only their mean and this frequency's two waves."""
    task = addition_of(model, task)
    p = task.modulus
    rows = torch.isin(frequency_of_row(p), torch.cat([torch.tensor([0]), checked_keys([frequency], p)]))
    waves = fourier_basis(p)[rows]
    table = model.W_E.detach().clone()
    for start in {0, task.second}:
        values = table[start : start + p].double().cpu()
        table[start : start + p] = (waves.T @ (waves @ values)).to(table)
    examples, found = task.of(adding_pairs(task)), []
    for tokens in examples.tokens.split(PAIRS_AT_ONCE):
        kept = run(model, tokens, edits=replace("embed", table[tokens.to(table.device)]))
        found.append(kept.logits[:, examples.read[0], :p].cpu())
    return checked_table(torch.cat(found).unflatten(0, (p, p)))


def _half(k: int, p: int) -> int:
    """The frequency of half this angle, 0 where there is none."""
    if k % 2 == 0:
        return k // 2
    return (p - k) // 2 if p % 2 else 0


def _amplitude(answers: Tensor, k: int) -> Pairs:
    """Of cos(w(a + b − c)), for every pair; `answers` is the logits' Fourier transform over the answers."""
    p = len(answers)
    turn = 2 * math.pi * ((k * right_answers(p)) % p).double() / p
    return (answers[:, :, k] * torch.polar(torch.ones_like(turn), turn)).real / _wave(k, p)


def _wave(k: int, p: int) -> float:
    """Σ over c of cos²(w(s − c)), for whole s."""
    return p if 2 * k == p else p / 2


def _mean_by_distance(amplitude: Pairs) -> Float[Tensor, " distance"]:
    p = len(amplitude)
    apart = distances(p).flatten()
    return amplitude.new_zeros(p).index_add(0, apart, amplitude.flatten()) / p


def _row(amplitudes: dict[int, Pairs], k: int, total: Float[Tensor, ""], shifted: bool) -> dict[str, float]:
    """Every number of one frequency."""
    amplitude = amplitudes[k]
    p, apart = len(amplitude), distances(len(amplitude)).double()
    scale = _wave(k, p) / total
    shifts = torch.arange(2 * p) / 2 if shifted else torch.zeros(1)
    pizzas = (math.pi * k * (apart - shifts.double()[:, None, None]) / p).cos().abs()
    best = int(((pizzas * amplitude).sum((1, 2)).square() / pizzas.square().sum((1, 2))).argmax())
    pizza = pizzas[best].flatten()
    patterns = torch.stack([torch.ones_like(pizza), pizza], 1)
    fit = torch.linalg.lstsq(patterns, amplitude.flatten()[:, None]).solution[:, 0]
    bent, variance = fit[1] * pizza.mean(), amplitude.var(correction=0)
    return {
        "deviation": variance.sqrt().item(),
        "by_distance": (_mean_by_distance(amplitude).var(correction=0) / variance).item(),
        "clock": (_along(amplitude, torch.ones_like(amplitude)) * scale).item(),
        "pizza": (_along(amplitude, pizzas[best]) * scale).item(),
        "both": ((patterns @ fit).square().sum() * scale).item(),
        "constant": fit[0].item(),
        "slope": fit[1].item(),
        "pizza_part": (bent / (fit[0] + bent)).item(),
        "accompanying": _accompanying(amplitudes, _half(k, p), total),
        "shift": shifts[best].item(),
    }


def _accompanying(amplitudes: dict[int, Pairs], half: int, total: Float[Tensor, ""]) -> float:
    """Share of variance of cos(v(a − b)) · cos(v(a + b − c)), v being of the frequency `half`."""
    if not half:
        return math.nan
    amplitude = amplitudes[half]
    p = len(amplitude)
    pattern = (2 * math.pi * ((half * distances(p)) % p).double() / p).cos()
    return (_along(amplitude, pattern) * _wave(half, p) / total).item()


def _along(amplitude: Pairs, pattern: Pairs) -> Float[Tensor, ""]:
    """Σ of squares of what the pattern makes of the amplitude."""
    return (amplitude * pattern).sum().square() / pattern.square().sum()
