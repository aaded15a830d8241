"""Small networks for group multiplication, written down by hand."""

from __future__ import annotations

import torch
from torch import Tensor

from headwork.methods.pair_outputs import PairOutputs
from headwork.methods.representations import Irrep
from headwork.model.pair_mlp import PairMLP
from headwork.tasks.groups import Group


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def character_logits(group: Group, irreps: dict[Irrep, float]) -> Tensor:
    """[x, y, z]: the sum of weight · tr(ρ(x) ρ(y) ρ(z⁻¹)), by multiplying matrices."""
    return sum(
        (
            weight * torch.einsum("xij,yjk,zki->xyz", i.matrices, i.matrices, i.matrices[group.inverses])
            for i, weight in irreps.items()
        ),
        torch.zeros(group.order, group.order, group.order, dtype=torch.float64),
    )


def point_network(group: Group, seed: int = 0) -> PairMLP:
    """A network of coset neurons for the permutations of n points, right on all pairs.

    For points i and k and some values v, which sum to 0: ReLU(v[x(i)] − v[y⁻¹(k)]) speaks against z(i) = k; it is 0
    where x · y sends i to k.
    """
    assert group.arrays is not None
    n = group.parameter
    arrays, back = group.arrays, group.arrays[group.inverses]
    left, right, outward = [], [], []
    for i in range(n):
        for k in range(n):
            values = drawn(n, seed=seed + i * n + k)
            values = values - values.mean()
            for sign in (1, -1):
                left.append(sign * values[arrays[:, i]])
                right.append(-sign * values[back[:, k]])
                outward.append(-(arrays[:, i] == k).double())
    return mlp(torch.stack(left, 1), torch.stack(right, 1), torch.stack(outward))


def mlp(left: Tensor, right: Tensor, outward: Tensor) -> PairMLP:
    """The network whose neurons have these halves."""
    elements, neurons = left.shape
    module = PairMLP(elements, neurons, neurons).double()
    eye = torch.eye(neurons, dtype=torch.float64)
    module.read(left, right, torch.cat([eye, eye]), outward)
    return module


def of_halves(group: Group, left: Tensor, right: Tensor, outward: Tensor) -> PairOutputs:
    hidden = (left[:, None] + right[None]).relu()
    return PairOutputs(group, hidden @ outward, hidden, outward, {"left": left, "right": right})
