"""`train`: recipes listed, networks trained, and what is already there left alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from tests.cli.conftest import Cli

from headwork.model.config import TransformerConfig
from headwork.model.sources import load
from headwork.tasks.repeated_sequences import RepeatedSequences
from headwork.train import recipes
from headwork.train.recipe import Recipe

TINY = Recipe(
    name="tiny",
    description="A network for tests.",
    architecture=TransformerConfig(
        n_layers=1, d_model=8, n_heads=2, d_head=4, d_vocab=12, n_ctx=16, positions="rotary"
    ),
    data=RepeatedSequences(vocab=12, length=16, segment=(3, 5)),
    steps=20,
    batch=4,
    warmup=5,
)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(recipes.RECIPES, "tiny", TINY)


def test_list_names_every_recipe(cli: Cli) -> None:
    found = cli("train", "--list", "--json").json["recipes"]
    assert [entry["name"] for entry in found] == list(recipes.RECIPES)
    assert all(name in cli("train", "--list").out for name in recipes.RECIPES)


def test_a_trained_network_says_its_losses_and_what_to_do_next(cli: Cli, empty_folder: Path) -> None:
    result = cli("train", "tiny")
    folder = empty_folder / "headwork-models" / "tiny"
    card = load(str(folder)).card
    assert card is not None
    assert card.sha256 in result.out
    assert str(card.training["loss_inside"]) in result.out
    assert f"headwork reproduce induction-heads --model {folder}" in result.out
    assert "training tiny" in result.err
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]


def test_training_again_leaves_the_network_alone(cli: Cli, empty_folder: Path) -> None:
    first = cli("train", "tiny", "--json").json
    assert first["trained"]
    assert not cli("train", "tiny", "--json").json["trained"]
    assert "already there" in cli("train", "tiny").out
    other = cli("train", "tiny", "--seed", 2, "--json").json
    assert other["folder"] == str(empty_folder / "headwork-models" / "tiny-s2")
    assert other["sha256"] != first["sha256"]


def test_a_folder_of_something_else_is_refused(cli: Cli, refused: Cli, empty_folder: Path) -> None:
    cli("train", "tiny", "--out", "ours")
    assert "not tiny with seed 1" in refused("train", "tiny", "--seed", 1, "--out", "ours").err
    (empty_folder / "theirs").mkdir()
    (empty_folder / "theirs" / "thesis.tex").touch()
    assert "something else" in refused("train", "tiny", "--out", "theirs").err


def test_a_training_that_diverges_is_no_success(cli: Cli, empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wild = dataclasses.replace(TINY, learning_rate=1e30, warmup=1)
    monkeypatch.setitem(recipes.RECIPES, "tiny", wild)
    result = cli("train", "tiny", "--json")
    assert result.code == 1
    assert not result.out
    assert "diverged" in result.err
    assert not list((empty_folder / "headwork-models").iterdir())
