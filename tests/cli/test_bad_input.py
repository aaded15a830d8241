"""Everything a user can get wrong: exit code 2, one sentence that names what is accepted, and nothing written."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests import foreign
from tests.architectures import network
from tests.cli.conftest import Cli

from headwork.model.card import ModelCard
from headwork.model.checkpoints import save


@pytest.mark.parametrize(
    "arguments, named",
    [
        (("reproduce", "inductionheads"), "induction-heads"),
        (("findings", "show", "induction-head"), "induction-heads"),
        (("reproduce", "induction-heads", "--model", "zoo:attn-only-2"), "attn-only-2l"),
        (("reproduce", "induction-heads", "--model", "attn-only-2l"), "zoo:attn-only-2l"),
        (("reproduce", "induction-heads", "--model", "artifact:nanda-inductoin"), "nanda-induction"),
        (("reproduce", "induction-heads", "--model", "zo:attn-only-2l"), "zoo:attn-only-2l"),
        (("reproduce", "induction-heads", "--model", "no/such/folder"), "no/such/folder"),
        (("reproduce", "induction-heads", "--seeds", "0"), "--seeds is 0"),
        (("reproduce", "induction-heads", "--seeds", "6"), "the zoo has 5"),
        (("reproduce", "induction-heads", "--device", "tpu"), "cpu"),
        (("models", "show", "artifact:nanda"), "nanda-induction"),
        (("models", "show", "zoo:attn-only-2"), "attn-only-2l"),
        (("sites", ""), "zoo:NAME"),
        (("train", "attn-only-2"), "attn-only-2l"),
        (("train",), "attn-only-2l"),
        (("train", "attn-only-2l", "--seed", "-1"), "from 0"),
        (("train", "attn-only-2l", "--device", "gpu"), "cpu"),
        (("models", "import", "theirs.pth", "--layout", "nanda", "--out", "ours"), "theirs.pth"),
    ],
)
def test_what_does_not_exist_is_refused_with_the_nearest_choice(
    refused: Cli, arguments: tuple[str, ...], named: str
) -> None:
    assert named in refused(*arguments).err


@pytest.mark.parametrize("command", [("reproduce", "induction-heads"), ("train", "attn-only-2l")])
def test_a_graphics_card_that_is_not_there_is_refused(
    refused: Cli, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "--device cpu" in refused(*command, "--device", "cuda").err


@pytest.mark.parametrize("command", [("reproduce", "induction-heads", "--seeds", "1"), ("train", "attn-only-2l")])
@pytest.mark.parametrize("out", ["file", "file/below", "a-name-that-is-too-long" * 20])
def test_an_output_folder_that_cannot_be_written_is_refused_before_any_work(
    refused: Cli, empty_folder: Path, command: tuple[str, ...], out: str
) -> None:
    (empty_folder / "file").write_text("mine")
    assert out in refused(*command, "--out", out).err
    assert (empty_folder / "file").read_text() == "mine"


def test_an_import_into_what_is_no_folder_is_refused(refused: Cli, empty_folder: Path) -> None:
    torch.save({"model": foreign.nanda_state()}, empty_folder / "theirs.pth")
    (empty_folder / "file").write_text("mine")
    arguments = ("models", "import", "theirs.pth", "--layout", "nanda")
    assert "file" in refused(*arguments, "--out", "file/below").err
    assert "nand" in refused("models", "import", "theirs.pth", "--layout", "nand", "--out", "ours").err


def _damaged(folder: Path) -> dict[str, Path]:
    """One file each: a pickle with code, one that ends early, NaN, a wrong shape, and no checkpoint at all."""
    good = foreign.nanda_state()
    state = {"code": {"model": _Code()}, "nan": {"model": good | {"embed.W_E": good["embed.W_E"] * float("nan")}}}
    state["shape"] = {"model": good | {"blocks.1.attn.W_O": good["blocks.1.attn.W_O"][:, :3]}}
    files = {name: folder / f"{name}.pth" for name in (*state, "truncated", "text")}
    for name, value in state.items():
        torch.save(value, files[name])
    torch.save({"model": good}, files["truncated"])
    files["truncated"].write_bytes(files["truncated"].read_bytes()[:2000])
    files["text"].write_text("not weights")
    return files


class _Code:
    """Something whose unpickling would run a function."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("ran"),)  # type: ignore[return-value]


@pytest.mark.parametrize(
    "damage, said",
    [
        ("code", "never runs"),
        ("nan", "NaN"),
        ("shape", "shape"),
        ("truncated", "truncated"),
        ("text", "damaged"),
    ],
)
def test_a_damaged_checkpoint_is_not_imported(refused: Cli, empty_folder: Path, damage: str, said: str) -> None:
    path = _damaged(empty_folder)[damage]
    assert said in refused("models", "import", path, "--layout", "nanda", "--out", "ours").err
    assert not (empty_folder / "ran").exists()


@pytest.mark.parametrize(
    "damage, said",
    [
        ("code", "models import"),
        ("nan", "NaN"),
        ("shape", "shape"),
        ("truncated", "truncated"),
        ("other", "sha256"),
        ("missing", "weights.safetensors"),
    ],
)
def test_a_damaged_model_folder_is_refused(refused: Cli, empty_folder: Path, damage: str, said: str) -> None:
    folder = save(network("attention-only-learned").float(), empty_folder / "model", ModelCard(name="m"))
    weights = folder / "weights.safetensors"
    state = load_file(weights)
    first = "blocks.1.attn.out.weight"
    if damage == "code":
        weights.write_bytes(pickle.dumps(_Code()))
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-50])
    elif damage == "missing":
        weights.unlink()
    else:
        changed = {"nan": state[first] * float("nan"), "shape": state[first][:3].clone(), "other": state[first] + 1}
        save_file(state | {first: changed[damage]}, weights)
    assert said in refused("reproduce", "induction-heads", "--seeds", 1, "--json", "--model", folder).err
