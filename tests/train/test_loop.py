"""The loop gives the same weights for the same recipe and seed, whatever interrupts it, and never those of a wreck."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from headwork.errors import UserError
from headwork.model.config import TransformerConfig
from headwork.tasks.repeated_sequences import RepeatedSequences
from headwork.train import loop
from headwork.train.loop import Diverged, Training, rate, train
from headwork.train.recipe import Recipe, derived_seed

TINY = Recipe(
    name="tiny",
    description="A network for tests.",
    architecture=TransformerConfig(
        n_layers=1, d_model=8, n_heads=2, d_head=4, d_vocab=12, n_ctx=16, positions="rotary"
    ),
    data=RepeatedSequences(vocab=12, length=16, segment=(3, 5)),
    steps=30,
    batch=4,
    warmup=5,
)
EVERY = 10


class Stopped(Exception):
    pass


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY", EVERY)
    monkeypatch.setattr(loop, "CURVE_EVERY", 4)


def weights(state: Training) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in state.model.named_parameters()}


def same(one: Training, other: Training) -> bool:
    pairs = zip(weights(one).values(), weights(other).values())
    return one.curve == other.curve and all(torch.equal(a, b) for a, b in pairs)


def stopped_at(step: int, checkpoint: Path, recipe: Recipe = TINY, seed: int = 3) -> None:
    def stop(done: int, loss: float) -> None:
        if done == step:
            raise Stopped

    with pytest.raises(Stopped):
        train(recipe, seed, checkpoint=checkpoint, progress=stop)


def test_the_seed_decides_everything() -> None:
    before = torch.random.get_rng_state()
    torch.manual_seed(1)
    one = train(TINY, 3)
    torch.manual_seed(2)
    assert same(one, train(TINY, 3))
    assert not same(one, train(TINY, 4))
    torch.random.set_rng_state(before)
    assert (one.step, [step for step, _ in one.curve]) == (30, list(range(0, 30, 4)))
    assert not one.model.training


def test_training_lowers_the_loss() -> None:
    losses: list[float] = []
    three_symbols = dataclasses.replace(TINY.data, first_token=9)
    train(dataclasses.replace(TINY, steps=100, data=three_symbols), 0, progress=lambda step, loss: losses.append(loss))
    assert losses[0] > 2.3
    assert losses[-1] < 1.6


@pytest.mark.parametrize("at", [1, EVERY - 1, EVERY, EVERY + 1, 29, 30])
@pytest.mark.parametrize("tied", [False, True])
def test_a_stopped_run_continues_bit_for_bit(tmp_path: Path, at: int, tied: bool) -> None:
    recipe = dataclasses.replace(TINY, architecture=dataclasses.replace(TINY.architecture, tied=tied))
    checkpoint = tmp_path / "run.safetensors"
    stopped_at(at, checkpoint, recipe)
    steps: list[int] = []
    state = train(recipe, 3, checkpoint=checkpoint, progress=lambda step, loss: steps.append(step))
    # The checkpoint of a step is written after its progress was reported.
    assert steps == list(range((at - 1) // EVERY * EVERY + 1, 31))
    assert same(state, train(recipe, 3))


def test_a_finished_checkpoint_is_not_trained_further(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run.safetensors"
    done = train(TINY, 3, checkpoint=checkpoint)
    again = train(TINY, 3, checkpoint=checkpoint, progress=lambda step, loss: pytest.fail("it trained"))
    assert same(done, again)


@pytest.mark.parametrize(
    "recipe, seed",
    [
        (TINY, 4),
        (dataclasses.replace(TINY, learning_rate=2e-2), 3),
        (dataclasses.replace(TINY, steps=40), 3),
        (dataclasses.replace(TINY, data=dataclasses.replace(TINY.data, segment=(3, 4))), 3),
        (dataclasses.replace(TINY, architecture=dataclasses.replace(TINY.architecture, n_layers=2)), 3),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, recipe: Recipe, seed: int) -> None:
    checkpoint = tmp_path / "run.safetensors"
    stopped_at(15, checkpoint)
    with pytest.raises(UserError, match=f"is of another recipe or seed than tiny with seed {seed}"):
        train(recipe, seed, checkpoint=checkpoint)


def damaged(checkpoint: Path) -> Iterator[tuple[str, bytes]]:
    whole = checkpoint.read_bytes()
    yield "cannot be read", b""
    yield "cannot be read", b"not safetensors at all"
    yield "cannot be read", whole[: len(whole) // 2]
    yield "cannot be read", whole[:-1]


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run.safetensors"
    stopped_at(15, checkpoint)
    for sentence, blob in list(damaged(checkpoint)):
        checkpoint.write_bytes(blob)
        with pytest.raises(UserError, match=f"The checkpoint .*run.safetensors {sentence}.*remove it to start anew"):
            train(TINY, 3, checkpoint=checkpoint)


@pytest.mark.parametrize("change", ["tensor missing", "shape", "step", "generator"])
def test_a_checkpoint_with_parts_amiss_is_refused(tmp_path: Path, change: str) -> None:
    checkpoint = tmp_path / "run.safetensors"
    stopped_at(15, checkpoint)
    tensors = load_file(checkpoint)
    metadata = {"step": "10", "seed": "3", "settings": loop._fingerprint(TINY)}
    if change == "tensor missing":
        del tensors["adam.exp_avg.embed.weight"]
    elif change == "shape":
        tensors["model.embed.weight"] = tensors["model.embed.weight"][:5].clone()
    elif change == "step":
        del metadata["step"]
    else:
        tensors["data"] = tensors["data"][:100].clone()
    save_file(tensors, checkpoint, metadata)
    with pytest.raises(UserError, match=r"is damaged .*remove it to start anew"):
        train(TINY, 3, checkpoint=checkpoint)


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    with pytest.raises(Diverged, match="The loss is not finite at step") as caught:
        train(dataclasses.replace(TINY, learning_rate=1e30, warmup=1), 0)
    assert 0 < caught.value.step < 30


def test_weights_that_are_not_finite_after_the_last_step_stop_it_too() -> None:
    with pytest.raises(Diverged) as caught:
        train(dataclasses.replace(TINY, learning_rate=float("inf"), warmup=1, steps=1), 0)
    assert caught.value.step == 1


def flushes() -> bool:
    return float(torch.tensor(1e-310, dtype=torch.float64) * 1.0) == 0


@pytest.mark.parametrize("before", [False, True])
def test_small_numbers_are_treated_as_before_the_training(before: bool) -> None:
    seen: list[bool] = []
    torch.set_flush_denormal(before)
    try:
        train(TINY, 0, progress=lambda step, loss: seen.append(flushes()))
        after = flushes()
        with pytest.raises(Diverged):
            train(dataclasses.replace(TINY, learning_rate=1e30, warmup=1), 0)
        after_divergence = flushes()
    finally:
        torch.set_flush_denormal(False)
    assert all(seen)
    assert (after, after_divergence) == (before, before)


@given(st.integers(1, 400), st.integers(1, 3000))
def test_the_rate_warms_up_and_falls_to_zero(warmup: int, steps: int) -> None:
    recipe = dataclasses.replace(TINY, steps=steps, warmup=warmup)
    rates = [rate(step, recipe) for step in range(steps)]
    assert all(0 <= r <= 1 for r in rates)
    after = rates[warmup:]
    assert all(a >= b for a, b in itertools.pairwise(after))
    assert rates[0] <= 1 / warmup
    assert rate(steps, recipe) < 1e-12


def test_the_rate_in_the_middle() -> None:
    recipe = dataclasses.replace(TINY, steps=1000, warmup=100)
    assert rate(0, recipe) == pytest.approx(0.01)
    assert rate(500, recipe) == pytest.approx(0.5)
    assert rate(999, recipe) < 1e-5


def test_every_step_takes_its_own_rate() -> None:
    state = Training.fresh(TINY, 0)
    taken = []
    for _ in range(TINY.steps):
        state.advance()
        taken.append(state.optimizer.param_groups[0]["lr"] / TINY.learning_rate)
    assert taken == pytest.approx([rate(step, TINY) for step in range(TINY.steps)])


def test_seeds_for_different_purposes_are_unlike() -> None:
    found = {derived_seed(seed, purpose) for seed in range(500) for purpose in ("weights", "data", "evaluation")}
    assert len(found) == 1500
    assert derived_seed(0, "data") == derived_seed(0, "data")
    assert all(0 <= seed < 2**48 for seed in found)


@pytest.mark.parametrize("seed", [-1, 2**31])
def test_seeds_that_cannot_be_used_are_refused(seed: int) -> None:
    with pytest.raises(UserError, match=f"A seed is a whole number from 0 to 2147483647; given was {seed}."):
        train(TINY, seed)
