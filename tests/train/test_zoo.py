"""The networks inside the package are those that the recipes train, and their cards tell the truth."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter

import pytest
import torch
from tests.train.test_loop import TINY

from headwork.engine.run import run
from headwork.model.checkpoints import load
from headwork.model.folder import CONFIG, WEIGHTS, Record, read_record
from headwork.model.sources import ZOO, zoo_names
from headwork.train.finish import card, card_name, fresh_losses
from headwork.train.loop import Training, train
from headwork.train.recipe import Recipe, derived_seed
from headwork.train.recipes import RECIPES
from headwork.train.settings import with_defaults

NAMES = sorted(zoo_names())


def record(name: str) -> Record:
    return read_record(ZOO / name)


def slow_losses(state: Training, sequences: int) -> dict[str, float]:
    """Losses token by token on the evaluation sequences, from log-probabilities."""
    batch = state.recipe.data.sample(sequences, torch.Generator().manual_seed(derived_seed(state.seed, "evaluation")))
    every, inside, outside, right = [], [], [], []
    for row in range(sequences):
        tokens = batch.tokens[row].tolist()
        logits = run(state.model, batch.tokens[row : row + 1]).logits[0].double().tolist()
        for p in range(len(tokens) - 1):
            total = sum(math.exp(x) for x in logits[p])
            loss = math.log(total) - logits[p][tokens[p + 1]]
            every.append(loss)
            if batch.copy[row, p] == batch.copy[row, p + 1] >= 1:
                inside.append(loss)
                right.append(max(range(len(logits[p])), key=lambda x: logits[p][x]) == tokens[p + 1])
            elif batch.copy[row, p + 1] <= 0:
                outside.append(loss)
    names = {"loss": every, "loss_inside": inside, "loss_outside": outside, "accuracy_inside": right}
    return {name: sum(values) / len(values) for name, values in names.items()}


def test_a_card_holds_what_it_says() -> None:
    state = train(TINY, 2)
    made = card(state)
    assert made.name == "tiny-s2"
    assert card_name(TINY, 0) == "tiny"
    stated = dict(made.training)
    assert (stated["recipe"], stated["seed"], stated["steps"]) == ("tiny", 2, 30)
    assert stated["tokens"] == 30 * 4 * 16
    assert stated["settings"] == json.loads(json.dumps(TINY.settings()))
    assert stated["curve"] == [[step, round(loss, 4)] for step, loss in state.curve]
    assert made.data == TINY.data.to_dict()
    for name, value in slow_losses(state, 512).items():
        assert stated[name] == pytest.approx(value, abs=1e-4)


def test_the_zoo_is_small() -> None:
    assert sum(path.stat().st_size for path in ZOO.rglob("*")) < 10_000_000


def test_the_zoo_has_what_the_follow_ups_need() -> None:
    found = Counter(record(name).card.training["recipe"] for name in NAMES)
    needed = {"attn-only-1l": 5, "attn-only-2l": 5, "attn-only-3l": 5, "attn-only-2l-learned": 5}
    assert found == needed | {"attn-only-1l-fixed-period": 1}
    for name in needed:
        seeds = [record(n).card.training["seed"] for n in NAMES if record(n).card.training["recipe"] == name]
        assert sorted(seeds) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", NAMES)
def test_a_zoo_network_is_what_its_recipe_trains(name: str) -> None:
    found = record(name)
    stated = found.card.training
    recipe: Recipe = RECIPES[stated["recipe"]]
    assert name == found.name == found.card.name == card_name(recipe, stated["seed"])
    assert with_defaults(stated["settings"]) == json.loads(json.dumps(recipe.settings()))
    assert stated["steps"] == recipe.steps
    assert found.architecture == recipe.architecture
    assert found.card.data == recipe.data.to_dict()
    assert found.card.description == recipe.description
    assert found.card.licence == "Apache-2.0"


@pytest.mark.parametrize("name", NAMES)
def test_a_zoo_network_has_the_recorded_weights(name: str) -> None:
    found = record(name)
    digest = hashlib.sha256((ZOO / name / WEIGHTS).read_bytes()).hexdigest()
    assert digest == found.weights_sha256 == found.card.sha256
    assert {path.name for path in (ZOO / name).iterdir()} == {CONFIG, WEIGHTS}


@pytest.mark.parametrize("name", NAMES)
def test_a_zoo_network_has_the_recorded_losses(name: str) -> None:
    stated = record(name).card.training
    recipe = RECIPES[stated["recipe"]]
    model = load(ZOO / name)
    state = Training(recipe, stated["seed"], model, torch.optim.AdamW(model.parameters()), torch.Generator())
    for key, value in fresh_losses(state).items():
        assert value == pytest.approx(stated[key], abs=2e-3)


def test_every_zoo_network_is_another_one() -> None:
    assert len({record(name).weights_sha256 for name in NAMES}) == len(NAMES)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_recipes_are_named_after_themselves_and_fit_their_data(name: str) -> None:
    recipe = RECIPES[name]
    assert recipe.name == name
    assert recipe.data.vocab <= recipe.architecture.d_vocab
    assert recipe.data.length <= recipe.architecture.n_ctx
    keys = {"architecture.n_layers", "data.segment", "steps", "learning_rate", "betas", "weights_std"}
    assert keys <= set(recipe.settings())
    assert not {"name", "description"} & set(recipe.settings())
