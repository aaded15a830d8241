"""Two numbers that tell the clock from the pizza (Zhong et al. 2023).

- *Gradient symmetricity*: mean cosine of the gradients of a logit with respect to the embeddings of a and of b. A
  network that adds the two embeddings before anything else has 1.
- *Distance irrelevance*: mean over a − b of the right logit's standard deviation over a + b, ÷ its whole standard
  deviation. A network whose right logit depends on the sum alone has 1, one where it depends on the distance alone 0.

Zhong et al. take the cosine over 100 triples of a, b and a logit c, right or not. Which 100 matters: on their Model A
those drawn here as `published_triples` give 0.334, which is the paper's number, and all 205,379 triples give 0.346.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headwork.engine.run import run
from headwork.errors import UserError
from headwork.methods.number_pairs import PAIRS_AT_ONCE, addition_of, checked_table, distances, right_answers
from headwork.model.transformer import Transformer
from headwork.tasks.modular_addition import ModularAddition

if TYPE_CHECKING:
    import xarray

Triples = Int[Tensor, "triple 3"]
Cosines = Float[Tensor, " triple"]


def published_triples(p: int, count: int = 100, seed: int = 42) -> Triples:
    """The a, b and c of Zhong et al.: the first of all triples in order, shuffled by Python's `random` with this seed.

    All of them where there are no more than `count`. Raises `UserError` for a count below 1.
    """
    if count < 1:
        raise UserError(f"count = {count}; at least 1 triple is needed.")
    places = list(range(p**3))  # of the triples in order: a shuffle looks at places, not at what stands there
    random.Random(seed).shuffle(places)  # noqa: S311 – the authors' draw
    return every_triple(p)[places[:count]]


def every_triple(p: int) -> Triples:
    """All p³ triples, c running fastest."""
    return torch.cartesian_prod(*[torch.arange(p)] * 3)


def gradient_symmetricity(
    model: Transformer,
    triples: Triples | None = None,
    *,
    task: ModularAddition | None = None,
    progress: Callable[[int], None] | None = None,
) -> xarray.Dataset:
    """The cosine of a logit's gradients with respect to the embeddings of the two numbers, before positions are added.

    `triples` are a, b and the logit's c (None: `published_triples`). Where the network was trained to subtract, b
    counts as −b, as everywhere here. `progress` is called with the number of triples done. Dim `triple`, with `first`,
    `second` and `answer` as coordinates:

    - `cosine` [triple], from −1 to 1; NaN where one of the two gradients is zero;
    - `symmetricity` []: its mean over the triples that have one.

    Raises `UserError` for a network that does not add, for numbers that do not exist, and where no triple has a cosine.
    """
    task = addition_of(model, task)
    p = task.modulus
    triples = published_triples(p) if triples is None else triples
    if triples.dim() != 2 or triples.shape[1] != 3 or not len(triples):
        raise UserError(f"The triples have shape {list(triples.shape)}; needed is [triples, 3].")
    if triples.min() < 0 or triples.max() >= p:
        wrong = triples[((triples < 0) | (triples >= p)).any(1)][0].tolist()
        raise UserError(f"The triple {wrong} holds a number outside 0–{p - 1}.")
    found = []
    for part in triples.split(PAIRS_AT_ONCE):
        found.append(_cosines(model, task, part))
        if progress is not None:
            progress(len(part))
    cosine = torch.cat(found)
    if cosine.isnan().all():
        raise UserError("No logit has a gradient with respect to both numbers, so the network does not read them both.")
    import xarray

    names = ("first", "second", "answer")
    return xarray.Dataset(
        {
            "cosine": ("triple", cosine.numpy(), {"units": "cosine"}),
            "symmetricity": ((), cosine.nanmean().item(), {"units": "cosine"}),
        },
        coords={name: ("triple", numbers.numpy()) for name, numbers in zip(names, triples.T)},
        attrs={"method": "gradient symmetricity", "modulus": p},
    )


def _cosines(model: Transformer, task: ModularAddition, triples: Triples) -> Cosines:
    a, b, c = triples.T
    examples = task.of(torch.stack([a, -b % task.modulus if task.subtract else b], 1))
    kept = run(model, examples.tokens, ["embed"], grad=True)
    logits, embed = kept.logits[:, examples.read[0]], kept["embed"]
    # The examples do not meet, so that the gradient of the sum holds each one's own.
    (gradient,) = torch.autograd.grad(logits.gather(1, c.to(logits.device)[:, None]).sum(), embed)
    first, second = gradient[:, 0].double().cpu(), gradient[:, 1].double().cpu()
    return (first * second).sum(1) / (first.norm(dim=1) * second.norm(dim=1))


def distance_irrelevance(logits: Float[Tensor, "first second answer"]) -> xarray.Dataset:
    """How little the right answer's logit depends on the distance a − b.

    Dims `sum` ((a + b) mod p) and `distance` ((a − b) mod p); p must be odd, since otherwise the two do not determine a
    and b:

    - `right` [sum, distance]: the right answer's logit;
    - `deviation` [distance]: its standard deviation over the sums;
    - `irrelevance` []: mean of `deviation` ÷ the standard deviation of all `right`; a logit that depends on the sum
      alone gives 1, one that depends on the distance alone 0.

    Raises `UserError` for other shapes than [p, p, p], an even p, and a right logit that is the same for all pairs.
    """
    values = checked_table(logits).double()
    p = len(values)
    if p % 2 == 0:
        raise UserError(f"The modulus is {p}; distance irrelevance needs an odd one.")
    sums, apart = right_answers(p), distances(p)
    right = values.new_zeros(p, p)
    right[sums, apart] = values.gather(2, sums[..., None])[..., 0]
    if right.min() == right.max():
        raise UserError("The right answer's logit is the same for all pairs, so nothing of it depends on the distance.")
    deviation = right.std(0, correction=0)
    import xarray

    return xarray.Dataset(
        {
            "right": (("sum", "distance"), right.numpy(), {"units": "logit"}),
            "deviation": ("distance", deviation.numpy(), {"units": "logit"}),
            "irrelevance": ((), (deviation.mean() / right.std(correction=0)).item(), {"units": "ratio"}),
        },
        attrs={"method": "distance irrelevance", "modulus": p},
    )
