"""Key frequencies: planted ones are found, in networks that know no arithmetic there are none."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.architectures import network
from tests.methods import adders
from torch import Tensor

from headwork.errors import UserError
from headwork.methods.key_frequencies import embedding_frequencies, keys_of, logit_frequencies
from headwork.model.config import TransformerConfig
from headwork.model.initialise import initialise
from headwork.model.transformer import Transformer
from headwork.tasks.modular_addition import ModularAddition

CIRCLES = {13: {5: 3.0}, 59: {3: 3.0, 11: 2.5, 20: 2.0}}
PLANTED = {13: {2: 3.0, 5: 2.0}, 59: {3: 4.0, 11: 2.0, 20: 1.5}}
UNTRAINED = TransformerConfig(
    n_layers=1, d_model=32, n_heads=2, d_head=16, d_vocab=31, n_ctx=3, d_mlp=64, activation="relu"
)


def with_embedding(values: Tensor) -> Transformer:
    """An untrained network that embeds the numbers like this."""
    config = TransformerConfig(n_layers=1, d_model=values.shape[1], n_heads=1, d_head=4, d_vocab=len(values), n_ctx=2)
    model = initialise(config, seed=0).double()
    model.embed.weight.data = values
    return model


def circles(p: int, strengths: dict[int, float], d_model: int = 24) -> Tensor:
    """A circle of each frequency in directions of its own, amid noise of size 1."""
    turn = 2 * math.pi * torch.arange(p, dtype=torch.float64)[:, None] / p
    values = adders.noise(p, d_model, seed=p)
    for k, strength in strengths.items():
        across = adders.noise(2, d_model, seed=k)
        values = values + strength * ((k * turn).cos() * across[0] + (k * turn).sin() * across[1])
    return values


@pytest.mark.parametrize("p", CIRCLES)
def test_planted_circles_are_found_in_an_embedding(p: int) -> None:
    values = circles(p, CIRCLES[p])
    found = embedding_frequencies(with_embedding(values), ModularAddition(p))
    keys = found["frequency"].values[found["key"].sel(vocabulary="first").values]
    assert set(keys.tolist()) == set(CIRCLES[p])
    k = keys[0]
    turns = [2 * math.pi * k * x / p for x in range(p)]
    waves = [torch.tensor([f(turn) for turn in turns], dtype=torch.float64) for f in (math.cos, math.sin)]
    slow = sum(float((w @ values).square().sum() / (w @ w)) for w in waves)
    assert float(found["norm"].sel(vocabulary="first", frequency=k)) == pytest.approx(math.sqrt(slow))
    total = float((values - values.mean(0)).square().sum())
    assert float(found["share"].sel(vocabulary="first", frequency=k)) == pytest.approx(slow / total)


def test_each_vocabulary_has_frequencies_of_its_own() -> None:
    values = torch.cat([circles(13, {2: 3.0}), adders.noise(2, 24), circles(13, {5: 3.0})])
    found = embedding_frequencies(with_embedding(values), ModularAddition(13, second=15))
    keys = {v: found["frequency"].values[found["key"].sel(vocabulary=v).values].tolist() for v in ("first", "second")}
    assert keys == {"first": [2], "second": [5]}


@pytest.mark.parametrize("p", [13, 59])
def test_a_random_embedding_has_no_key_frequencies(p: int) -> None:
    for seed in range(4):
        found = embedding_frequencies(with_embedding(adders.noise(p, 24, seed=seed)), ModularAddition(p), seed=seed)
        assert not found["key"].any()


def test_an_untrained_network_has_no_key_frequencies() -> None:
    task = ModularAddition(29, equals=30)
    for seed in range(4):
        model = initialise(UNTRAINED, seed=seed)
        found = logit_frequencies(adders.pair_activations(model, task).logits, draws=50, seed=seed)
        assert not found["key"].any()
        assert keys_of(found) == []
        assert not embedding_frequencies(model, task, draws=100)["key"].any()


@pytest.mark.parametrize("p", [13, 59])
def test_planted_waves_are_found_in_logits(p: int) -> None:
    logits = sum(strength * adders.clock(p, k) for k, strength in PLANTED[p].items()) + adders.noise(p, p, p)
    found = logit_frequencies(logits, draws=20)
    assert keys_of(found) == list(PLANTED[p])
    k = keys_of(found)[0]
    values = logits - logits.mean(2, keepdim=True)
    values = values - values.mean((0, 1))
    wave = adders.clock(p, k)
    slow = float((wave * values).sum() ** 2 / wave.square().sum() / values.square().sum())
    assert float(found["wave_share"].sel(frequency=k)) == pytest.approx(slow)
    assert float(found["explained"]) == pytest.approx(float(found["wave_share"].sel(frequency=keys_of(found)).sum()))


def test_what_the_logits_hold_beside_the_wave_counts_in_its_plane_only() -> None:
    a, b, c = adders.angles(13, 3)
    logits = adders.clock(13, 3) + (a + b).cos() * (2 * c).sin()
    found = logit_frequencies(logits, draws=5).sel(frequency=3)
    assert float(found["share"]) == pytest.approx(1)
    assert float(found["wave_share"]) == pytest.approx(2 / 3)  # Σ of squares is p³/2 of the first, p³/4 of the second


@pytest.mark.parametrize("p", [12, 13])
def test_shares_of_all_waves_never_exceed_one(p: int) -> None:
    every = torch.stack([adders.clock(p, k) for k in range(1, p // 2 + 1)]).sum(0)
    found = logit_frequencies(every, draws=1)
    np.testing.assert_allclose(found["share"], found["wave_share"])
    assert float(found["share"].sum()) == pytest.approx(1)
    assert float(logit_frequencies(adders.noise(p, p, p), draws=1)["share"].sum()) < 1


def test_renaming_answers_changes_no_key() -> None:
    logits = adders.clock(13, 2) + 0.5 * adders.noise(13, 13, 13)
    order = torch.randperm(13, generator=torch.Generator().manual_seed(1))
    np.testing.assert_allclose(logit_frequencies(logits)["share"], logit_frequencies(logits[:, :, order])["share"])


@pytest.mark.usefixtures("unchecked")
def test_what_has_no_frequencies_is_refused() -> None:
    with pytest.raises(UserError, match="embedding is the same for all numbers"):
        embedding_frequencies(with_embedding(torch.ones(5, 4, dtype=torch.float64)), ModularAddition(5))
    with pytest.raises(UserError, match="logits are the same for all pairs"):
        logit_frequencies(torch.ones(5, 5, 5))
    with pytest.raises(UserError, match="draws = 0; a null needs at least 1"):
        logit_frequencies(torch.ones(5, 5, 5), draws=0)
    with pytest.raises(UserError, match="card does not say"):
        embedding_frequencies(network("gpt2"))


# Measured: key frequencies of the logits, largest first, the share of variance they explain, those of the embedding.
MEASURED = {
    "nanda-mod113": ([23, 6, 37, 41, 39], 0.9756, {6, 23, 37, 39, 41}),
    "nanda-mod113-no-wd": ([36, 52], 0.9581, {36, 41, 52}),
    "pizza-l8k1hzciux": ([13, 16, 21], 0.9863, {13, 16, 21}),
    "pizza-p99zdpze5l": ([17, 3, 15], 0.9948, {3, 6, 15, 17, 25}),
    "pizza-q9rsl94xlv": ([12, 4, 21, 19], 0.9421, {4, 12, 19, 21}),
    "pizza-18c9ev5v5p": ([28, 7, 23], 0.9921, {3, 7, 14, 23, 28}),
    "pizza-dy65ktpiij": ([11, 24], 0.7776, {11, 17, 18, 24, 25}),
}


@pytest.mark.artifacts
@pytest.mark.usefixtures("artifacts")
@pytest.mark.parametrize("name", adders.PUBLISHED)
def test_the_authors_networks_have_a_handful_of_key_frequencies(name: str) -> None:
    found = adders.frequencies_of(name)
    keys, explained, embedded = MEASURED[name]
    assert keys_of(found) == keys
    assert float(found["explained"]) == pytest.approx(explained, abs=1e-3)
    spectrum = embedding_frequencies(adders.published(name)).sel(vocabulary="first")
    assert set(spectrum["frequency"].values[spectrum["key"].values].tolist()) == embedded
