"""`headwork circuit` finds the induction circuit of the zoo's network, and says how faithful it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
from tests.cli.conftest import Cli
from tests.tasks.words import reading_network

from headwork.analyses.circuit import _drawn
from headwork.analyses.circuit_picture import circuit_picture
from headwork.methods.circuit import Circuit
from headwork.methods.circuit_measures import faithfulness
from headwork.model.card import ModelCard
from headwork.model.checkpoints import save
from headwork.model.sources import load
from headwork.tasks.registry import build

NETWORK = "zoo:attn-only-2l"
FEW = ("--prompts", "6")


def slow_faithfulness(found: dict[str, Any], value: str = "counterfactual") -> float:
    """The circuit of the summary's edge list, measured anew on held-out prompts."""
    model = load(NETWORK)
    circuit = Circuit.from_names(model.config, [edge["edge"] for edge in found["edges"]])
    prompts = build("repeated-sequences", model, 6, split="held-out")
    return float(faithfulness(model, prompts.pairs, prompts.metric, circuit, value=value)["faithfulness"])  # type: ignore[arg-type]


def test_the_circuit_found_by_default_is_the_induction_circuit(cli: Cli, empty_folder: Path) -> None:
    found = cli("circuit", NETWORK, *FEW, "--json").json
    folder = empty_folder / "headwork-out" / "circuit-attn-only-2l"
    names = ("circuit.svg", "circuit.png", "curve.svg", "curve.png", "results.h5", "summary.json")
    assert found["files"] == {name: str(folder / name) for name in names}
    measured = found["measured"]
    assert measured["faithfulness"]["value"] == pytest.approx(slow_faithfulness(found), abs=1e-4)
    assert measured["faithfulness"]["value"] > 0.7
    assert measured["random"]["faithfulness"] < 0.2
    with xarray.open_dataset(found["files"]["results.h5"], group="random_circuits", engine="h5netcdf") as opened:
        assert "on paths" in opened.attrs["edges"]
    assert 0 < measured["stability"]["jaccard"] <= 1
    assert len(measured["curve"]) == 10
    assert measured["curve"][-1]["faithfulness"] == pytest.approx(1.0)
    edges = {edge["edge"]: edge for edge in found["edges"]}
    assert {"embed->0.3<v>", "1.3->logits"} <= set(edges)  # from the previous-token head to the induction heads
    assert any(name.startswith("0.3->1.") and name.endswith("<k>") for name in edges)
    assert len(edges) == found["circuit"]["size"]
    assert edges["embed->0.3<v>"]["effect"]["value"] > 1
    six = {name for name in found["choices"] if name.startswith("ablation_")}
    assert six == {f"ablation_{n}" for n in ("granularity", "component", "value", "positions", "direction", "set")}
    with xarray.open_dataset(found["files"]["results.h5"], group="scores", engine="h5netcdf") as opened:
        assert int(opened["in_circuit"].sum()) == len(edges)
        assert np.isnan(opened["score"].values[~opened["visible"].values.astype(bool)]).all()
    diagram = (folder / "circuit.svg").read_text()
    assert "Circuit diagram of" in diagram


@pytest.mark.parametrize(
    "arguments, size",
    [
        (
            (
                "--method",
                "eap",
                "--edges",
                "9",
                "--selection",
                "greedy",
                "--order",
                "lowest",
                "--draw",
                "3",
                "--ablation",
                "mean",
            ),
            9,
        ),
        (("--method", "acdc", "--threshold", "0.3"), None),
    ],
)
def test_every_choice_is_followed_and_recorded(cli: Cli, arguments: tuple[str, ...], size: int | None) -> None:
    found = cli("circuit", NETWORK, *FEW, *arguments, "--json").json
    given = dict(zip(arguments[::2], arguments[1::2]))
    value = given.get("--ablation", "counterfactual")
    assert found["circuit"]["size"] == len(found["edges"]) == (size or len(found["edges"]))
    assert found["choices"]["method"] == given["--method"]
    assert found["choices"]["ablation_value"] == value
    assert found["measured"]["faithfulness"]["value"] == pytest.approx(slow_faithfulness(found, value), abs=1e-4)
    if "--threshold" in given:
        assert found["choices"]["size"] == f"--threshold {float(given['--threshold'])}"
        assert all(abs(edge["score"]) >= float(given["--threshold"]) for edge in found["edges"])
    if "--draw" in given:
        assert found["drawn"] == 3
    assert (found["measured"]["curve"] is None) == (given["--method"] == "acdc")


def test_grouped_keys_and_values_are_drawn_and_shown(cli: Cli, tmp_path: Path) -> None:
    words = save(reading_network(), tmp_path / "words", ModelCard(name="words"))
    shown = cli("circuit", words, "--task", "subject-verb", "--prompts", 8, "--edges", 30)
    assert shown.code == 0, shown.err
    assert "30 of " in shown.out
    assert "(10 of 30; all in the summary)" in shown.out


def test_a_pair_has_no_held_out_prompts(cli: Cli) -> None:
    pair = ("--clean", "5 3 9 5 7 1 2 3", "--corrupt", "5 3 9 5 7 1 2 4")
    found = cli("circuit", NETWORK, *pair, "--edges", "20", "--json").json
    assert found["held_out"] is None
    assert found["measured"]["stability"] is None
    assert found["measured"]["faithfulness"]["low"] is None
    assert isinstance(found["measured"]["faithfulness"]["value"], float)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("--method", "eapig"), "eap-ig"),
        (("--ablation", "means"), "mean"),
        (("--selection", "top"), "top-n"),
        (("--order", "abs"), "absolute"),
        (("--edges", "3", "--threshold", "1"), "one of them"),
        (("--edges", "0"), "1 or more"),
        (("--edges", "82"), "--edges is 82; this network has 81"),
        (("--threshold", "-1"), "above 0"),
        (("--threshold", "1", "--order", "lowest"), "give --edges"),
        (("--threshold", "1", "--selection", "greedy"), "give --edges"),
        (("--threshold", "nan"), "above 0"),
        (("--method", "acdc", "--edges", "3"), "--threshold"),
        (("--method", "masks", "--threshold", "3"), "--edges"),
        (("--steps", "0"), "--steps is 0"),
        (("--memory", "1kB"), "the limit is"),
    ],
)
def test_what_cannot_be_found_is_refused(refused: Cli, arguments: tuple[str, ...], said: str) -> None:
    assert said in refused("circuit", NETWORK, *arguments).err


def test_a_threshold_that_no_edge_passes_names_the_largest_score(cli: Cli, empty_folder: Path) -> None:
    done = cli("circuit", NETWORK, "--threshold", "1e9", "--prompts", "2")
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines()[-1].startswith("No edge passes the threshold 1000000000.0; the largest score is ")
    assert not list(empty_folder.iterdir())


def test_the_diagram_shows_edges_of_the_largest_scores_and_not_those_chosen_by_what_it_measures() -> None:
    model = load(NETWORK)
    prompts = build("repeated-sequences", model, 3)
    change = np.array([[-0.1, -0.2, -0.1], [-5.0, -4.0, -6.0], [-3.0, -2.0, -3.0]])[:, None]
    parts = ["embed->0.3<v>", "0.3->1.0<k>", "1.0->logits"]
    without = xarray.Dataset({"change_by_prompt": (("part", "set", "prompt"), change)}, coords={"part": parts})
    drawn = _drawn(without, prompts, 2)
    assert drawn.shown == tuple(parts[:2])
    assert drawn.effects["1.0->logits"].value == pytest.approx(8 / 3)
    picture = circuit_picture(model.config, prompts, Circuit.from_names(model.config, parts), drawn, "eap")
    assert "Largest: 0.3->1.0<k>, 5.00" in picture.alt
