"""Restricted and excluded loss equal inner products written out; a network that only memorised loses nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.methods import adders
from torch import Tensor
from torch.nn import functional

from headwork.errors import UserError
from headwork.methods.key_frequencies import keys_of
from headwork.methods.number_pairs import recorded_split, right_answers, shuffled_split
from headwork.methods.restricted_loss import excluded_logits, fourier_losses, restricted_logits


def component(logits: Tensor, keys: list[int]) -> Tensor:
    """What cos(w(a + b)) and sin(w(a + b)) make of each answer's logits, one direction after the other."""
    p = len(logits)
    found = torch.zeros_like(logits)
    for k in keys:
        for turn in (math.cos, math.sin):
            direction = torch.tensor([[turn(2 * math.pi * k * (a + b) / p) for b in range(p)] for a in range(p)])
            direction = direction.double() / direction.norm()
            for c in range(p):
                found[:, :, c] += (direction * logits[:, :, c]).sum() * direction
    return found


def cross_entropy(logits: Tensor, mask: Tensor) -> float:
    p = len(logits)
    each = [
        float(logits[a, b].exp().sum().log() - logits[a, b, (a + b) % p])
        for a in range(p)
        for b in range(p)
        if mask[a, b]
    ]
    return sum(each) / len(each)


@pytest.mark.parametrize(("p", "keys"), [(7, [1, 3]), (13, [4]), (12, [2, 5])])
def test_losses_equal_components_written_out(p: int, keys: list[int]) -> None:
    logits, train = 2 * adders.noise(p, p, p) + 3 * adders.clock(p, keys[0]), shuffled_split(p, 0.4, 0)
    found = fourier_losses(logits, keys, train=train)
    part = component(logits, keys)
    kinds = {"full": logits, "restricted": part + logits.mean((0, 1)), "excluded": logits - part}
    torch.testing.assert_close(restricted_logits(logits, keys), kinds["restricted"], rtol=0, atol=1e-6)
    torch.testing.assert_close(excluded_logits(logits, keys), kinds["excluded"], rtol=0, atol=1e-6)
    every = torch.ones(p, p, dtype=torch.bool)
    for name, kind in kinds.items():
        for pairs, mask in {"all": every, "train": train, "test": ~train}.items():
            one = found.sel(logits=name, pairs=pairs)
            assert float(one["loss"]) == pytest.approx(cross_entropy(kind, mask), abs=1e-6)
            right = (kind.argmax(2) == right_answers(p))[mask].double().mean()
            assert float(one["accuracy"]) == pytest.approx(float(right))
    for k in keys:
        alone = cross_entropy(logits - component(logits, [k]), every)
        assert float(found["loss_without"].sel(without=k, pairs="all")) == pytest.approx(alone, abs=1e-6)
    assert found.attrs["chance"] == pytest.approx(math.log(p))


def test_a_fourier_network_lives_by_its_key_frequencies_alone() -> None:
    logits = 8 * adders.clock(13, 2) + 8 * adders.clock(13, 5) + 0.1 * adders.noise(13, 13, 13)
    found = fourier_losses(logits, [2, 5])
    assert found["accuracy"].sel(logits="restricted", pairs="all") == 1
    assert found["loss"].sel(logits="restricted", pairs="all") < 0.02
    assert found["loss"].sel(logits="excluded", pairs="all") > 2
    assert "train" not in found["pairs"]


def test_a_network_that_memorised_loses_nothing_by_exclusion() -> None:
    train = shuffled_split(13, 0.3, 1)
    logits = 20 * functional.one_hot(right_answers(13), 13).double() * train[..., None]
    found = fourier_losses(logits, [2, 5], train=train).sel(pairs="train")
    assert found["loss"].sel(logits="excluded") < 0.1
    assert found["loss"].sel(logits="restricted") > 0.5


@pytest.mark.usefixtures("unchecked")
def test_wrong_frequencies_and_splits_are_refused() -> None:
    logits = adders.noise(7, 7, 7)
    for keys, train, says in [
        ([4], None, "Frequency 4 does not exist modulo 7; there are 1–3"),
        ([0], None, "Frequency 0 does not exist"),
        ([], None, "at least one is needed"),
        ([1, 1], None, "each once"),
        ([1], torch.ones(7, 6, dtype=torch.bool), r"needed is bool \[7, 7\]"),
        ([1], torch.ones(7, 7), r"type torch.float32; needed is bool"),
        ([1], torch.zeros(7, 7, dtype=torch.bool), "marks no pair"),
        ([1], torch.ones(7, 7, dtype=torch.bool), "marks all pairs"),
    ]:
        with pytest.raises(UserError, match=says):
            fourier_losses(logits, keys, train=train)


# Measured: excluded loss over all pairs in nats, and accuracy of the whole and of the restricted logits.
MEASURED = {
    "nanda-mod113": (9.038, 1.0, 1.0),
    "nanda-mod113-no-wd": (76.03, 1.0, 1.0),
    "pizza-l8k1hzciux": (6.500, 1.0, 1.0),
    "pizza-p99zdpze5l": (4.880, 1.0, 1.0),
    "pizza-q9rsl94xlv": (5.257, 1.0, 1.0),
    "pizza-18c9ev5v5p": (5.277, 1.0, 1.0),
    "pizza-dy65ktpiij": (8.259, 0.9684, 0.4746),
}


@pytest.mark.artifacts
@pytest.mark.usefixtures("artifacts")
@pytest.mark.parametrize("name", adders.PUBLISHED)
def test_the_authors_networks_live_by_their_key_frequencies(name: str) -> None:
    logits = adders.every_pair_of(name).logits
    found = fourier_losses(logits, keys_of(adders.frequencies_of(name))).sel(pairs="all")
    excluded, whole, restricted = MEASURED[name]
    assert float(found["loss"].sel(logits="excluded")) == pytest.approx(excluded, rel=2e-3)
    assert excluded > found.attrs["chance"]
    np.testing.assert_allclose(found["accuracy"].values[:2], [whole, restricted], atol=2e-3)


@pytest.mark.artifacts
@pytest.mark.usefixtures("artifacts")
def test_the_split_of_the_network_that_records_it_is_found_again() -> None:
    logits = adders.every_pair_of("nanda-mod113").logits
    train = recorded_split(adders.published("nanda-mod113"), logits)
    assert train is not None
    found = fourier_losses(logits, [23, 6, 37, 41, 39], train=train)["loss"]
    assert float(found.sel(logits="full", pairs="train")) == pytest.approx(9.2025e-9, rel=1e-3)  # as recorded
    assert float(found.sel(logits="full", pairs="test")) == pytest.approx(4.9915e-7, rel=1e-3)  # as recorded
    assert found.sel(logits="restricted", pairs="test") < found.sel(logits="full", pairs="test")
    other = adders.every_pair_of("nanda-mod113-no-wd").logits
    assert recorded_split(adders.published("nanda-mod113-no-wd"), other) is None
