"""`headwork patch` publishes what the method gives, chosen on discovery prompts and measured on held-out ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
from tests.cli.conftest import Cli
from tests.tasks.words import reading_network

from headwork.cli.options import parse_memory, parse_numbers
from headwork.draw import Picture, heatmap
from headwork.errors import UserError
from headwork.methods.activation_patching import activation_patching
from headwork.model.card import ModelCard
from headwork.model.checkpoints import save
from headwork.model.config import TransformerConfig
from headwork.model.initialise import initialise
from headwork.model.sources import load
from headwork.tasks.registry import build
from headwork.tasks.task_prompts import SPLITS

NETWORK = "zoo:attn-only-2l"
FEW = ("--prompts", "6")
UNTRAINED: dict[str, Any] = {"n_layers": 1, "d_model": 8, "n_heads": 2, "d_head": 4, "d_vocab": 32, "n_ctx": 64}


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """A model folder that reads words."""
    return save(reading_network(), tmp_path / "words", ModelCard(name="words"))


def read(found: dict[str, Any], group: str) -> xarray.Dataset:
    with xarray.open_dataset(found["files"]["results.h5"], group=group, engine="h5netcdf") as opened:
        return opened.load()


def test_heads_are_patched_by_default_and_everything_is_written(cli: Cli, empty_folder: Path) -> None:
    found = cli("patch", NETWORK, *FEW, "--json").json
    folder = empty_folder / "headwork-out" / "patch-attn-only-2l"
    assert found["files"] == {
        name: str(folder / name) for name in ("effect.svg", "effect.png", "results.h5", "summary.json")
    }
    assert (folder / "effect.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "effect.svg").read_text().startswith("<?xml")
    written = json.loads((folder / "summary.json").read_text())
    assert {**written, "files": None} == {**found, "files": None}
    model = load(NETWORK)
    for split in SPLITS:
        group, described = split if split == "discovery" else "", found[split.replace("-", "_")]
        prompts = build("repeated-sequences", model, 6, split=split)
        slow = activation_patching(model, prompts.pairs, prompts.metric, site="attn.z", by="head")
        assert described["clean"]["value"] == pytest.approx(float(slow["clean"].mean()), abs=1e-5)
        assert described["corrupt"]["value"] == pytest.approx(float(slow["corrupt"].mean()), abs=1e-5)
        if group:
            np.testing.assert_allclose(read(found, group)["effect"], slow["effect"], atol=1e-5)
            order = np.abs(slow["effect"].mean("prompt").values).ravel().argsort()[::-1]
            assert [c["layer"] * 4 + c["head"] for c in found["top"]] == order.tolist()
        for cell in found["top"]:
            share = cell["normalised"] if group else cell["held_out"]["normalised"]
            here = float(slow["normalised"].sel(layer=cell["layer"], head=cell["head"]))
            assert share["value"] == pytest.approx(here, abs=1e-4)
            assert share["low"] < share["value"] < share["high"]
    again = read(found, "held_out")
    assert again["cell"].values.tolist() == [cell["cell"] for cell in found["top"]]
    assert found["choices"]["ablation_direction"] == "denoising"
    assert found["command"] == f"headwork patch {NETWORK} --prompts 6"


def test_the_table_names_the_cells_and_the_next_command_works(cli: Cli) -> None:
    shown = cli("patch", NETWORK, *FEW, "--out", "here")
    assert shown.code == 0
    assert "share of clean − corrupt" in shown.out
    command = next(line for line in shown.out.splitlines() if line.startswith("Next: headwork "))
    again = cli(*command.removeprefix("Next: headwork ").split(), "--out", "closer", "--json").json
    assert again["choices"]["by"] == "head-position"
    assert len({(cell["layer"], cell["head"]) for cell in again["top"]}) == 1


def test_less_memory_changes_nothing_but_rounding(cli: Cli) -> None:
    arguments = ("patch", NETWORK, *FEW, "--site", "resid_pre", "--by", "layer", "--direction", "noising", "--json")
    one, other = (cli(*arguments, "--out", out, *more).json for out, more in (("a", ()), ("b", ("--memory", "4MB"))))
    assert other["memory"] == 4_000_000
    np.testing.assert_allclose(read(one, "discovery")["effect"], read(other, "discovery")["effect"], atol=1e-4)
    assert one["top"][0]["normalised"]["value"] == pytest.approx(1.0, abs=1e-4)


def test_words_name_the_positions(cli: Cli, words: Path) -> None:
    arguments = ("patch", words, "--task", "ioi", "--site", "resid_pre", "--counterfactual", "swapped", *FEW, "--json")
    found = cli(*arguments).json
    before = [cell for cell in found["top"] if cell["layer"] == 0 and abs(cell["effect"]["value"]) > 1e-5]
    assert [cell["token"] for cell in before] == ["giver"]
    assert found["discovery"]["example"]["clean"].startswith("When ")
    assert found["discovery"]["templates"] > 1
    assert found["top"][0]["effect"]["unit"] == "templates"


def test_an_estimate_chooses_and_patching_confirms(cli: Cli) -> None:
    found = cli("patch", NETWORK, *FEW, "--estimate", "--layers", "1", "--json").json
    assert found["choices"]["method"].startswith("attribution patching")
    assert read(found, "held_out").attrs["method"] == "activation patching"
    assert {cell["layer"] for cell in found["top"]} == {1}


def test_a_pair_stands_for_itself(cli: Cli, words: Path) -> None:
    clean = "When Mary and John went to the park, John gave a book to"
    pair = ("--clean", clean, "--corrupt", clean.replace(", John", ", Mary"), "--answer", " Mary", "--wrong", " John")
    found = cli("patch", words, *pair, "--site", "resid_pre", "--json").json
    assert found["held_out"] is None
    assert "held_out" not in found["top"][0]
    first = next(cell for cell in found["top"] if cell["layer"] == 0)
    assert (first["position"], first["token"]) == (9, "␣John")
    # Before the first layer the prompts differ at this position alone, so that patching it is the other run.
    assert first["normalised"]["value"] == pytest.approx(1.0, abs=1e-3)
    assert first["normalised"]["low"] is None


def test_a_network_that_does_not_do_the_task_is_said_to_and_gets_no_shares(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels: list[str] = []

    def noted(values: np.ndarray, **options: Any) -> Picture:
        labels.append(options["value_label"])
        return heatmap(values, **options)

    monkeypatch.setattr("headwork.analyses.patch.heatmap", noted)
    save(initialise(TransformerConfig(**UNTRAINED), 0), tmp_path / "untrained", ModelCard(name="untrained"))
    done = cli("patch", tmp_path / "untrained", *FEW)
    assert "do not differ beyond chance" in done.out
    assert "effect, in the metric's unit" in done.out
    assert "share of clean" not in done.out
    assert "beyond chance" not in cli("patch", NETWORK, *FEW).out
    assert labels == ["effect, in the metric's unit", "share of clean − corrupt restored"]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "arguments, said",
    [
        (("--task", "repeated"), "repeated-sequences"),
        (("--task", "ioi"), "no tokenizer"),
        (("--task", "ioi", "--pairs", "x.csv"), "--task and --pairs were given"),
        (("--pairs", "x.csv"), "There is no file x.csv"),
        (("--clean", "1 2"), "--corrupt"),
        (("--answer", "1"), "--answer belongs to a pair"),
        (("--clean", "1 2", "--corrupt", "1 2"), "are the same prompt"),
        (("--clean", "1 2", "--corrupt", "1 2 3"), "2 tokens and the corrupt one 3 tokens"),
        (("--clean", "1 2", "--corrupt", "1 3", "--counterfactual", "x"), "--counterfactual belongs to a task"),
        (("--counterfactual", "replace"), "replaced"),
        (("--site", "attn.zz"), "attn.z"),
        (("--site", "mlp_out"), "Unknown site"),
        (("--site", "resid_pre", "--by", "head"), "has no heads"),
        (("--by", "heads"), "head"),
        (("--direction", "denoise"), "denoising"),
        (("--heads", "4"), "head 4 does not exist"),
        (("--layers", "2"), "layer 2 does not exist"),
        (("--positions", "60-64"), "position 64 does not exist"),
        (("--positions", "last"), "write them like 0,2-4"),
        (("--memory", "2 elephants"), "2GB"),
        (("--memory", "1kB"), "the limit is"),
        (("--prompts", "0"), "at least one"),
        (("--prompts", "100001"), "at most 100,000"),
        (("--seed", "-1"), "0 or more"),
        (("--seed", str(2**62)), "below 2^62"),
        (("--bos",), "no tokenizer"),
        (("--out", "file"), "which is a file"),
    ],
)
def test_what_cannot_be_patched_is_refused(
    refused: Cli, empty_folder: Path, arguments: tuple[str, ...], said: str
) -> None:
    (empty_folder / "file").write_text("mine")
    assert said in refused("patch", NETWORK, *arguments).err


@pytest.mark.parametrize(
    "text, size",
    [("2GB", 2 * 10**9), ("500 MiB", 500 * 2**20), ("1.5kb", 1500), ("64", 64), ("3B", 3), (" 1 gib ", 2**30)],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-2GB", "2TB", "0", "0.1B", "1e9", "2 G B"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="such as 2GB, in B, kB, MB, GB, KiB, MiB, GiB"):
        parse_memory(text)


def test_lists_of_numbers_are_read() -> None:
    assert parse_numbers("0,2-4, 7") == (0, 2, 3, 4, 7)
    for text in ("", "a", "4-2", "1,,2", "-1", "1-", "0-9999999"):
        with pytest.raises(UserError, match="write them like 0,2-4"):
            parse_numbers(text)


def test_sites_that_are_computed_in_another_way_where_they_are_kept_are_joined(cli: Cli) -> None:
    # Keeping each head's output changes how its layer adds them up, so the unpatched runs differ in the last place.
    found = cli("patch", NETWORK, *FEW, "--site", "attn.result", "--json").json
    assert {cell["layer"] for cell in found["top"]} == {0, 1}
    again = read(found, "held_out")
    assert again["clean"].dims == ("prompt",)
    model, held_out = load(NETWORK), build("repeated-sequences", load(NETWORK), 6, split="held-out")
    whole = activation_patching(model, held_out.pairs, held_out.metric, site="attn.z", by="head")
    for cell, effect in zip(found["top"], again["effect"].values):
        np.testing.assert_allclose(effect, whole["effect"].sel(layer=cell["layer"], head=cell["head"]), atol=1e-4)


def test_positions_are_not_looked_for_in_held_out_prompts_of_another_length(cli: Cli, empty_folder: Path) -> None:
    rows = []
    for i in range(16):
        clean = [(7 * i + j) % 50 for j in range(8 + i % 2)]
        corrupt = [*clean[:-3], 51, *clean[-2:]]
        rows.append({"clean": clean, "corrupted": corrupt, "answer": 5, "wrong": 6, "template": "ab"[i % 2]})
    (empty_folder / "pairs.json").write_text(json.dumps(rows))
    arguments = ("patch", NETWORK, "--pairs", "pairs.json", "--site", "resid_pre")
    done = cli(*arguments, "--by", "position")
    assert (done.code, done.out) == (2, "")
    assert "8 tokens" in done.err
    assert "positions are not the same places in both" in done.err
    found = cli(*arguments, "--by", "layer", "--json").json
    assert {found["discovery"]["tokens"], found["held_out"]["tokens"]} == {8, 9}
