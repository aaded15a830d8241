"""The key frequencies of a network for modular addition, found by a rule (Nanda et al. 2023; the rule is ours).

**Rule.** A frequency is key where the share of variance that it explains is larger than the largest share that any
frequency explains once the numbers have been renamed at random, in any of `draws` renamings. Renaming (one permutation
of 0 … p − 1, the same for a and b) keeps norms, ranks, outputs and symmetries, and destroys only what the network knows
about arithmetic. A network that knows nothing about it is as good as renamed already, so the rule finds any frequency
in it with probability at most 1/(draws + 1).

The rule is applied to the embedding (variance over the numbers) and to the logits (variance over all pairs, of what is
along cos(w(a + b)) and sin(w(a + b)), whatever the output), w = 2πk/p. The logits decide which frequencies the answer
uses; an embedding may hold others. The rule is careful: a renamed circle also lies along single waves by chance, the
more so the fewer numbers there are, so that a weak circle beside strong ones may be passed over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headwork.errors import UserError
from headwork.methods.fourier import centred, highest_frequency, spectrum, sum_power, sum_waves, times_counted
from headwork.methods.number_pairs import addition_of, checked_table, renamed
from headwork.model.transformer import Transformer
from headwork.tasks.modular_addition import ModularAddition

if TYPE_CHECKING:
    import xarray


def embedding_frequencies(
    model: Transformer, task: ModularAddition | None = None, *, draws: int = 200, seed: int = 0
) -> xarray.Dataset:
    """The Fourier spectrum of the embedding over the numbers, for each vocabulary: `first`, and `second` if it differs.

    Dims `vocabulary`, `frequency` (1 … ⌊p/2⌋):

    - `norm`: √ of the sum of squares of the embedding along the frequency's two waves, in the embedding's units;
    - `share`: its square ÷ that of the whole embedding less its mean over the numbers;
    - `null_largest` [vocabulary]: the largest share in any renaming; `key`: whether the share is larger.

    Raises `UserError` for a network that does not add, and where the embedding is the same for all numbers.
    """
    task = addition_of(model, task)
    p = task.modulus
    check_draws(draws)
    generator = torch.Generator().manual_seed(seed)
    names, found = ["first", "second"] if task.second else ["first"], []
    for start in (0, task.second)[: len(names)]:
        values = model.W_E.detach()[start : start + p].double().cpu()
        found.append(_of_embedding(values - values.mean(0), draws, generator))
    power, share, largest = (torch.stack(each) for each in zip(*found))
    import xarray

    dims = ("vocabulary", "frequency")
    return xarray.Dataset(
        {
            "norm": (dims, power.sqrt().numpy(), {"units": "embedding"}),
            "share": (dims, share.numpy(), {"units": "share of variance"}),
            "key": (dims, (share > largest[:, None]).numpy()),
            "null_largest": ("vocabulary", largest.numpy(), {"units": "share of variance"}),
        },
        coords={"vocabulary": names, "frequency": range(1, highest_frequency(p) + 1)},
        attrs={"method": "Fourier spectrum of the embedding", "modulus": p, "draws": draws, "seed": seed},
    )


def _of_embedding(
    values: Float[Tensor, "p d_model"], draws: int, generator: torch.Generator
) -> tuple[Float[Tensor, " frequency"], Float[Tensor, " frequency"], Float[Tensor, ""]]:
    """Power and share of each frequency, and the largest share of any renaming."""
    total = values.square().sum()
    if not total > 0:
        raise UserError("The embedding is the same for all numbers, so it has no frequencies.")
    power = spectrum(values)[1:]
    null = [spectrum(values[torch.randperm(len(values), generator=generator)])[1:].max() for _ in range(draws)]
    return power, power / total, torch.stack(null).max() / total


def logit_frequencies(
    logits: Float[Tensor, "first second answer"], *, draws: int = 100, seed: int = 0
) -> xarray.Dataset:
    """What each frequency carries of the logits over all pairs.

    Variance is that of the logits less their mean over the answers, which no softmax sees, and less each answer's mean
    over all pairs. Dim `frequency` (1 … ⌊p/2⌋), all shares of that variance:

    - `share`: along cos(w(a + b)) and sin(w(a + b)), any answers;
    - `wave_share`: along cos(w(a + b − c)) alone, c the answer: what the Fourier multiplication algorithm gives;
    - `null_largest` []: the largest `share` in any renaming; `key`: whether `share` is larger;
    - `explained` []: the sum of `wave_share` over the key frequencies.

    Raises `UserError` for other shapes than [p, p, p] and where the logits are the same for all pairs.
    """
    check_draws(draws)
    values = without_means(checked_table(logits))
    p, total = len(values), values.square().sum()
    if not total > 0:
        raise UserError("The logits are the same for all pairs, so they have no frequencies.")
    share = sum_power(values)[1:] / total
    wave = _wave_power(values)[1:] / total
    generator = torch.Generator().manual_seed(seed)
    largest = torch.stack([sum_power(renamed(values, generator))[1:].max() for _ in range(draws)]).max() / total
    key = share > largest
    import xarray

    units = {"units": "share of variance"}
    return xarray.Dataset(
        {
            "share": ("frequency", share.numpy(), units),
            "wave_share": ("frequency", wave.numpy(), units),
            "key": ("frequency", key.numpy()),
            "null_largest": ((), largest.item(), units),
            "explained": ((), wave[key].sum().item(), units),
        },
        coords={"frequency": range(1, highest_frequency(p) + 1)},
        attrs={"method": "Fourier spectrum of the logits", "modulus": p, "draws": draws, "seed": seed},
    )


def keys_of(found: xarray.Dataset) -> list[int]:
    """The key frequencies of `logit_frequencies`, the one of the largest share first."""
    chosen = found["share"].where(found["key"], drop=True)
    return [int(k) for k in chosen["frequency"].values[(-chosen.values).argsort(kind="stable")]]


def without_means(logits: Float[Tensor, "first second answer"]) -> Float[Tensor, "first second answer"]:
    """The logits in float64 less their mean over the answers, and less each answer's mean over the pairs."""
    values = logits.double()
    return centred(values - values.mean(-1, keepdim=True))


def _wave_power(values: Float[Tensor, "first second answer"]) -> Float[Tensor, " frequency"]:
    """Σ of squares of what cos(w(a + b − c)) makes of the logits, for each frequency from 0 on."""
    p = len(values)
    # Σ over a, b and c of L exp(−iw(a + b − c)): the wave over a + b, read along c the other way round.
    waves = sum_waves(values)
    k, c = torch.arange(len(waves))[:, None], torch.arange(p)
    turned = torch.polar(torch.ones_like(k * c, dtype=torch.float64), 2 * torch.pi * ((k * c) % p).double() / p)
    return times_counted(p) * (waves * turned).sum(1).real.square() / p**3


def check_draws(draws: int) -> None:
    """Raise `UserError` where there are no draws."""
    if draws < 1:
        raise UserError(f"draws = {draws}; a null needs at least 1.")


def checked_keys(frequencies: Sequence[int], p: int) -> Int[Tensor, " key"]:
    """Frequencies as a tensor. Raises `UserError` for none, for repeated ones and for those that p does not have."""
    for k in frequencies:
        if isinstance(k, bool) or not 1 <= k <= p // 2:
            raise UserError(f"Frequency {k} does not exist modulo {p}; there are 1–{p // 2}.")
    if not frequencies or len(set(frequencies)) < len(frequencies):
        raise UserError(f"The key frequencies are {list(frequencies)}; at least one is needed, and each once.")
    return torch.tensor(list(frequencies))
