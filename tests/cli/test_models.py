"""`models`, `models show`, `models import` and `sites`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests import foreign
from tests.architectures import ARCHITECTURES, network
from tests.cli.conftest import Cli

from headwork.model.card import ModelCard
from headwork.model.checkpoints import load, save
from headwork.model.sites import resolve, sites
from headwork.model.sources import zoo_names

CARD = ModelCard(
    name="toy",
    description="a toy",
    training={"recipe": "toys", "seed": 3, "loss": 1.25, "curve": [[0, 4.0]]},
    data={"generator": "repeated-sequences", "segment": [2, 4]},
    inferred=("activation = relu: the file does not say",),
)


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return save(network("llama").float(), tmp_path / "toy", CARD)


def test_models_lists_the_zoo_and_the_published_ones(cli: Cli) -> None:
    found = cli("models", "--json").json
    assert [m["spec"] for m in found["zoo"]] == [f"zoo:{name}" for name in zoo_names()]
    for model in found["zoo"]:
        assert model["parameters"] * 4 < model["bytes"]
    published = {m["spec"]: m for m in found["artifacts"]}
    assert published["artifact:nanda-induction"]["licence"] == "none stated"
    printed = cli("models").out
    assert all(spec in printed for spec in published)


def test_a_published_network_is_here_once_its_file_is(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADWORK_ARTIFACTS", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def here() -> dict[str, bool]:
        return {m["spec"]: m["here"] for m in cli("models", "--json").json["artifacts"]}

    assert not any(here().values())
    shown = cli("models", "show", "artifact:nanda-induction", "--json").json  # nothing is fetched to show it
    assert (shown["architecture"], shown["parameters"], shown["sites"]) == (None, None, None)
    (tmp_path / "nanda-grokking").mkdir()
    (tmp_path / "nanda-grokking" / "induction_head_infinite.pth").touch()
    assert here()["artifact:nanda-induction"]


def test_show_prints_the_card(cli: Cli, toy: Path) -> None:
    found = cli("models", "show", toy, "--json").json
    assert found["training"]["curve"] == [[0, 4.0]]
    assert found["architecture"]["n_kv_heads"] == 2
    assert found["parameters"] == sum(p.numel() for p in load(toy).parameters())
    assert found["sites"] == len(sites(ARCHITECTURES["llama"]))
    printed = cli("models", "show", toy).out
    for part in ("a toy", "recipe toys", "seed 3", "segment 2–4", CARD.inferred[0], found["sha256"]):
        assert part in printed


def test_sites_collapses_layers_and_sizes_axes(cli: Cli, toy: Path) -> None:
    found = cli("sites", toy, "--json").json["sites"]
    assert [name for site in found for name in site["names"]] == sorted(
        sites(ARCHITECTURES["llama"]), key=[name for site in found for name in site["names"]].index
    )
    keys = next(site for site in found if site["pattern"] == "blocks.{0–1}.attn.k")
    assert keys["names"] == ["blocks.0.attn.k", "blocks.1.attn.k"]
    assert [(axis["name"], axis["size"]) for axis in keys["axes"]] == [
        ("batch", None),
        ("pos", None),
        ("kv_head", 2),
        ("d_head", 4),
    ]
    printed = cli("sites", toy).out
    assert "blocks.{0–1}.attn.k" in printed
    assert "kv_head 2" in printed


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_sites_agree_with_what_a_run_has(cli: Cli, tmp_path: Path, name: str) -> None:
    model = network(name).float()
    spec = save(model, tmp_path / "m", CARD)
    config = model.config
    for site in cli("sites", spec, "--json").json["sites"]:
        assert resolve(config, site["names"]) == site["names"]
        for axis in site["axes"]:
            assert (axis["size"] is None) == (axis["name"] in ("batch", "pos", "query", "key"))


def test_import_writes_a_folder_and_says_what_it_assumed(cli: Cli, tmp_path: Path) -> None:
    torch.save({"model": foreign.nanda_state()}, tmp_path / "theirs.pth")
    out = tmp_path / "ours"
    arguments = ("models", "import", tmp_path / "theirs.pth", "--layout", "nanda", "--out", out)
    printed = cli(*arguments).out
    assert str(out) in printed
    assert "activation = relu" in printed
    again = cli(*arguments, "--json").json
    assert again["folder"] == str(out)
    assert load(out).card.sha256 == again["sha256"]  # type: ignore[union-attr] – a loaded model has a card


def test_import_takes_settings_and_data_from_files(cli: Cli, tmp_path: Path) -> None:
    torch.save({"model": foreign.nanda_state()}, tmp_path / "theirs.pth")
    (tmp_path / "config.json").write_text(json.dumps({"act_type": "GeLU"}))
    (tmp_path / "data.json").write_text(json.dumps({"generator": "mine"}))
    arguments = ("--config", tmp_path / "config.json", "--data", tmp_path / "data.json", "--out", "ours", "--json")
    found = cli("models", "import", tmp_path / "theirs.pth", "--layout", "nanda", *arguments).json
    assert found["inferred"] == []
    model = load(found["folder"])
    assert model.config.activation == "gelu"
    assert model.card is not None
    assert model.card.data == {"generator": "mine"}
