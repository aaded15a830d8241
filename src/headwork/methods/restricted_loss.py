"""Restricted and excluded loss: what is left of an adding network with, and without, its key frequencies.

Both are those of Nanda et al. 2023 and of their notebook. The logits over all p² pairs are split by waves in a + b.
*Restricted* keeps, for each answer, its mean over all pairs and its components along cos(w(a + b)) and sin(w(a + b)) of
the key frequencies, and sets all else to zero. *Excluded* takes those components away and keeps all else. A network
that only memorised loses nothing by exclusion on the pairs that it was trained on; one that only computes by these
frequencies loses everything. Losses are computed in float64, since those of a network that has grokked vanish in
float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from headwork.errors import UserError
from headwork.methods.fourier import sum_part
from headwork.methods.key_frequencies import checked_keys
from headwork.methods.number_pairs import as_mask, checked_table, right_answers

if TYPE_CHECKING:
    import xarray


def restricted_logits(
    logits: Float[Tensor, "first second answer"], frequencies: Sequence[int]
) -> Float[Tensor, "first second answer"]:
    """Only each answer's mean and the waves of these frequencies in a + b, in float64."""
    values = checked_table(logits).double()
    return values.mean((0, 1)) + sum_part(values, checked_keys(frequencies, len(values)))


def excluded_logits(
    logits: Float[Tensor, "first second answer"], frequencies: Sequence[int]
) -> Float[Tensor, "first second answer"]:
    """All but the waves of these frequencies in a + b, in float64."""
    values = checked_table(logits).double()
    return values - sum_part(values, checked_keys(frequencies, len(values)))


def fourier_losses(
    logits: Float[Tensor, "first second answer"],
    frequencies: Sequence[int],
    *,
    train: Bool[Tensor, "first second"] | None = None,
) -> xarray.Dataset:
    """Loss and accuracy of the whole, restricted and excluded logits.

    `frequencies` are the key ones; `train` marks the pairs that the network was trained on, where that is known. Dims
    `logits` (`full`, `restricted`, `excluded`), `pairs` (`all`, and with `train` also `train` and `test`), `without`
    (one key frequency):

    - `loss` [logits, pairs]: mean cross-entropy of the right answer in nats; `accuracy` [logits, pairs];
    - `loss_without` [without, pairs]: the loss where that key frequency alone is taken away.

    log p nats is the loss of one who knows nothing (attribute `chance`). Raises `UserError` for logits that are not
    [p, p, p] or not finite, frequencies that do not exist, and a `train` of the wrong shape, or of no or all pairs.
    """
    values = checked_table(logits).double()
    p = len(values)
    keys = checked_keys(frequencies, p)
    over = _pairs(as_mask(train, p), p)
    kinds = {
        "full": values,
        "restricted": values.mean((0, 1)) + sum_part(values, keys),
        "excluded": values - sum_part(values, keys),
    }
    measured = [[_measured(kind, mask) for mask in over.values()] for kind in kinds.values()]
    alone = [[_measured(values - sum_part(values, k[None]), mask)[0] for mask in over.values()] for k in keys]
    import numpy as np
    import xarray

    loss, accuracy = np.moveaxis(np.array(measured), -1, 0)
    return xarray.Dataset(
        {
            "loss": (("logits", "pairs"), loss, {"units": "nats"}),
            "accuracy": (("logits", "pairs"), accuracy, {"units": "share of pairs"}),
            "loss_without": (("without", "pairs"), np.array(alone), {"units": "nats"}),
        },
        coords={"logits": list(kinds), "pairs": list(over), "without": keys.tolist()},
        attrs={
            "method": "restricted and excluded loss",
            "modulus": p,
            "key_frequencies": keys.tolist(),
            "chance": float(np.log(p)),
        },
    )


def _pairs(train: Bool[Tensor, "first second"] | None, p: int) -> dict[str, Bool[Tensor, "first second"]]:
    """Which pairs each loss is over."""
    every = {"all": torch.ones(p, p, dtype=torch.bool)}
    if train is None:
        return every
    if train.all():
        raise UserError("train marks all pairs, so that there are none to test on; leave it out.")
    return every | {"train": train, "test": ~train}


def _measured(logits: Float[Tensor, "first second answer"], mask: Bool[Tensor, "first second"]) -> tuple[float, float]:
    """Loss and accuracy on these pairs."""
    found, right = logits[mask], right_answers(len(logits))[mask]
    correct = (found.argmax(-1) == right).double().mean().item()
    return functional.cross_entropy(found, right).item(), correct
