"""`headwork lens` publishes what the lens reads, on one example and over prompts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray
from tests.cli.conftest import Cli

from headwork.methods.logit_lens import logit_lens
from headwork.methods.translators import load_translators
from headwork.model.sources import load
from headwork.tasks.registry import build

NETWORK = "zoo:attn-only-2l"
FEW = ("--prompts", "6")


def test_every_layer_is_read_where_the_answer_is(cli: Cli, empty_folder: Path) -> None:
    found = cli("lens", NETWORK, *FEW, "--json").json
    folder = empty_folder / "headwork-out" / "lens-attn-only-2l"
    names = [f"{stem}.{kind}" for stem in ("example", "kl", "answer") for kind in ("svg", "png")]
    assert set(found["files"]) == {*names, "results.h5", "summary.json"}
    assert all(Path(path).parent == folder and Path(path).is_file() for path in found["files"].values())
    model = load(NETWORK)
    prompts = build("repeated-sequences", model, 6, split="held-out")
    assert prompts.answers is not None
    targets = prompts.pairs.clean.roll(-1, 1)
    targets[:, -1] = prompts.answers
    slow = logit_lens(model, prompts.pairs.clean, targets=targets).isel(position=-1)
    with xarray.open_dataset(found["files"]["results.h5"], group="logit_lens", engine="h5netcdf") as opened:
        np.testing.assert_allclose(opened["kl"].isel(position=-1), slow["kl"], atol=1e-5)
    for row in found["layers"]["logit_lens"]:
        here = slow.sel(site=row["site"])
        assert row["kl"]["value"] == pytest.approx(float(here["kl"].mean()), abs=1e-5)
        assert row["logprob"]["value"] == pytest.approx(float(here["target_logprob"].mean()), abs=1e-5)
        assert row["median_rank"] == float(here["rank"].median())
        assert row["first"] == pytest.approx(float((here["rank"] == 0).mean()))
    limited = cli("lens", NETWORK, *FEW, "--memory", "1MB", "--out", "limited", "--json").json
    for one, other in zip(found["layers"]["logit_lens"], limited["layers"]["logit_lens"]):
        assert one["logprob"]["value"] == pytest.approx(other["logprob"]["value"], abs=1e-5)
    assert found["layers"]["logit_lens"][-1]["kl"]["value"] == pytest.approx(0.0, abs=1e-5)


def test_a_tuned_lens_is_trained_written_and_read_again(cli: Cli, empty_folder: Path) -> None:
    trained = cli("lens", NETWORK, *FEW, "--train-tuned", "translators", "--steps", 2, "--json").json
    assert trained["training"]["steps"] == 2
    assert load_translators(empty_folder / "translators", load(NETWORK)).sites[0] == "blocks.0.resid_pre"
    again = cli("lens", NETWORK, *FEW, "--tuned", "translators", "--out", "again", "--json").json
    assert set(again["layers"]) == {"logit_lens", "tuned_lens"}
    for one, other in zip(trained["layers"]["tuned_lens"], again["layers"]["tuned_lens"]):
        assert one["kl"]["value"] == pytest.approx(other["kl"]["value"], abs=1e-6)
    assert again["layers"]["logit_lens"][0] != again["layers"]["tuned_lens"][0]


def test_a_pair_of_ids_is_read_and_shown(cli: Cli) -> None:
    shown = cli("lens", NETWORK, "--clean", "5 3 9 5", "--corrupt", "5 3 9 6", "--answer", "7", "--wrong", "8")
    assert shown.code == 0
    assert "log-probability of the answer" in shown.out
    assert "blocks.1.resid_post" in shown.out


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("--tuned", "nowhere"), "There is no folder nowhere"),
        (("--tuned", "a", "--train-tuned", "b"), "read or trained, not both"),
        (("--train-tuned", "."), "is there already"),
        (("--train-tuned", "file/b"), "file"),
        (("--train-tuned", "b", "--steps", "0"), "at least one step"),
        (("--train-tuned", "b", "--clean", "1 2", "--corrupt", "1 3"), "take a task or a file"),
        (("--task", "lens"), "Unknown task"),
        (("--memory", "100kB"), "The lens on one prompt of 64 tokens needs about"),
    ],
)
def test_what_cannot_be_read_is_refused(
    refused: Cli, empty_folder: Path, arguments: tuple[str, ...], said: str
) -> None:
    (empty_folder / "file").write_text("mine")
    assert said in refused("lens", NETWORK, *arguments).err
