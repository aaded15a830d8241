"""Two accounts of a group network fitted side by side: representations (Chughtai et al.) and cosets (Stander et al.).

Both are fitted to the neurons' halves l(x) and r(y), put into ReLU(l(x) + r(y)), and read through the network's own
unembedding, so that they differ in nothing else. A third, the characters of irreps, knows only the logits; there its
rival is the permutation character of a coset, z ↦ how many of H's cosets the element fixes. Those of K subgroups and
the characters of K irreps often span the same functions, so that the logits alone cannot tell the accounts apart.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from headwork.errors import UserError
from headwork.methods.cosets import Values, shares, shuffled, turn
from headwork.methods.irrep_attribution import composed_sums
from headwork.methods.pair_outputs import PairOutputs
from headwork.methods.representations import irreps
from headwork.methods.subgroups import Side, Subgroups, averaged, double_coset_numbers, subgroups
from headwork.tasks.groups import Group

if TYPE_CHECKING:
    import xarray

Assigned = list[tuple[Subgroups, Tensor]]
"""Subgroups with the numbers of their neurons."""
_MOST_SUBSETS = 20_000


def fitted_accounts(outputs: PairOutputs, neurons: xarray.Dataset, *, draws: int = 5, seed: int = 0) -> xarray.Dataset:
    """What is left of the network when each account keeps of its neurons only what it speaks of.

    `neurons` is what `coset_neurons` found for `outputs`; those without an assigned subgroup are left out of the coset
    accounts, and stay in the others. Dim `account`:

    - `network`: as it is, with all |G| values on both sides of each neuron;
    - `cosets`: l and r are replaced by their means over the cosets of the assigned subgroup's best conjugates: index
      numbers on each side, and a choice among conjugates;
    - `cosets and unembedding`: and what the neuron adds to z by its mean over the double cosets H·z·K;
    - `irrep`: l and r are replaced by their means and parts in the irrep that has most of both: 1 + d² numbers a side;
    - `irrep of rank 1`: and A in tr(A ρ(x)) by its largest singular component: 1 + (2d − 1) numbers a side;
    - `irreps, as many numbers`: of all coordinates of l and r in orthonormal matrix entries, the largest, as many as
      `cosets` has numbers: which ones these are is not counted;
    - `cosets in a turned basis`: as `cosets`, for subgroups whose vectors in every irrep are turned at random;
    - `random partitions`: as `cosets`, for partitions of the same sizes, as many as conjugates to choose from.

    The last two are nulls, of which the mean over `draws` is given. Variables: `logits_explained` (1 − squared
    distance ÷ squared size of the logits centred over z; negative where worse than nothing), `accuracy`, `loss`
    (nats), `numbers`: the parameters on the two sides, summed over neurons. The unembedding stays as it is but in
    `cosets and unembedding`. Raises `UserError` for networks without halves, such as transformers.
    """
    if outputs.outward is None or not {"left", "right"} <= outputs.embeddings.keys():
        raise UserError("Accounts are fitted to neurons that add up a part for x and one for y; this network has none.")
    left, right, group = outputs.embeddings["left"], outputs.embeddings["right"], outputs.group
    score = functools.partial(_score, outputs, outputs.outward)
    if neurons.sizes.get("neuron") != left.shape[1]:
        raise UserError(f"The table has {neurons.sizes.get('neuron')} neurons, and the network {left.shape[1]}.")
    generator = torch.Generator().manual_seed(seed)
    assigned = _assigned(neurons, group)
    count = sum(2 * subgroup.index * len(which) for subgroup, which in assigned)
    cosets = _coset_means(left, right, assigned)
    irrep, rank_one, entries, single = _irrep_parts(left, right, group)
    double = _double_means(outputs.outward, neurons, assigned)
    rows = {
        "network": (*score(left, right), left.numel() + right.numel()),
        "cosets": (*score(*cosets), count),
        "cosets and unembedding": (*_score(outputs, double, *cosets), count),
        "irrep": (*score(*irrep), entries),
        "irrep of rank 1": (*score(*rank_one), single),
        "irreps, as many numbers": (*score(*_largest(left, right, group, count)), count),
    }
    turned, drawn = [], []
    for _ in range(draws):
        a, b = turn(group, generator), turn(group, generator)
        means = _coset_means(a @ left, b @ right, assigned)
        turned.append(score(a.T @ means[0], b.T @ means[1]))
        drawn.append(score(*_coset_means(left, right, assigned, generator)))
    rows["cosets in a turned basis"] = (*np.mean(turned, 0), count)
    rows["random partitions"] = (*np.mean(drawn, 0), count)
    import xarray

    columns = list(zip(*rows.values()))
    names = ("logits_explained", "accuracy", "loss", "numbers")
    return xarray.Dataset(
        {name: ("account", np.array(column)) for name, column in zip(names, columns)},
        coords={"account": list(rows)},
        attrs={"draws": draws, "seed": seed, "neurons_assigned": sum(len(which) for _, which in assigned)},
    )


def fitted_characters(logits: Float[Tensor, "x y z"], group: Group, count: int) -> xarray.Dataset:
    """The centred logits as sums of `count` class functions of x y z⁻¹: irreps' characters or permutation characters.

    Dim `account`, `characters` and `permutation characters`; both are the best choice of `count` out of all, one number
    each, fitted by least squares. `explained`: the share of variance; `chosen` [account, place]: which they are. The
    permutation character of H counts the cosets of H that an element fixes, less its mean.
    """
    if count < 1:
        raise UserError(f"count = {count}; at least one function is needed.")
    irrep = {irrep.name: irrep.character for irrep in irreps(group)[1:]}
    coset = {subgroup.name: _permutation_character(subgroup) for subgroup in subgroups(group)}
    sums, size = composed_sums(logits, group)
    found = {}
    for account, functions in (("characters", irrep), ("permutation characters", coset)):
        if count > len(functions) or math.comb(len(functions), count) > _MOST_SUBSETS:
            raise UserError(f"count = {count}; the best of {len(functions)} {account} is sought for fewer choices.")
        found[account] = max(
            (_explained(sums, size, torch.stack([functions[name] for name in names])), names)
            for names in itertools.combinations(functions, count)
        )
    import xarray

    return xarray.Dataset(
        {
            "explained": ("account", np.array([explained for explained, _ in found.values()])),
            "chosen": (("account", "place"), np.array([names for _, names in found.values()])),
        },
        coords={"account": list(found)},
    )


def _explained(sums: Tensor, size: float, functions: Float[Tensor, "function element"]) -> float:
    left, values, _ = torch.linalg.svd(functions.T, full_matrices=False)
    basis = left[:, values > 1e-9 * values.max()]
    return float((basis.T @ sums).square().sum() / len(sums) ** 2 / size)


def _permutation_character(subgroup: Subgroups) -> Float[Tensor, " element"]:
    members, group = subgroup.members[0], subgroup.group
    inside = torch.zeros(group.order, dtype=torch.float64)
    inside[members] = 1
    everything = torch.arange(group.order)
    conjugates = group.table[group.table[group.inverses[:, None], everything], everything[:, None]]  # g⁻¹ x g
    fixed = inside[conjugates].sum(0) / len(members)
    return fixed - fixed.mean()


# --- What each account keeps -----------------------------------------------------------------------------------------


def _score(outputs: PairOutputs, outward: Float[Tensor, "neuron z"], left: Values, right: Values) -> tuple[float, ...]:
    hidden = (left[:, None] + right[None]).relu()
    logits = hidden @ outward
    labels = outputs.labels.flatten()
    away = (logits - logits.mean(2, keepdim=True)) - (outputs.logits - outputs.logits.mean(2, keepdim=True))
    whole = (outputs.logits - outputs.logits.mean(2, keepdim=True)).square().sum()
    flat = logits.flatten(0, 1)
    right_answers = (flat.argmax(1) == labels).double().mean()
    return float(1 - away.square().sum() / whole), float(right_answers), float(cross_entropy(flat, labels))


def _assigned(neurons: xarray.Dataset, group: Group) -> Assigned:
    names = neurons["assigned"].values
    return [
        (subgroup, torch.from_numpy(np.flatnonzero(names == subgroup.name)))
        for subgroup in subgroups(group)
        if (names == subgroup.name).any()
    ]


def _coset_means(
    left: Values,
    right: Values,
    assigned: Assigned,
    generator: torch.Generator | None = None,
) -> tuple[Values, Values]:
    """Each assigned neuron's means over its best conjugate's cosets; 0 for the others. With `generator`, at random."""
    kept = torch.zeros_like(left), torch.zeros_like(right)
    sides: tuple[tuple[Values, Values, Side], ...] = ((left, kept[0], "right"), (right, kept[1], "left"))
    for subgroup, which in assigned:
        for values, into, side in sides:
            numbers = subgroup.cosets(side)
            numbers = numbers if generator is None else shuffled(numbers, generator)
            best = shares(values[:, which], numbers).argmax(0)
            for conjugate in best.unique().tolist():
                here = which[best == conjugate]
                into[:, here] = averaged(values[:, here], numbers[conjugate])
    return kept


def _double_means(
    outward: Float[Tensor, "neuron z"],
    neurons: xarray.Dataset,
    assigned: Assigned,
) -> Float[Tensor, "neuron z"]:
    """What each neuron adds, as its means over double cosets of its conjugates; 0 for those without a subgroup."""
    kept = torch.zeros_like(outward)
    for subgroup, which in assigned:
        table = neurons.sel(subgroup=subgroup.name)
        for neuron in which.tolist():
            ends = (int(table[f"{side}_conjugate"][neuron]) for side in ("left", "right"))
            numbers = double_coset_numbers(subgroup.group, *(subgroup.members[end] for end in ends))
            kept[neuron] = averaged(outward[neuron, :, None], numbers)[:, 0]
    return kept


def _irrep_parts(
    left: Values, right: Values, group: Group
) -> tuple[tuple[Values, Values], tuple[Values, Values], int, int]:
    """The halves' means and parts in their main irrep, the same of rank 1, and how many numbers these have."""
    found = irreps(group)[1:]
    both = torch.stack([left, right])
    energy = torch.stack([(irrep.functions.T @ both).square().sum((0, 1)) for irrep in found])
    main = energy.argmax(0)
    whole = both.mean(1, keepdim=True).expand_as(both).clone()
    first = whole.clone()
    entries = single = 0
    for place, irrep in enumerate(found):
        which = (main == place).nonzero()[:, 0]
        d, functions = irrep.degree, irrep.functions
        entries += 2 * len(which) * (functions.shape[1] + 1)
        single += 2 * len(which) * (2 * d if irrep.norm == 1 else functions.shape[1] + 1)
        parts = functions.T @ both[:, :, which]
        whole[:, :, which] += functions @ parts
        if irrep.norm == 1:
            u, s, v = torch.linalg.svd(parts.mT.unflatten(2, (d, d)))
            parts = (u[..., :1] * s[..., None, :1] @ v[..., :1, :]).flatten(2).mT
        first[:, :, which] += functions @ parts
    return (whole[0], whole[1]), (first[0], first[1]), entries, single


def _largest(left: Values, right: Values, group: Group, count: int) -> tuple[Values, Values]:
    """The `count` largest coordinates of both halves together in orthonormal matrix entries; the others are 0."""
    basis = torch.cat([irrep.functions for irrep in irreps(group)], 1)
    parts = torch.stack([basis.T @ left, basis.T @ right])
    kept = torch.zeros(parts.numel(), dtype=parts.dtype)
    chosen = parts.abs().flatten().topk(min(count, parts.numel())).indices
    kept[chosen] = parts.flatten()[chosen]
    found = kept.reshape(parts.shape)
    return basis @ found[0], basis @ found[1]
