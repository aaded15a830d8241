"""Probes equal a slow twin, and find what is wired by hand; shuffled labels say what luck would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray
from scipy import stats
from scipy.optimize import minimize
from tests.architectures import network
from tests.methods import subspace_networks as wired
from torch import Tensor

from headwork.engine.run import run
from headwork.errors import UserError
from headwork.methods import probes as module
from headwork.methods.interchange import interchange
from headwork.methods.probe_data import Splits, shuffled, split
from headwork.methods.probe_scores import balanced_accuracy, interval, variance_explained
from headwork.methods.probes import linear_probe, probe
from headwork.methods.site_vectors import Place, vectors
from headwork.methods.subspaces import Subspace, probe_directions

SITES = ["blocks.0.resid_post", "blocks.0.mlp.post", "blocks.1.attn.z"]
PENALTIES = (0.01, 0.3)


def some_tokens(count: int, seed: int = 0) -> Tensor:
    return torch.randint(1, 11, (count, 5), generator=torch.Generator().manual_seed(seed))


def slowly_fitted(x: np.ndarray, y: np.ndarray, classes: int, penalty: float) -> np.ndarray:
    """Weights and intercepts of one problem, or of one regression where there is one class."""
    if classes == 1:
        ones = np.concatenate([x, np.ones((len(x), 1))], 1)
        free = np.diag([penalty] * x.shape[1] + [0.0])
        return np.linalg.solve(ones.T @ ones / len(x) + free, ones.T @ y / len(x))[:, None]

    def cost(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = flat.reshape(-1, classes)
        logits = x @ w[:-1] + w[-1]
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        value = -np.log(p[np.arange(len(y)), y]).mean() + penalty / 2 * (w[:-1] ** 2).sum()
        apart = (p - np.eye(classes)[y]) / len(y)
        return value, np.concatenate([x.T @ apart + penalty * w[:-1], apart.sum(0, keepdims=True)]).ravel()

    found = minimize(cost, np.zeros((x.shape[1] + 1) * classes), jac=True, method="BFGS", options={"gtol": 1e-8}).x
    return found.reshape(-1, classes)


def slowly(x: np.ndarray, y: np.ndarray, parts: Splits, k: int | None) -> dict[str, Any]:
    """One labelling, one k: units, penalty, validation score and test predictions."""
    number = y.dtype.kind == "f"
    classes = 1 if number else int(y.max()) + 1
    rows = {name: part.numpy() for name, part in parts.parts().items()}
    chosen = list(range(x.shape[1]))
    if k is not None:
        picked, target = x[rows["selection"]], y[rows["selection"]]
        worth = []
        for unit in picked.T:
            if number:
                worth.append(np.corrcoef(unit, target)[0, 1] ** 2)
            else:
                means = np.array([unit[target == c].mean() for c in target])
                worth.append(means.var() / unit.var())
        chosen = sorted(chosen, key=lambda unit: -worth[unit])[:k]
    train = x[rows["train"]][:, chosen]
    z = (x[:, chosen] - train.mean(0)) / train.std(0)
    best: dict[str, Any] = {"score": -np.inf}
    for penalty in PENALTIES:
        w = slowly_fitted(z[rows["train"]], y[rows["train"]], classes, penalty)
        out = z @ w[:-1] + w[-1]
        guess = out[:, 0] if number else out.argmax(1)
        score = slow_score(guess[rows["validation"]], y[rows["validation"]])
        if score >= best["score"]:
            best = {"score": score, "penalty": penalty, "guess": guess[rows["test"]], "units": chosen}
    return best


def slow_score(guess: np.ndarray, y: np.ndarray) -> float:
    if y.dtype.kind == "f":
        return 1 - ((y - guess) ** 2).sum() / ((y - y.mean()) ** 2).sum()
    return float(np.mean([(guess[y == c] == c).mean() for c in np.unique(y)]))


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama"])
@pytest.mark.parametrize("kind", ["classes", "numbers"])
def test_probes_equal_the_slow_twin(name: str, kind: str) -> None:
    model, tokens = network(name), some_tokens(70)
    generator = torch.Generator().manual_seed(4)
    labels = tokens[:, 1] % 3 if kind == "classes" else torch.randn(70, generator=generator) + tokens[:, 2]
    found = probe(model, tokens, labels, SITES[:2], k=[1, 3, "all"], penalties=PENALTIES, shuffles=1, seed=5)
    again = torch.Generator().manual_seed(5)
    targets = labels if kind == "classes" else labels.double()
    parts = split(targets, again)
    every = torch.cat([targets[None], shuffled(targets, parts, 1, again)]).numpy()
    known = run(model, tokens, SITES)
    measure = "balanced_accuracy" if kind == "classes" else "r2"
    for site in SITES[:2]:
        x = known[site][:, -1].flatten(1).numpy()
        for number, y in enumerate(every):
            fits = [slowly(x, y, parts, k) for k in (1, 3, None)]
            # The last is the one with the best validation score.
            fits.append(max(fits, key=lambda fit: fit["score"]))
            for k, fit in zip(found["k"].values, fits):
                here = {"site": site, "k": k}
                score = slow_score(fit["guess"], y[parts.test.numpy()])
                got = found[measure] if number == 0 else found[f"{measure}_null"].isel(shuffle=number - 1)
                assert float(got.sel(here)) == pytest.approx(score, abs=1e-5), (site, k, number)
                if number == 0:
                    assert float(found["penalty"].sel(here)) == fit["penalty"]
                    assert int(found["units"].sel(here)) == len(fit["units"])
                    if k in ("1", "3"):
                        assert found["unit"].sel(here).values[: int(k)].tolist() == fit["units"]


@pytest.fixture(scope="module")
def wired_probes() -> xarray.Dataset:
    every = wired.every_prompt()
    tokens = every[torch.randint(len(every), (240,), generator=torch.Generator().manual_seed(1))]
    sites = ["blocks.0.resid_pre", "blocks.0.mlp.post", "blocks.0.resid_post"]
    return probe(wired.xor_network(), tokens, wired.variable(tokens), sites, k=[1, 2, "all"], shuffles=39)


def test_the_wired_variable_is_read_where_it_is_written_and_not_before(wired_probes: xarray.Dataset) -> None:
    before, neurons, after = (wired_probes.sel(site=site) for site in wired_probes["site"].values)
    assert (before["accuracy"] < 0.75).all()
    assert (before["accuracy_p_value"] > 0.05).all()
    # Two neurons hold it: relu(a + b) and relu(a + b − 1). Neither does alone.
    assert float(neurons["accuracy"].sel(k="1")) < 0.9
    assert float(neurons["accuracy"].sel(k="2")) == 1
    assert sorted(neurons["unit"].sel(k="2").values.tolist()) == [0, 1]
    assert neurons["unit"].sel(k="1").values.tolist() == [1, -1]
    assert neurons["unit"].sel(k="all").values.tolist() == [-1, -1]
    assert float(neurons["accuracy"].sel(k="chosen")) == 1
    assert int(neurons["units"].sel(k="chosen")) == 2
    assert float(after["accuracy"].sel(k="all")) == 1
    assert float(after["accuracy_p_value"].sel(k="all")) == 1 / 40
    assert float(after["accuracy_p_value_over_all"].sel(k="all")) == 1 / 40
    assert abs(float(after["accuracy_null_mean"].sel(k="all")) - 0.5) < 0.1
    assert after["accuracy_interval"].sel(k="all", bound="low") > 0.9


def test_p_values_count_the_shuffles_that_reach_as_much(wired_probes: xarray.Dataset) -> None:
    for measure in ("accuracy", "balanced_accuracy"):
        real, null = wired_probes[measure], wired_probes[f"{measure}_null"]
        np.testing.assert_allclose(wired_probes[f"{measure}_p_value"], (1 + (null >= real).sum("shuffle")) / 40)
        best = null.max(("site", "k"))
        np.testing.assert_allclose(
            wired_probes[f"{measure}_p_value_over_all"], (1 + (best >= real).sum("shuffle")) / 40
        )
        np.testing.assert_allclose(wired_probes[f"{measure}_null_95"], null.quantile(0.95, "shuffle"))


def test_labels_that_mean_nothing_are_called_significant_as_seldom_as_promised() -> None:
    model, tokens = network("gpt2"), some_tokens(80)
    small = 0
    for seed in range(16):
        labels = torch.randint(2, (80,), generator=torch.Generator().manual_seed(seed))
        found = probe(model, tokens, labels, SITES[1], k=[1, 3], penalties=[0.1], shuffles=19, seed=seed)
        small += bool(found["balanced_accuracy_p_value_over_all"].min() <= 0.05)
    # At most one in twenty is expected.
    assert stats.binom.sf(small - 1, 16, 0.05) > 2e-3


def test_a_probes_directions_are_interchanged_like_the_variable() -> None:
    model, tokens = wired.xor_network(), wired.every_prompt()
    place = Place("blocks.0.mlp_out")
    x = vectors(model, tokens, place, -1)[:, 0]
    weights, intercepts = linear_probe(x, wired.variable(tokens), 1e-3)
    assert torch.equal((x @ weights + intercepts).argmax(1), wired.variable(tokens))
    basis = probe_directions(weights)
    assert basis.shape == (wired.WIDTH, 1)
    found = interchange(model, wired.xor_pairs(100, positions=-1), Subspace(place, basis))
    assert float(found["interchange_accuracy"]) == 1
    slope, constant = linear_probe(x, wired.variable(tokens).double() * 3 + 1, 1e-9)
    torch.testing.assert_close((x @ slope + constant)[:, 0], wired.variable(tokens).double() * 3 + 1, rtol=0, atol=1e-5)


def test_positions_of_a_prompt_stay_together_and_may_have_labels_of_their_own() -> None:
    model, tokens = network("llama"), some_tokens(60)
    found = probe(model, tokens, tokens[:, [1, 3]] % 2, "embed", positions=[1, 3], k=["all"], shuffles=3)
    assert sum(found.attrs[f"{part}_examples"] for part in ("selection", "train", "validation", "test")) == 120
    for part in ("selection", "train", "validation", "test"):
        assert found.attrs[f"{part}_examples"] % 2 == 0
    assert float(found["accuracy"].sel(k="all")[0]) > 0.9
    where = torch.stack([torch.arange(60) % 5, (torch.arange(60) + 2) % 5], 1)
    own = probe(model, tokens, tokens.gather(1, where) % 2, "embed", positions=where, k=["all"], shuffles=3)
    assert float(own["accuracy"].sel(k="all")[0]) > 0.9


def test_splits_share_nothing_and_have_every_class() -> None:
    labels = torch.arange(200) % 4
    parts = split(labels, torch.Generator().manual_seed(0))
    rows = torch.cat(list(parts.parts().values()))
    assert sorted(rows.tolist()) == list(range(200))
    assert [len(part) for part in parts.parts().values()] == [40, 80, 32, 48]
    for part in parts.parts().values():
        assert torch.bincount(labels[part]).unique().tolist() == [len(part) // 4]
    groups = torch.arange(200) // 5
    parts = split(labels, torch.Generator().manual_seed(0), groups)
    of = [set(groups[part].tolist()) for part in parts.parts().values()]
    assert sum(map(len, of)) == len(set.union(*of)) == 40
    numbers = split(torch.randn(100), torch.Generator().manual_seed(0))
    assert [len(part) for part in numbers.parts().values()] == [20, 40, 15, 25]


def test_shuffling_keeps_what_cannot_be_exchanged() -> None:
    labels, generator = torch.arange(200) % 4, torch.Generator().manual_seed(0)
    parts = split(labels, generator)
    found = shuffled(labels, parts, 5, generator)
    assert len({tuple(row.tolist()) for row in found}) == 5
    for part in parts.parts().values():
        assert (found[:, part].sort(1).values == labels[part].sort().values).all()
    # Groups of one label are exchanged whole; where labels vary within groups, they are exchanged within.
    groups = torch.arange(200) // 5
    whole = groups % 4
    parts = split(whole, generator, groups)
    found = shuffled(whole, parts, 5, generator, groups)
    for row in found:
        assert all(len(row[groups == g].unique()) == 1 for g in groups.unique())
    assert (found != whole).any()
    found = shuffled(labels, parts, 5, generator, groups)
    for row in found:
        assert all(torch.equal(row[groups == g].sort().values, labels[groups == g].sort().values) for g in range(40))
    assert (found != labels).any()


def test_scores_and_their_intervals() -> None:
    labels = torch.tensor([0] * 60 + [1] * 20 + [3] * 20)
    generator = torch.Generator().manual_seed(0)
    chance = torch.tensor([{0: 0.9, 1: 0.6, 3: 0.4}[int(c)] for c in labels])
    covered = {"accuracy": 0, "balanced_accuracy": 0, "r2": 0, "groups": 0}
    times = 40
    for _ in range(times):
        right = torch.rand(100, generator=generator) < chance
        found = torch.where(right, labels, (labels + 1) % 4)
        low, high = interval("accuracy", found, labels, None)
        covered["accuracy"] += low <= 0.74 <= high
        low, high = interval("balanced_accuracy", found, labels, None)
        covered["balanced_accuracy"] += low <= 1.9 / 3 <= high
        by_hand = np.mean([float(right[labels == c].double().mean()) for c in (0, 1, 3)])
        assert float(balanced_accuracy(found[None], labels[None])[0]) == pytest.approx(by_hand)
        signal = torch.randn(40, generator=generator, dtype=torch.float64)
        noisy = signal + 0.5 * torch.randn(40, generator=generator, dtype=torch.float64)
        low, high = interval("r2", signal, noisy, None)
        covered["r2"] += low <= 0.8 <= high
        # Ten groups of ten examples that are right or wrong together.
        together = (torch.rand(10, generator=generator) < 0.7).repeat_interleave(10)
        low, high = interval("accuracy", together.long(), torch.ones(100).long(), torch.arange(100) // 10)
        covered["groups"] += low <= 0.7 <= high
    for measure, count in covered.items():
        assert count >= stats.binom.ppf(0.001, times, 0.92), measure
    assert covered["accuracy"] <= 39  # not so wide as to say nothing
    wrong = labels.clone()
    wrong[[0, 1, 2, 61, 85, 86]] = 2
    bounds = [stats.binomtest(right, n).proportion_ci(0.95, "wilson") for right, n in ((57, 60), (19, 20), (18, 20))]
    shares = np.array([57 / 60, 19 / 20, 18 / 20])
    low = shares.mean() - np.sqrt(sum((p - b.low) ** 2 for p, b in zip(shares, bounds))) / 3
    high = shares.mean() + np.sqrt(sum((b.high - p) ** 2 for p, b in zip(shares, bounds))) / 3
    assert interval("balanced_accuracy", wrong, labels, None) == pytest.approx((low, high))
    groups = torch.arange(6).repeat_interleave(4)
    sure = stats.binomtest(6, 6).proportion_ci(0.95, "wilson")
    for measure in ("accuracy", "balanced_accuracy"):
        assert interval(measure, groups % 2, groups % 2, groups) == pytest.approx((sure.low, 1))
    nearly = torch.ones(24).long()
    nearly[0] = 0
    assert 0.8 < interval("accuracy", nearly, torch.ones(24).long(), groups)[0] < 23 / 24
    assert interval("accuracy", nearly, torch.ones(24).long(), groups)[1] == 1
    numbers = torch.tensor([[1.0, 2, 3]], dtype=torch.float64)
    assert float(variance_explained(numbers * 0 + 2, numbers)[0]) == 0
    assert variance_explained(numbers, numbers * 0).isnan().all()


def test_memory_changes_nothing_and_progress_counts_sites(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = network("llama"), some_tokens(80)
    given: dict[str, Any] = {"labels": tokens[:, 4] % 2, "sites": SITES[:2], "k": [2, "all"], "shuffles": 5}
    calls: list[int] = []
    free = probe(model, tokens, **given, progress=calls.append)
    assert calls == [1, 1]
    sizes: list[int] = []
    held = module._labellings_at_once
    monkeypatch.setattr(module, "_labellings_at_once", lambda *a: sizes.append(held(*a)) or sizes[-1])
    small = probe(model, tokens, **given, memory=80_000)
    assert all(1 <= size < 6 for size in sizes)
    xarray.testing.assert_identical(free, small)


@pytest.mark.parametrize("selection", ["mean difference", "lasso"])
def test_a_result_is_described_and_can_be_saved(tmp_path: Path, selection: Any) -> None:
    model, tokens = network("neox"), some_tokens(80)
    found = probe(
        model, tokens, (tokens[:, 4] % 2).tolist(), "blocks.*.resid_pre", k=[1, 2], selection=selection, shuffles=3
    )
    assert found["site"].values.tolist() == ["blocks.0.resid_pre", "blocks.1.resid_pre"]
    assert found["k"].values.tolist() == ["1", "2", "chosen"]
    assert {"selection": selection, "shuffles": 3, "train_examples": 32}.items() <= found.attrs.items()
    assert (found["accuracy_interval"].sel(bound="low") <= found["accuracy"]).all()
    found.to_netcdf(tmp_path / "probes.nc", engine="h5netcdf")
    xarray.testing.assert_identical(xarray.load_dataset(tmp_path / "probes.nc", engine="h5netcdf"), found)


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_probed_is_refused() -> None:
    model, tokens = network("gpt2"), some_tokens(60)
    labels = tokens[:, 0] % 2
    part = torch.arange(20)
    cases: list[tuple[str, dict[str, Any]]] = [
        ("nearest valid", {"sites": "blocks.0.resid_pr"}),
        ("with a vector at each position", {"sites": "blocks.0.attn.pattern"}),
        (r"labels have shape \[59\]", {"labels": labels[:-1]}),
        ("All labels are 1", {"labels": torch.ones(60, dtype=torch.long)}),
        ("must be finite", {"labels": torch.full((60,), torch.nan)}),
        ("numbers from 1 to 8", {"k": [9]}),
        ("numbers from 1 to 8", {"k": []}),
        ("numbers from 1 to 8", {"k": [1, 1]}),
        ("way to select units: 'luck'", {"selection": "luck"}),
        ("must be above 0", {"penalties": [0.0]}),
        ("0 shuffles", {"shuffles": 0}),
        ("position 5 does not exist", {"positions": 5}),
        ("Groups are given for 2 prompts; there are 60", {"groups": [1, 2]}),
        ("too few to split", {"groups": [0, 1] * 30}),
        ("has no example of class 0", {"labels": torch.arange(60).clamp(max=1)}),
        ("All numbers in the (selection|train|validation|test) part are 0.0", {"labels": (torch.arange(60) < 2) * 0.5}),
        ("names an example that does not exist", {"splits": Splits(part, part + 20, part + 40, part + 60)}),
        ("One prompt of 5 tokens", {"memory": 100}),
        ("Probes on 60 examples", {"memory": 12_000}),
    ]
    for message, change in cases:
        given: dict[str, Any] = {"tokens": tokens, "labels": labels, "sites": "blocks.0.resid_pre", "k": [1]} | change
        with pytest.raises(UserError, match=message):
            probe(model, **given)
    with pytest.raises(UserError, match="again in the train part"):
        Splits(part, part, part + 20, part + 40)
    with pytest.raises(UserError, match="four above 0"):
        split(labels, torch.Generator(), shares=(0.5, 0.5, 0.5, 0.5))
    with torch.no_grad():
        model.W_E.fill_(torch.nan)
    with pytest.raises(UserError, match="resid_pre are not finite"):
        probe(model, tokens, labels, "blocks.0.resid_pre", k=[1])
