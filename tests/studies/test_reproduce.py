"""The pipeline around a made-up finding: what it publishes, when it answers from the store, what it leaves behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import xarray
from tests.studies import fake
from tests.studies.fake_finding import measure

from headwork.errors import UserError
from headwork.findings import registry
from headwork.findings.registry import Finding
from headwork.report import pipeline
from headwork.report.pipeline import Outcome, reproduce
from headwork.store.results import Store
from headwork.studies.plan import plan

Ask = Callable[..., Outcome]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def ask(finding: Finding, store: Store, tmp_path: Path) -> Ask:
    """Reproduce the made-up finding into a folder of this name."""

    def run(out: str = "out", model: str | None = None, seeds: int = 1) -> Outcome:
        return reproduce(finding.id, model, seeds, tmp_path / out, store=store)

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_everything_is_published_and_the_next_call_finds_it(ask: Ask, finding: Finding, tmp_path: Path) -> None:
    first = ask()
    assert not first.from_store
    assert (first.folder, first.record.verdict) == (tmp_path / "out", "reproduced")
    files = contents(first.folder)
    assert set(files) == {"figures/effect.svg", "record.json", "report.html", "report.pdf", "results.h5"}
    assert json.loads(files["record.json"]) == first.record.model_dump(mode="json")
    with xarray.open_datatree(first.folder / "results.h5", engine="h5netcdf") as tree:
        leaves = {node.path.lstrip("/"): float(node.ds["copying"]) for node in tree.leaves}
    assert leaves.keys() == plan(finding, None, 1).tasks().keys()
    assert leaves["headline"] == leaves["followup/strong"] == fake.STRONG
    measure.measured.clear()
    second = ask("elsewhere/deeper")
    assert second.from_store
    assert not measure.measured
    assert contents(second.folder) == files
    assert second.record == first.record


def test_a_user_s_files_stay(ask: Ask, tmp_path: Path) -> None:
    mine = tmp_path / "out" / "figures" / "mine.svg"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    ask()
    assert mine.read_text() == "mine"
    assert (tmp_path / "out" / "record.json").exists()


def test_a_damaged_reproduction_is_made_again_from_its_runs(ask: Ask, store: Store) -> None:
    first = ask()
    entry = store.entries("reproduction")[0]
    path = entry.folder / "record.json"
    path.write_text(path.read_text().replace('"verdict":"reproduced"', '"verdict":"REPRODUCED"').replace("e", "f", 1))
    measure.measured.clear()
    second = ask("again")
    assert not second.from_store
    assert not measure.measured
    kept = {"created", "seconds"}
    assert second.record.model_dump(exclude=kept) == first.record.model_dump(exclude=kept)


def test_another_card_is_another_reproduction_of_the_same_runs(
    ask: Ask, finding: Finding, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ask()
    measure.measured.clear()
    stricter = fake.finding(card=fake.card(fake.claim(threshold=5.0)))
    monkeypatch.setitem(registry.FINDINGS, finding.id, stricter)
    second = ask()
    assert not second.from_store
    assert not measure.measured
    assert second.record.verdict == "partially reproduced"
    assert second.record.card_sha256 != first.record.card_sha256


def test_what_the_report_prints_of_a_network_counts(ask: Ask, zoo: Path) -> None:
    ask()
    config = zoo / "weak" / "config.json"
    values = json.loads(config.read_text())
    values["card"]["description"] = "described anew"
    config.write_text(json.dumps(values))
    measure.measured.clear()
    assert not ask().from_store
    assert not measure.measured


@pytest.mark.parametrize("which", ["code_hash", "library_versions"])
def test_other_code_or_libraries_make_another_report(ask: Ask, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    ask()
    changed = {"code_hash": lambda modules, data: "other", "library_versions": lambda names: {"typst": "0"}}
    monkeypatch.setattr(pipeline, which, changed[which])
    measure.measured.clear()
    assert not ask().from_store
    assert not measure.measured


def test_the_finding_s_notes_are_for_its_default_network(ask: Ask) -> None:
    default, other = (ask(out, model).folder / "report.html" for out, model in (("a", None), ("b", "zoo:wide")))
    assert "Its effect is" in default.read_text()
    assert "Its effect is" not in other.read_text()


def test_seeds_that_diverged_are_in_the_report(ask: Ask, zoo: Path) -> None:
    shutil.rmtree(zoo / "wide")
    training = {"seed": 0, "settings": {**fake.SETTINGS, "width": 8}, "diverged_at": 7}
    (fake.add(zoo, "wide", 1.0, training=training) / "weights.safetensors").unlink()
    outcome = ask(seeds=2)
    width = next(f for f in outcome.record.followups if f.factor == "width")
    assert [(one.value, one.verdict) for one in width.levels] == [("4", "reproduced"), ("8", "partially reproduced")]
    assert width.verdict == "partially reproduced"
    page = (outcome.folder / "report.html").read_text()
    assert "diverged at step" in page
    assert "followup/wide" in page
    with xarray.open_datatree(outcome.folder / "results.h5", engine="h5netcdf") as tree:
        assert "wide" not in tree["followup"].children
        assert "wide-s1" in tree["followup"].children


def test_an_interrupted_report_keeps_the_runs(ask: Ask, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("headwork.report.build.build", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ask()
    assert {entry.manifest["kind"] for entry in store.entries()} == {"run"}
    assert not list(store.root.rglob(".headwork-tmp-*"))
    measure.measured.clear()
    ask()
    assert not measure.measured


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("nothing may be measured")


@pytest.mark.parametrize(
    "asked, said",
    [
        ({"finding_id": "made-upp"}, "made-up"),
        ({"model": "zoo:stronk"}, "strong"),
        ({"model": "artifact:nanda"}, "nanda-induction"),
        ({"model": "nowhere/at/all"}, "There is no model folder nowhere/at/all"),
        ({"seeds": 0}, "--seeds is 0; it must be 1 or more"),
        ({"seeds": 99}, "--seeds is 99; the zoo has 3"),
        ({"device": "tpu"}, "Unknown device 'tpu'"),
        ({"out": "file"}, "which is a file; it must be a folder"),
        ({"out": "file/below"}, "Cannot write"),
    ],
)
def test_what_cannot_be_done_is_said_before_any_work(
    finding: Finding, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, object], said: str
) -> None:
    monkeypatch.setattr(pipeline, "execute", refuse)
    (tmp_path / "file").write_text("a user's file")
    values = {"finding_id": finding.id, "model": None, "seeds": 1, "out": "out", **asked}
    with pytest.raises(UserError) as error:
        reproduce(**{**values, "out": tmp_path / str(values["out"])}, store=store)  # type: ignore[arg-type]
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert not store.root.exists()
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "file").read_text() == "a user's file"


def test_a_folder_without_permission_is_said_before_any_work(
    finding: Finding, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "execute", refuse)
    monkeypatch.setattr(pipeline.os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="nothing can be written"):
        reproduce(finding.id, None, 1, tmp_path, store=store)


def test_a_device_that_is_not_there(finding: Finding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="no CUDA device"):
        reproduce(finding.id, None, 1, tmp_path / "out", device="cuda")
