"""The real finding, end to end: from the network in the package to seven pages, and the controls that must fail."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray
from pypdf import PdfReader
from scipy import stats

from headwork.findings.induction_heads.measure import measure
from headwork.findings.induction_heads.prompts import draw
from headwork.findings.registry import finding
from headwork.model.card import ModelCard
from headwork.model.checkpoints import save
from headwork.model.initialise import initialise
from headwork.model.sources import load
from headwork.report.pipeline import Outcome, reproduce
from headwork.store.results import Store
from headwork.studies.plan import plan
from headwork.tasks.repeated_sequences import RepeatedSequences

ID = "induction-heads"
Ask = Callable[[str | None], Outcome]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("shared") / "store")


@pytest.fixture(scope="module")
def default(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The default reproduction with one seed, made once."""
    return reproduce(ID, None, 1, tmp_path_factory.mktemp("default") / "out", store=store)


@pytest.fixture
def ask(default: Outcome, store: Store, tmp_path: Path) -> Ask:
    """The verdict on another network; its controls and follow-ups were measured for the default one."""
    return lambda spec: reproduce(ID, spec, 1, tmp_path / "out", store=store)


@pytest.fixture(scope="module")
def headline(default: Outcome) -> xarray.Dataset:
    with xarray.open_datatree(default.folder / "results.h5", engine="h5netcdf") as tree:
        return tree["headline"].to_dataset().load()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_default_network_reproduces_the_finding(default: Outcome) -> None:
    record = default.record
    assert not default.from_store
    assert record.verdict == "reproduced"
    assert record.expected is None
    assert [(c.name, c.verdict, c.as_expected) for c in record.controls] == [
        ("untrained", "not reproduced", True),
        ("one layer", "not reproduced", True),
        ("fixed period", "not reproduced", True),
    ]
    assert [(f.factor, [(one.value, one.verdict) for one in f.levels], f.verdict) for f in record.followups] == [
        ("depth", [("1", "not reproduced"), ("2", "reproduced"), ("3", "reproduced")], "reproduced"),
        ("position encoding", [("rotary", "reproduced"), ("learned", "reproduced")], "reproduced"),
    ]
    assert all(cell.verdict == "reproduced" for cell in record.grid)
    assert [cell.choice["ablation"] for cell in record.grid if cell.primary] == [record.settings["ablation"]]
    assert record.failures == []


def test_its_files(default: Outcome) -> None:
    files = contents(default.folder)
    assert {"record.json", "report.html", "report.pdf", "results.h5"} <= files.keys()
    assert len([name for name in files if name.startswith("figures/") and name.endswith(".svg")]) >= 5
    assert len(PdfReader(default.folder / "report.pdf").pages) == 7
    assert json.loads(files["record.json"])["verdict"] == "reproduced"
    assert b"http://" not in files["report.html"].replace(b"http://www.w3.org/", b"")
    with xarray.open_datatree(default.folder / "results.h5", engine="h5netcdf") as tree:
        groups = {node.path.lstrip("/") for node in tree.leaves}
    assert groups == plan(finding(ID), None, 1).tasks().keys()


def test_verdicts_rest_on_the_published_numbers(default: Outcome, headline: xarray.Dataset) -> None:
    """Every sub-claim over sequences, recomputed from results.h5: held-out sequences are the units, paired."""
    held_out = finding(ID).settings["held_out"]
    card = {claim.id: claim for claim in finding(ID).card.subclaims}
    checked = 0
    for result in default.record.headline.claims:
        claim = card[result.id]
        if claim.replicate is None or claim.ratio_of:
            continue
        values = headline[claim.quantity].values
        if claim.null and claim.null in headline:
            values = values - headline[claim.null].values
        values = values[~np.isnan(values)]
        found = result.difference or result.estimate
        assert found.unit == "sequences"
        assert found.n == len(values) == held_out
        low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
        assert (found.value, found.low, found.high) == pytest.approx((values.mean(), low, high))
        checked += 1
    assert checked >= 5


def test_what_chose_the_heads_does_not_score_them(default: Outcome, headline: xarray.Dataset) -> None:
    """The sequences shown and scored are the held-out ones; none of them served to choose."""
    settings = finding(ID).settings
    distribution = RepeatedSequences.from_dict(default.record.data)
    prompts = draw(distribution, settings["discovery"], settings["held_out"], settings["seed"])
    shown = headline["tokens"].values
    assert (shown == prompts.held_out.tokens.numpy()[headline["case_sequence"].values]).all()
    discovery = {tuple(row) for row in prompts.discovery.tokens.tolist()}
    assert not discovery & {tuple(row) for row in prompts.held_out.tokens.tolist()}
    judged = {claim.quantity for claim in finding(ID).card.subclaims} | {c.null for c in finding(ID).card.subclaims}
    assert not any(name and name.startswith("discovery") for name in judged)


def test_a_run_alone_gives_what_two_at_once_gave(headline: xarray.Dataset) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        alone = measure(load("zoo:attn-only-2l"), finding(ID).settings)
    finally:
        torch.set_num_threads(before)
    assert set(alone.dataset) == set(headline)
    for name, values in alone.dataset.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(values, headline[name], rtol=1e-3, atol=1e-4, err_msg=str(name))


def test_the_next_call_answers_from_the_store_without_torch(default: Outcome, store: Store, tmp_path: Path) -> None:
    program = """
import sys, json
from pathlib import Path
from headwork.report.pipeline import reproduce
from headwork.store.results import Store
done = reproduce(sys.argv[1], None, 1, Path(sys.argv[2]), store=Store(Path(sys.argv[3])))
heavy = [name for name in ("torch", "matplotlib", "xarray", "scipy") if name in sys.modules]
print(json.dumps({"from_store": done.from_store, "seconds": done.seconds, "heavy": heavy}))
"""
    out = tmp_path / "elsewhere"
    done = subprocess.run(
        [sys.executable, "-c", program, ID, out, store.root], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    sys.stdout.write(f"answered from the store in {answer['seconds']:.2f} s\n")
    assert answer["from_store"]
    assert answer["heavy"] == []
    assert contents(out) == contents(default.folder)


def decisive(outcome: Outcome) -> dict[str, str]:
    return {claim.id: claim.verdict for claim in outcome.record.headline.claims if claim.central}


@pytest.mark.parametrize("spec", ["zoo:attn-only-1l", "zoo:attn-only-1l-fixed-period"])
def test_one_layer_is_not_enough_as_expected(ask: Ask, spec: str) -> None:
    outcome = ask(spec)
    assert (outcome.record.verdict, outcome.record.expected) == ("not reproduced", "not reproduced")
    assert decisive(outcome)["advantage"] == "not reproduced"
    assert len(outcome.record.controls) == 2
    assert all(control.as_expected for control in outcome.record.controls)
    assert any("no network with these settings" in line for line in outcome.record.failures)


def test_an_untrained_network_does_not_reproduce_it(ask: Ask, tmp_path: Path) -> None:
    model = load("zoo:attn-only-2l")
    assert model.card is not None
    save(initialise(model.config, 7), tmp_path / "fresh", ModelCard(name="fresh", data=model.card.data))
    outcome = ask(str(tmp_path / "fresh"))
    assert outcome.record.verdict == "not reproduced"
    assert decisive(outcome)["advantage"] == "not reproduced"
    assert outcome.record.followups == []
    assert len(PdfReader(outcome.folder / "report.pdf").pages) >= 7


@pytest.mark.artifacts
def test_the_authors_network_shows_it(ask: Ask, artifacts: Path) -> None:
    outcome = ask("artifact:nanda-induction")
    assert outcome.record.verdict in ("reproduced", "partially reproduced")
    assert all(control.as_expected for control in outcome.record.controls)


@pytest.mark.artifacts
def test_the_authors_overfitted_network_does_not(ask: Ask, artifacts: Path) -> None:
    outcome = ask("artifact:nanda-induction-finite")
    assert outcome.record.verdict == "not reproduced"
    assert {"advantage", "ablation-cost"} <= {id for id, v in decisive(outcome).items() if v == "not reproduced"}
