"""Distributed alignment search finds what is wired by hand, and its controls do not."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray
from tests.architectures import network, prompts
from tests.methods import subspace_networks as wired
from tests.oracle import oracle_sites

from headwork.errors import UserError
from headwork.methods import das as module
from headwork.methods.das import Training, align, das
from headwork.methods.interchange import interchange
from headwork.methods.interchange_pairs import InterchangePairs
from headwork.methods.site_vectors import Place
from headwork.methods.subspaces import Subspace

ANSWERS = (1, 3, 4, 7)
READ = torch.tensor([[4], [3], [2]])
HERE, THERE = torch.tensor([[1, 3], [0, 2], [2, 1]]), torch.tensor([[2, 0], [4, 2], [2, 3]])
PLACE = Place("blocks.1.resid_pre")
QUICK = Training(steps=40, batch=64, rate=0.05)


def wired_pairs(first: int, last: int) -> InterchangePairs:
    every = wired.xor_pairs(400)
    return dataclasses.replace(
        every, base=every.base[first:last], source=every.source[first:last], positions=-1, labels=()
    )


@pytest.fixture(scope="module")
def found() -> xarray.Dataset:
    return das(wired.xor_network(), wired_pairs(0, 150), wired_pairs(150, 350), PLACE, 1, training=QUICK, draws=20)


def test_the_wired_variable_is_found_and_the_controls_are_near_chance(found: xarray.Dataset) -> None:
    accuracy = found["interchange_accuracy"]
    assert float(accuracy.sel(subspace="das")) == 1
    for control in ("permuted", "untrained", "random"):
        assert float(accuracy.sel(subspace=control)) < 0.65, control
    assert float(found["margin"]) > 0.15
    along = found["basis"].sel(fitted="das").values[:, 0] @ wired.direction(wired.VARIABLE).numpy()
    assert abs(along) > 0.8
    assert found["interchange_accuracy_interval"].sel(subspace="das", bound="low") > 0.97
    assert found["loss"].sel(fitted="das").values[-5:].mean() < 0.1
    assert found["loss"].sel(fitted="permuted").values[-5:].mean() > 0.5


def test_the_stored_basis_gives_the_stored_accuracy(found: xarray.Dataset) -> None:
    basis = torch.from_numpy(found["basis"].sel(fitted="das").values)
    again = interchange(wired.xor_network(), wired_pairs(150, 350), Subspace(PLACE, basis), draws=20)
    assert float(again["interchange_accuracy"]) == found["interchange_accuracy"].sel(subspace="das")
    np.testing.assert_array_equal(again["random_accuracy"], found["random_accuracy"])
    random = float(again["random_accuracy"].mean())
    assert float(found["interchange_accuracy"].sel(subspace="random")) == pytest.approx(random)
    rivals = [
        *found["interchange_accuracy"].values[1:3],
        float(again["random_accuracy"].max()),
        float(again["unchanged_accuracy"]),
    ]
    assert float(found["margin"]) == pytest.approx(1 - max(rivals))


def test_the_margin_is_over_the_best_random_draw_too(monkeypatch: pytest.MonkeyPatch) -> None:
    along = wired.direction(wired.VARIABLE)[:, None]
    monkeypatch.setattr(module, "align", lambda *_: (along, torch.zeros(QUICK.steps, dtype=torch.float64)))
    model = wired.xor_network()
    many = das(model, wired_pairs(0, 50), wired_pairs(150, 350), PLACE, 1, training=QUICK, draws=60)
    best = float(many["random_accuracy"].max())
    accuracy = many["interchange_accuracy"]
    assert best > max(*accuracy.sel(subspace=["permuted", "untrained"]).values, float(many["unchanged_accuracy"]))
    assert float(many["margin"]) == pytest.approx(float(accuracy.sel(subspace="das")) - best)


def test_a_result_can_be_saved_and_a_seed_gives_it_again(found: xarray.Dataset, tmp_path: Path) -> None:
    found.to_netcdf(tmp_path / "das.nc", engine="h5netcdf")
    xarray.testing.assert_identical(xarray.load_dataset(tmp_path / "das.nc", engine="h5netcdf"), found)
    fit = wired_pairs(0, 150).on(wired.xor_network())
    bases = [
        align(wired.xor_network(), fit, PLACE, 1, QUICK, torch.Generator().manual_seed(seed))[0] for seed in (0, 1)
    ]
    np.testing.assert_array_equal(found["basis"].sel(fitted="das").values, bases[0])
    assert not torch.equal(*bases)


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama"])
@pytest.mark.parametrize(
    ("site", "heads", "k", "own"),
    [
        ("blocks.1.resid_pre", None, 3, True),
        ("blocks.0.attn.z", (1,), 2, True),
        ("blocks.0.attn.k", None, 2, False),
        ("blocks.0.mlp.post", None, 1, False),
        ("embed", None, 4, True),
    ],
)
def test_the_first_loss_equals_a_slow_twin(
    name: str, site: str, heads: tuple[int, ...] | None, k: int, own: bool
) -> None:
    model = network(name)
    expected = torch.tensor([3, 7, 1])
    where: dict[str, Any] = {"positions": HERE, "source_positions": THERE} if own else {}
    data = InterchangePairs(prompts(name, 1), prompts(name, 2), expected, READ, ANSWERS, **where).on(model)
    place = Place(site, heads).checked(model.config)
    losses = align(model, data, place, k, Training(steps=1, batch=3), torch.Generator().manual_seed(5))[1]

    generator = torch.Generator().manual_seed(5)
    basis = torch.linalg.qr(torch.randn(place.width(model.config), k, generator=generator, dtype=torch.float64)).Q
    source = oracle_sites(model, data.source)[site]
    places = torch.stack([HERE, THERE], -1) if own else torch.arange(5).view(1, -1, 1).expand(3, -1, 2)
    with torch.no_grad():
        logits = model(data.base, wired.Exchange(site, source, basis, None if heads is None else list(heads), places))
    slow = [
        -torch.log_softmax(logits[b, READ[b, 0], list(ANSWERS)], 0)[ANSWERS.index(t)] for b, t in enumerate([3, 7, 1])
    ]
    torch.testing.assert_close(losses[0], torch.stack(slow).mean(), rtol=0, atol=1e-9)


def test_memory_changes_nothing_and_progress_counts_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    model, fit = wired.xor_network(), wired_pairs(0, 40).on(wired.xor_network())
    training, calls = Training(steps=2, batch=16), []
    free = align(model, fit, PLACE, 2, training, torch.Generator().manual_seed(0), None, calls.append)
    assert sum(calls) == 2
    sizes = []
    prepared = module._prepared

    def noted(*arguments):
        task = prepared(*arguments)
        sizes.append((task.size, task.known is None))
        return task

    monkeypatch.setattr(module, "_prepared", noted)
    for memory in (60_000, 250_000):
        small = align(model, fit, PLACE, 2, training, torch.Generator().manual_seed(0), memory)
        for one, other in zip(free, small):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    assert sizes[0][0] < sizes[1][0] <= 16
    assert [forgotten for _, forgotten in sizes] == [True, False]


def test_restarts_keep_the_best() -> None:
    model, fit = wired.xor_network(), wired_pairs(0, 60).on(wired.xor_network())
    ends = []
    for restarts in (1, 2, 6):
        generator = torch.Generator().manual_seed(0)
        training = Training(steps=2, batch=60, rate=0.01, restarts=restarts)
        ends.append(float(align(model, fit, PLACE, 1, training, generator)[1][-1]))
    assert ends[0] >= ends[1] >= ends[2]
    assert ends[0] > ends[2]


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_aligned_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a basis was fitted")

    monkeypatch.setattr(module, "align", never)
    model, fit, held_out = wired.xor_network(), wired_pairs(0, 20), wired_pairs(20, 40)
    with pytest.raises(UserError, match=r"1 to 47 directions at blocks\.1\.resid_pre; given was 48"):
        das(model, fit, held_out, PLACE, 48)
    with pytest.raises(UserError, match="given was 0"):
        das(model, fit, held_out, PLACE, 0)
    with pytest.raises(UserError, match=r"5 of the 20 held-out pairs are among the fitted ones \(first: 0\)"):
        das(model, fit, wired_pairs(15, 35), PLACE, 1)
    with pytest.raises(UserError, match="needs pairs with expected answers"):
        das(model, fit, dataclasses.replace(held_out, expected=None), PLACE, 1)
    with pytest.raises(UserError, match="same architecture"):
        das(model, fit, held_out, PLACE, 1, untrained=network("gpt2"))
    with pytest.raises(UserError, match="nearest valid"):
        das(model, fit, held_out, Place("blocks.0.resid_pst"), 1)
    monkeypatch.undo()
    with pytest.raises(UserError, match="needs about"):
        das(model, fit, held_out, PLACE, 1, memory=100)
    wrong: tuple[dict[str, Any], ...] = (
        {"steps": 0},
        {"batch": 0},
        {"restarts": 0},
        {"rate": 0.0},
        {"rate": float("nan")},
    )
    for fields in wrong:
        with pytest.raises(UserError, match=next(iter(fields))):
            Training(**fields)


def test_a_network_without_finite_logits_is_refused() -> None:
    model = wired.xor_network()
    model.unembed.weight.fill_(torch.nan)
    with pytest.raises(UserError, match="is nan at step 0"):
        das(model, wired_pairs(0, 20), wired_pairs(20, 40), PLACE, 1)
