"""Runs are measured once, whole, and under an address that all that can change them changes."""

from __future__ import annotations

import dataclasses
import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import xarray
from tests.studies import fake
from tests.studies.fake_finding import measure

from headwork.errors import UserError
from headwork.findings.registry import Finding
from headwork.model.sources import load, locate
from headwork.store.address import address
from headwork.store.results import Store
from headwork.store.temporary import PREFIX
from headwork.studies import runs
from headwork.studies.plan import Task, plan
from headwork.studies.runs import DATASET, Run, execute, run_inputs


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def nobody(stage: str, share: float) -> None:
    pass


def done(
    finding: Finding, store: Store, seeds: int = 2, progress: Callable[[str, float], None] = nobody
) -> dict[str, Run]:
    return execute(finding, plan(finding, None, seeds).tasks(), store, "cpu", progress)


def unfinished(store: Store) -> list[Path]:
    return list(store.root.rglob(f"{PREFIX}*"))


def test_networks_with_two_roles_are_measured_once(finding: Finding, store: Store) -> None:
    found = done(finding, store)
    assert set(found) == set(plan(finding, None, 2).tasks())
    # The headline serves in two follow-ups, the weak control in one.
    assert sorted(measure.measured) == ["strong", "strong", "strong-s1", "weak", "weak-s1", "wide", "wide-s1"]
    assert found["headline"].address == found["followup/strong"].address
    assert found["control/weak"].address == found["followup/weak"].address
    assert found["control/untrained"].address != found["headline"].address
    assert len(store.entries("run")) == 7
    assert not unfinished(store)


def test_a_second_call_computes_nothing(finding: Finding, store: Store) -> None:
    first = done(finding, store)
    measure.measured.clear()
    second = done(finding, store)
    assert not measure.measured
    assert second == first
    done(finding, store, 3)
    assert sorted(measure.measured) == ["strong-s2", "weak-s2", "wide-s2"]


def test_a_run_keeps_what_was_measured(finding: Finding, store: Store) -> None:
    found = done(finding, store)["followup/weak-s1"]
    expected = measure.measure(load("zoo:weak-s1"), dict(finding.settings))
    xarray.testing.assert_identical(found.dataset(), expected.dataset)
    assert (found.heads, found.notes, found.data) == (expected.heads, expected.notes, expected.data)
    assert (found.data_note, found.data_status) == (expected.data_note, expected.data_status)
    assert found.seconds > 0


def test_fresh_weights_do_not_depend_on_the_trained_ones(finding: Finding, store: Store) -> None:
    found = done(finding, store)
    strength = float(found["control/untrained"].dataset()["copying"])
    assert strength != pytest.approx(fake.STRONG)
    again = execute(finding, {"a": Task("a", locate("zoo:wide"), untrained=True)}, store, "cpu", nobody)
    assert float(again["a"].dataset()["copying"]) == strength


def test_the_address_covers_all_that_can_change_the_result(
    finding: Finding, zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Task("headline", locate("zoo:strong"))

    def at(finding: Finding = finding, task: Task = task, device: str = "cpu") -> str:
        return address("run", run_inputs(finding, {"a": task}, device)["a"])

    card = dataclasses.replace(task.located.card, data={"generator": "other"})
    architecture = dataclasses.replace(fake.ARCHITECTURE, rotary_base=50.0)
    addresses = [
        at(),
        at(fake.finding(settings={**finding.settings, "seed": 1})),
        at(fake.finding(id="other")),
        at(task=Task("b", locate("zoo:wide"))),
        at(task=dataclasses.replace(task, untrained=True)),
        at(task=Task("b", dataclasses.replace(task.located, card=card))),
        at(task=Task("b", dataclasses.replace(task.located, architecture=architecture))),
        at(device="cuda"),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(runs, "code_hash", lambda modules: "other code")
        addresses.append(at())
    with monkeypatch.context() as patch:
        patch.setattr(runs, "library_versions", lambda names: {"torch": "0.0"})
        addresses.append(at())
    assert len(set(addresses)) == len(addresses)
    # Names, places and what the card tells of training change nothing.
    told = dataclasses.replace(task.located.card, name="x", training={})
    assert at(task=Task("b", dataclasses.replace(task.located, card=told, spec="elsewhere", path=None))) == at()


def test_the_code_of_the_procedure_and_of_all_it_stands_on_counts(
    monkeypatch: pytest.MonkeyPatch, finding: Finding
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(runs, "code_hash", lambda modules: asked.append(modules) or "code")
    run_inputs(finding, {"headline": Task("headline", locate("zoo:strong"))}, "cpu")
    assert asked == [["tests.studies.fake_finding.measure", "headwork.studies.runs"]]


@pytest.mark.parametrize("same_size", [False, True])
def test_damaged_results_are_noticed_and_measured_again(finding: Finding, store: Store, same_size: bool) -> None:
    first = done(finding, store)
    path = first["headline"].folder / DATASET
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + (bytes([whole[middle] ^ 1]) + whole[middle + 1 :] if same_size else b""))
    measure.measured.clear()
    second = done(finding, store)
    assert measure.measured == ["strong"]
    xarray.testing.assert_identical(second["headline"].dataset(), first["followup/strong"].dataset())


def test_an_error_stops_the_others_and_keeps_what_is_finished(
    finding: Finding, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped: list[str] = []

    def interrupt(model: str, progress: Callable[[float], None]) -> None:
        if model == "weak":
            raise ArithmeticError("the weak one fails")
        if model != "strong":
            try:
                for _ in range(3000):
                    progress(0.5)
                    time.sleep(0.01)
            except KeyboardInterrupt:
                stopped.append(model)
                raise

    names = ("headline", "followup/strong-s1", "control/weak", "followup/wide", "followup/wide-s1")
    tasks = {name: task for name, task in plan(finding, None, 2).tasks().items() if name in names}
    tasks = {name: tasks[name] for name in names}
    with monkeypatch.context() as patch:
        patch.setattr(measure, "interrupt", interrupt)
        with pytest.raises(ArithmeticError, match="the weak one fails"):
            execute(finding, tasks, store, "cpu", nobody)
    assert "strong-s1" in stopped
    assert measure.measured == ["strong"]
    assert len(store.entries("run")) == 1
    assert not unfinished(store)
    measure.measured.clear()
    execute(finding, tasks, store, "cpu", nobody)
    assert sorted(measure.measured) == ["strong-s1", "weak", "wide", "wide-s1"]


def test_ctrl_c_stops_all_and_keeps_what_is_finished(
    finding: Finding, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, stopped = threading.Barrier(2, timeout=60), []
    # A runner in the background may have been started with SIGINT ignored.
    as_found = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt(model: str, progress: Callable[[float], None]) -> None:
        if model != "strong":
            try:
                if started.wait() == 0:
                    os.kill(os.getpid(), signal.SIGINT)
                for _ in range(3000):
                    progress(0.5)
                    time.sleep(0.01)
            except KeyboardInterrupt:
                stopped.append(model)
                raise

    tasks = plan(finding, None, 2).tasks()
    del tasks["control/untrained"]
    before = torch.get_num_threads()
    with monkeypatch.context() as patch:
        patch.setattr(measure, "interrupt", interrupt)
        try:
            with pytest.raises(KeyboardInterrupt):
                execute(finding, tasks, store, "cpu", nobody)
        finally:
            signal.signal(signal.SIGINT, as_found)
    assert len(stopped) == 2
    assert measure.measured == ["strong"]
    assert len(store.entries("run")) == 1
    assert not unfinished(store)
    assert torch.get_num_threads() == before
    assert set(execute(finding, tasks, store, "cpu", nobody)) == set(tasks)


def test_one_worker_and_two_give_the_same(finding: Finding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = done(finding, Store(tmp_path / "two"))
    monkeypatch.setattr(runs, "_WORKERS", 1)
    one = done(finding, Store(tmp_path / "one"))
    assert {name: run.address for name, run in one.items()} == {name: run.address for name, run in two.items()}
    for name in one:
        xarray.testing.assert_identical(one[name].dataset(), two[name].dataset())


def test_torch_has_as_many_threads_afterwards_as_before(finding: Finding, store: Store) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        done(finding, store)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_progress_rises_to_one_and_names_the_run(finding: Finding, store: Store) -> None:
    seen: list[tuple[str, float]] = []
    done(finding, store, 1, lambda stage, share: seen.append((stage, share)))
    shares = [share for _, share in seen]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    assert {stage for stage, _ in seen if stage.startswith("headline")} == {
        "headline: start",
        "headline: done",
        "headline: stored",
    }


def test_an_unusable_network_is_the_user_s_error(finding: Finding, store: Store, zoo: Path) -> None:
    weights = zoo / "strong" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(UserError, match="weights"):
        done(finding, store)
    assert "strong" not in measure.measured
    assert not unfinished(store)


def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(finding: Finding, store: Store) -> None:
    """A limit on file sizes below the results' own stands for the disk that fills while they are written."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(UserError, match="Cannot write"):
            done(finding, store)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not store.entries("run")
    assert not unfinished(store)
    assert len(done(finding, store)) > 1
