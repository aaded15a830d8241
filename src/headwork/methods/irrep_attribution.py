"""Which irreducible representations a network's logits and embeddings are made of (Chughtai et al. 2023).

If a network computes tr(ρ(x) ρ(y) ρ(z⁻¹)) = χ(x y z⁻¹) for the answer z, its logits, centred over z, lie along these
functions of the triple. Functions of different ρ are orthogonal, so the squared cosines (`trace_similarity`) add up to
the share of the logits' variance that they explain. All of it follows from one sum for each element g: that of the
centred logits over the triples with x y z⁻¹ = g.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from headwork.errors import UserError, unknown
from headwork.methods.representations import Irrep, irreps
from headwork.tasks.groups import Group

if TYPE_CHECKING:
    import xarray


def element_of(group: Group) -> Int[Tensor, "x y z"]:
    """The number of x · y · z⁻¹ for every triple."""
    return group.table[group.table[:, :, None], group.inverses]


def key_irreps(logits: Float[Tensor, "x y z"], group: Group, *, draws: int = 50, seed: int = 0) -> xarray.Dataset:
    """The trace similarity of the logits with every irreducible representation but the trivial one, and which are key.

    Dim `irrep`:

    - `trace_similarity`: the cosine between the logits, centred over z, and χ(x y z⁻¹), over all triples; from −1 to 1;
    - `explained`: its square, the share of the centred logits' variance; the sum over irreps is theirs together;
    - `key`: whether the similarity is above `null`. No irrep is named in advance;
    - `degree`: d.

    Attributes: `null`, the largest similarity with any irrep in `draws` networks that are this one with its elements
    relabelled at random, for x, y and z independently: p = 1/(`draws` + 1), the choice among all irreps included. The
    null's standard deviation for one irrep is at most (|G| − 1)^(−3/2), `null_sd_bound`. `explained_by_key` and
    `explained_by_all`: summed shares. Raises `UserError` for logits of another shape or that do not vary with z.
    """
    if draws < 1:
        raise UserError(f"draws = {draws}; the null needs at least 1.")
    centred, found = _centred(logits, group), irreps(group)[1:]
    characters = _characters(found)
    characters = characters / (group.order * characters.norm(dim=1, keepdim=True) * centred.norm())
    element = element_of(group).flatten().numpy()
    similarity = characters @ _summed(centred, element, group.order)
    generator = torch.Generator().manual_seed(seed)
    null = 0.0
    for _ in range(draws):
        x, y, z = (torch.randperm(group.order, generator=generator) for _ in range(3))
        turned = centred[x[:, None, None], y[None, :, None], z]
        null = max(null, float((characters @ _summed(turned, element, group.order)).max()))
    import xarray

    key = similarity > null
    return xarray.Dataset(
        {
            "trace_similarity": ("irrep", similarity.numpy()),
            "explained": ("irrep", similarity.square().numpy()),
            "key": ("irrep", key.numpy()),
            "degree": ("irrep", np.array([irrep.degree for irrep in found], dtype=int)),
        },
        coords={"irrep": [irrep.name for irrep in found]},
        attrs={
            "null": null,
            "null_sd_bound": float(max(group.order - 1, 1)) ** -1.5,
            "draws": draws,
            "seed": seed,
            "explained_by_key": float(similarity[key].square().sum()),
            "explained_by_all": float(similarity.square().sum()),
        },
    )


def embedding_shares(
    embeddings: Mapping[str, Float[Tensor, "element feature"]], group: Group, *, draws: int = 200, seed: int = 0
) -> xarray.Dataset:
    """The share of each embedding's squared size in each irrep's isotypic subspace, and that of a random embedding.

    Dims `embedding`, `irrep` (the trivial one among them):

    - `share`: from 0 to 1, summing to 1 over irreps; an embedding that is zero has NaN;
    - `chance`: d²/(⟨χ, χ⟩ |G|), a random embedding's mean;
    - `above`: whether the share is above that of each of `draws` Gaussian embeddings of this shape, in which the most
      over-represented irrep, relative to chance, sets the bar for all.

    Large representations have a large share by chance, so that one that matters may stay below. A representation whose
    logits arise in the ReLU from another's square (`squares`) need not be in the embeddings at all.
    """
    found = irreps(group)
    chance = torch.tensor([irrep.functions.shape[1] / group.order for irrep in found], dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    shares, above = [], []
    bars: dict[int, float] = {}
    for name, embedding in embeddings.items():
        if embedding.dim() != 2 or len(embedding) != group.order:
            raise UserError(
                f"The embedding {name} has shape {list(embedding.shape)}; it needs a row for each of the "
                f"{group.order} elements."
            )
        features = embedding.shape[1]
        if features not in bars:
            random = torch.randn(group.order, draws * features, generator=generator, dtype=torch.float64)
            apart = torch.stack([_energy(random, irrep).reshape(draws, features).sum(1) for irrep in found], 1)
            bars[features] = float((apart / apart.sum(1, keepdim=True) / chance).max())
        energy = torch.stack([_energy(embedding.double(), irrep).sum() for irrep in found])
        share = energy / energy.sum()
        shares.append(share.numpy())
        above.append((share > bars[features] * chance).numpy())
    import xarray

    return xarray.Dataset(
        {
            "share": (("embedding", "irrep"), np.stack(shares)),
            "above": (("embedding", "irrep"), np.stack(above)),
            "chance": ("irrep", chance.numpy()),
        },
        coords={"embedding": list(embeddings), "irrep": [irrep.name for irrep in found]},
        attrs={"draws": draws, "seed": seed},
    )


def squares(group: Group) -> xarray.DataArray:
    """How often σ occurs in ρ ⊗ ρ, as ⟨χ_ρ², χ_σ⟩/⟨χ_σ, χ_σ⟩. Dims `of` (ρ), `contains` (σ).

    A ReLU of functions in ρ's subspace makes functions in these; for cyclic groups, the frequency 2k from k.
    """
    import xarray

    found = irreps(group)
    characters = _characters(found)
    norms = torch.tensor([irrep.norm for irrep in found], dtype=torch.float64)
    times = (characters.square() @ characters.T / group.order / norms).round().long()
    names = [irrep.name for irrep in found]
    return xarray.DataArray(times.numpy(), dims=("of", "contains"), coords={"of": names, "contains": names})


def composed_sums(logits: Float[Tensor, "x y z"], group: Group) -> tuple[Float[Tensor, " element"], float]:
    """For each element g the sum of the logits, centred over z, over all triples with x y z⁻¹ = g; and their size.

    The size is the sum of squares of the centred logits. A unit vector f of functions on the group explains
    (f · sums)²/(|G|² size) of it.
    """
    centred = _centred(logits, group)
    return _summed(centred, element_of(group).flatten().numpy(), group.order), float(centred.square().sum())


def restricted_and_excluded(
    logits: Float[Tensor, "x y z"],
    group: Group,
    names: Collection[str],
    *,
    pairs: Int[Tensor, " pair"] | None = None,
) -> dict[str, float]:
    """Cross-entropy (nats) with the logits' part along these irreps' characters alone, and without it.

    `restricted` over all pairs, `excluded` over `pairs` (numbers x · |G| + y, such as those trained on), or over all;
    `full` over all as they are, and `uniform` = log |G| beside it. Raises `UserError` for unknown irreps.
    """
    chosen = _named(group, names)
    centred = _centred(logits, group)
    kept = _along(centred, chosen, group)
    return _losses(centred, kept, group, pairs)


def restricted_and_excluded_neurons(
    hidden: Float[Tensor, "x y neuron"],
    outward: Float[Tensor, "neuron z"],
    group: Group,
    names: Collection[str],
    *,
    pairs: Int[Tensor, " pair"] | None = None,
) -> dict[str, float]:
    """As `restricted_and_excluded`, but in the neurons: their part in the span of the matrix entries of ρ(x · y).

    This is the loss of the paper's tables. Only what neurons add to the logits counts, without biases and what
    bypasses the MLP. `explained`: the share of the neurons' variance over pairs in that span.
    """
    chosen = _named(group, names)
    n = group.order
    products = group.table.flatten()
    means = torch.zeros(n, hidden.shape[-1], dtype=torch.float64).index_add_(0, products, hidden.double().flatten(0, 1))
    means = means / n
    part = sum((irrep.functions @ (irrep.functions.T @ means) for irrep in chosen), torch.zeros_like(means))
    kept = (part @ outward.double())[group.table]
    whole = hidden.double() @ outward.double()
    away = hidden.double() - hidden.double().mean((0, 1))
    explained = float(n * part.square().sum() / away.square().sum())
    return {**_losses(whole, kept, group, pairs), "explained": explained}


# --- Shared ----------------------------------------------------------------------------------------------------------


def _characters(found: Sequence[Irrep]) -> Float[Tensor, "irrep element"]:
    return torch.stack([irrep.character for irrep in found])


def _energy(embedding: Float[Tensor, "element feature"], irrep: Irrep) -> Float[Tensor, " feature"]:
    return (irrep.functions.T @ embedding).square().sum(0)


def _named(group: Group, names: Collection[str]) -> list[Irrep]:
    known = {irrep.name: irrep for irrep in irreps(group)}
    for name in names:
        if name not in known:
            raise unknown(f"irreducible representation of the {group.name} group:", name, known)
    return [known[name] for name in dict.fromkeys(names)]


def _centred(logits: Tensor, group: Group) -> Float[Tensor, "x y z"]:
    n = group.order
    if logits.shape != (n, n, n):
        raise UserError(
            f"The logits have shape {list(logits.shape)}; for the {group.name} group of {n} elements they must be "
            f"[{n}, {n}, {n}]."
        )
    if not bool(logits.isfinite().all()):
        raise UserError("The logits are not all finite, so nothing can be said of their variance.")
    wide = logits.double()
    centred = wide - wide.mean(2, keepdim=True)
    if float(centred.norm()) <= 1e-12 * float(wide.norm()):
        raise UserError("The logits are the same for all answers, so there is no variance to explain.")
    return centred


def _summed(centred: Tensor, element: np.ndarray, order: int) -> Float[Tensor, " element"]:
    """For each element the sum of the logits over the triples x · y · z⁻¹ that give it."""
    return torch.from_numpy(np.bincount(element, weights=centred.flatten().numpy(), minlength=order))


def _along(centred: Tensor, chosen: Sequence[Irrep], group: Group) -> Float[Tensor, "x y z"]:
    element = element_of(group)
    sums = _summed(centred, element.flatten().numpy(), group.order)
    values = torch.zeros(group.order, dtype=torch.float64)
    for irrep in chosen:
        values += (irrep.character @ sums) / (group.order**2 * irrep.character.square().sum()) * irrep.character
    return values[element]


def _losses(whole: Tensor, kept: Tensor, group: Group, pairs: Tensor | None) -> dict[str, float]:
    labels = group.table.flatten()
    chosen = slice(None) if pairs is None else pairs
    whole, kept = whole.flatten(0, 1), kept.flatten(0, 1)
    return {
        "full": cross_entropy(whole, labels).item(),
        "restricted": cross_entropy(kept, labels).item(),
        "excluded": cross_entropy((whole - kept)[chosen], labels[chosen]).item(),
        "uniform": float(np.log(group.order)),
    }
