"""A training that is killed continues where it was, and gives the very network of one that was not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from headwork.errors import UserError
from headwork.model.config import TransformerConfig
from headwork.tasks.repeated_sequences import RepeatedSequences
from headwork.train.loop import CHECKPOINT_EVERY
from headwork.train.produce import produce
from headwork.train.recipe import Recipe

RECIPE = Recipe(
    name="tiny",
    description="A network for tests.",
    architecture=TransformerConfig(
        n_layers=1, d_model=8, n_heads=2, d_head=4, d_vocab=12, n_ctx=16, positions="rotary"
    ),
    data=RepeatedSequences(vocab=12, length=16, segment=(3, 5)),
    steps=CHECKPOINT_EVERY + 60,
    batch=4,
    warmup=5,
)

KILLED_AT = """
import os, signal, sys
from pathlib import Path
from tests.train.test_produce import RECIPE
from headwork.train.produce import produce

def progress(step, loss):
    if step == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

produce(RECIPE, 3, Path(sys.argv[1]), progress=progress)
"""


def kill(out: Path, step: int) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED_AT, str(out), str(step)], cwd=Path(__file__).parents[2])
    assert done.returncode == -signal.SIGKILL


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network of a training that nothing interrupted."""
    return produce(RECIPE, 3, tmp_path_factory.mktemp("whole") / "net").folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("killed_at, continues_at", [(100, 1), (CHECKPOINT_EVERY + 30, CHECKPOINT_EVERY + 1)])
def test_a_killed_training_continues_from_its_checkpoint(
    tmp_path: Path, whole: Path, killed_at: int, continues_at: int
) -> None:
    out = tmp_path / "net"
    kill(out, killed_at)
    assert not out.exists()
    steps: list[int] = []
    done = produce(RECIPE, 3, out, progress=lambda step, loss: steps.append(step))
    assert steps == list(range(continues_at, RECIPE.steps + 1))
    assert done.trained
    assert files(out) == files(whole)
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


def test_an_interrupted_training_keeps_its_checkpoint_only(tmp_path: Path, whole: Path) -> None:
    def interrupt(step: int, loss: float) -> None:
        if step == CHECKPOINT_EVERY + 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        produce(RECIPE, 3, tmp_path / "net", progress=interrupt)
    left = [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))]
    assert left == ["net.training", "net.training/tiny-seed-3.safetensors"]
    assert files(produce(RECIPE, 3, tmp_path / "net").folder) == files(whole)


def test_a_finished_network_is_not_trained_again(tmp_path: Path) -> None:
    out = tmp_path / "net"
    first = produce(RECIPE, 3, out)
    again = produce(RECIPE, 3, out, progress=lambda step, loss: pytest.fail("it trained"))
    assert (first.trained, again.trained) == (True, False)
    assert again.card == first.card


def test_a_network_of_other_settings_is_refused(tmp_path: Path) -> None:
    out = produce(RECIPE, 3, tmp_path / "net").folder
    config = json.loads((out / "config.json").read_text())
    config["card"]["training"]["settings"]["learning_rate"] = 0.5
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="not tiny with seed 3 as this version trains it"):
        produce(RECIPE, 3, out)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    out = produce(RECIPE, 3, tmp_path / "net").folder
    weights = out / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(UserError, match="damaged weights"):
        produce(RECIPE, 3, out)


def test_a_network_does_not_depend_on_the_number_of_threads(tmp_path: Path, whole: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert files(produce(RECIPE, 3, tmp_path / "net").folder) == files(whole)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
