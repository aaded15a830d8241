"""The benchmark's pieces of work, its count of operations, and what it keeps of an interrupted run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.measure import Where, measure, sides
from benchmarks.ours import WORKS, load
from benchmarks.rows import ROWS
from benchmarks.serve import Job, setting_from, setting_to
from benchmarks.setting import FULL, QUICK, late, network_name, read_prompts, write
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import __main__ as command
from benchmarks import products
from headwork.methods.graph import graph


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    for setting in (QUICK, late(QUICK)):
        write(setting, folder)
    return folder


@pytest.fixture(scope="module")
def job(work: Path) -> Job:
    return Job(load(work / network_name(QUICK.size), "cpu"), read_prompts(QUICK, work), QUICK, {"rounds": 1})


def patched(job: Job, site: str, layer: int, where: tuple[Any, ...]) -> np.ndarray:
    """The metric of the corrupt run with one clean piece put in, by a whole run."""
    from headwork.engine.run import run

    class Put:
        def given(self, site: str) -> None:
            return None

        def wants(self, name: str) -> bool:
            return name == f"blocks.{layer}.{site}"

        def __call__(self, name: str, value: torch.Tensor) -> torch.Tensor:
            if self.wants(name):
                value = value.clone()
                value[where] = clean[where]
            return value

    p = job.prompts
    clean = run(job.model, p.clean, f"blocks.{layer}.{site}")[f"blocks.{layer}.{site}"]
    with torch.no_grad():
        logits = job.model(p.corrupt, Put())[:, -1]
    rows = torch.arange(len(logits))
    return (logits[rows, p.correct] - logits[rows, p.wrong]).numpy()


def test_the_sweeps_are_those_of_whole_runs_with_clean_pieces(job: Job) -> None:
    every = slice(None)
    heads, residual = WORKS["heads"](job).values["patched"], WORKS["residual"](job).values["patched"]
    assert heads.shape == (2, 2, 3)
    assert residual.shape == (2, 6, 3)
    for layer in range(2):
        for h in range(2):
            np.testing.assert_allclose(heads[layer, h], patched(job, "attn.z", layer, (every, every, h)), atol=1e-6)
        for p in range(6):
            np.testing.assert_allclose(residual[layer, p], patched(job, "resid_pre", layer, (every, p)), atol=1e-6)


def test_edge_scores_and_cache_are_measured(job: Job) -> None:
    assert WORKS["eap"](job).notes["edges"] == graph(job.model.config).edges
    found, other = WORKS["eap"](job).values["scores"], WORKS["eap-ig"](job).values["scores"]
    assert not np.allclose(found, other, equal_nan=True)
    notes = WORKS["cache"](job).notes
    assert set(notes["medians"]) == {"bare", "cached", "all"}
    # Two embeddings, seventeen sites of each block, the final norm's two.
    assert notes["sites"]["cached"] == 2 + 2 * 17 + 2


def test_pairs_differ_from_the_stated_position_on(work: Path) -> None:
    for setting in (QUICK, late(QUICK)):
        p = read_prompts(setting, work)
        assert (p.clean == p.corrupt).tolist() == [[True] * setting.shared + [False] * (6 - setting.shared)] * 3
        assert (p.correct != p.wrong).all()


def test_a_forward_passs_operations_are_those_that_torch_counts(job: Job) -> None:
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        job.model(job.prompts.clean)
    t, d = QUICK.length, QUICK.size.d_model
    masked = 4 * d * t * t - 2 * d * t * (t + 1)  # products with keys that a query does not see
    assert counted.get_total_flops() == products.forward(QUICK) + QUICK.pairs * QUICK.size.layers * masked


def test_operations_of_a_one_layer_sweep_by_hand() -> None:
    one = replace(FULL, size=replace(FULL.size, layers=1), pairs=1)
    d, t, n = 768, 15, 11
    run = 2 * d * d * (2 * n + 2) + 4 * d * t + 16 * d * d
    both = 2 * d * d * 2 * 4 + 2 * run
    assert products.head_sweep(one) == both + 12 * (2 * 64 * d + 16 * d * d)
    at_end = 2 * d * d * 4 + 4 * d * t + 16 * d * d
    before = 2 * d * d * 3 + 2 * d * (1 + t) + 16 * d * d
    assert products.residual_sweep(one) == both + at_end + 10 * before


def test_late_differences_need_less_and_more_steps_need_more() -> None:
    for count in (products.head_sweep, products.residual_sweep, products.edge_attribution):
        assert count(late(FULL)) < count(FULL)
    assert products.edge_attribution(FULL) < products.edge_attribution(FULL, 5) < 5 * products.edge_attribution(FULL)


def test_a_worker_measures_time_and_memory_in_a_process_of_its_own(work: Path) -> None:
    where = Where(work, QUICK, 1, "cpu", peers=False, quick=True)
    found = measure(ROWS[0], where, {})
    ours = found["sides"]["headwork"]
    assert len(ours["seconds"]) == 1
    assert ours["seconds"][0] > 0
    assert 10_000_000 < ours["before"] <= ours["peak"]
    assert found["needed"] == products.head_sweep(QUICK)
    assert found["sides"]["tl4"] == {"failed": "not asked for"}
    with np.load(work / "heads-headwork.npz") as held:
        assert held["patched"].shape == (2, 2, 3)


def test_only_the_faster_peer_is_measured_again_where_a_row_says_so(work: Path) -> None:
    row = next(r for r in ROWS if r.name == "heads-late")
    where = Where(work, QUICK, 1, "cpu", peers=True, quick=True)
    found: dict[str, Any] = {}
    earlier: dict[str, Any] = {"heads": {"sides": {"tl4": {"seconds": [5.0]}, "tl3": {"seconds": [4.0]}}}}
    assert sides(row, where, earlier, found) == ["headwork", "tl3"]
    assert found == {"tl4": {"left_out": "slower than the other peer in heads"}}
    earlier["heads"]["sides"]["tl3"]["failed"] = "why"
    assert sides(row, where, earlier, {}) == ["headwork", "tl4"]
    assert sides(row, where, {}, {}) == ["headwork", "tl4", "tl3"]


def test_settings_survive_the_way_to_a_worker() -> None:
    assert setting_from(json.loads(json.dumps(setting_to(late(FULL))))) == late(FULL)


def test_an_interrupted_run_goes_on_and_changed_code_starts_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = Where(tmp_path, QUICK, 1, "cpu", peers=False, quick=True)
    done: list[str] = []

    def step(run: Any, name: str) -> None:
        run.step(name, lambda: done.append(name) or {"value": name})

    step(command.Progress(where, fresh=False), "a")
    again = command.Progress(where, fresh=False)
    step(again, "a")
    step(again, "b")
    assert done == ["a", "b"]
    assert command.Progress(where, fresh=False).held["a"]["value"] == "a"
    assert command.Progress(where, fresh=True).held == {}
    monkeypatch.setattr(command, "_key", lambda where: "other code")
    assert command.Progress(where, fresh=False).held == {}
