"""Networks and logits for addition modulo p whose answers are known, and the authors' networks."""

from __future__ import annotations

import functools
import math

import torch
import xarray
from tests.architectures import network
from torch import Tensor

from headwork.methods.key_frequencies import logit_frequencies
from headwork.methods.number_pairs import PairActivations, pair_activations
from headwork.model.sources import load
from headwork.model.transformer import Transformer
from headwork.tasks.modular_addition import ModularAddition

# Eleven tokens: seven numbers and =, or three and three of their own.
SMALL = ModularAddition(7, equals=10)
SUBTRACTS = ModularAddition(5, equals=9, subtract=True)
OWN = ModularAddition(3, second=4)
NETWORKS = ("gpt2", "neox", "llama")
PUBLISHED = (
    "nanda-mod113",
    "nanda-mod113-no-wd",
    "pizza-l8k1hzciux",
    "pizza-p99zdpze5l",
    "pizza-q9rsl94xlv",
    "pizza-18c9ev5v5p",
    "pizza-dy65ktpiij",
)


def small(name: str) -> Transformer:
    return network(name)


@functools.cache
def published(name: str) -> Transformer:
    return load(f"artifact:{name}")


@functools.cache
def every_pair_of(name: str) -> PairActivations:
    return pair_activations(published(name))


@functools.cache
def frequencies_of(name: str) -> xarray.Dataset:
    return logit_frequencies(every_pair_of(name).logits, draws=20)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def angles(p: int, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """2πka/p along the first axis, 2πkb/p along the second, 2πkc/p along the third."""
    turn = 2 * math.pi * k * torch.arange(p, dtype=torch.float64) / p
    return turn[:, None, None], turn[None, :, None], turn[None, None, :]


def clock(p: int, k: int) -> Tensor:
    a, b, c = angles(p, k)
    return (a + b - c).cos()


def pizza(p: int, k: int, shift: float = 0) -> Tensor:
    a, b, _ = angles(p, k)
    return ((a - b) / 2 - math.pi * k * shift / p).cos().abs() * clock(p, k)
