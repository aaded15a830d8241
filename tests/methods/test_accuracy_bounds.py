"""What is proved right is right: on perturbed networks, of both precisions, with and without norms."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from tests.oracle import oracle_sites
from torch import Tensor

from headwork.engine.run import run
from headwork.errors import UserError
from headwork.methods import accuracy_bounds as module
from headwork.methods.accuracy_bounds import Strategy, accuracy_bounds, enumerated_accuracy, proof
from headwork.methods.max_tables import MaxTables, max_picture, max_tables
from headwork.methods.rounding import Bounded
from headwork.model.config import TransformerConfig
from headwork.model.initialise import initialise
from headwork.model.sources import load_transformer
from headwork.model.transformer import Norm, Transformer
from headwork.tasks.max_of_k import MaxOfK

STRATEGIES = ["brute force", "by output", "by lead"]
NORMS = ("none", "layernorm", "rmsnorm")


def wired(n: int = 5, k: int = 2, norm: str = "none", attention: float = 3.0, **fields: object) -> Transformer:
    """Attends by size and copies, by hand: one direction for each number, one for size and one that is always 1."""
    given = {"n_ctx": k, "norm": norm, "qkv_bias": True, "out_bias": True, "unembed_bias": True} | fields
    c = TransformerConfig(n_layers=1, d_model=n + 2, n_heads=1, d_head=n + 2, d_vocab=n, **given)  # type: ignore[arg-type]
    model = initialise(c, 0, std=0.0)
    with torch.no_grad():
        model.embed.weight[:, :n] = torch.eye(n)
        model.embed.weight[:, n] = torch.arange(n) / n
        model.embed.weight[:, n + 1] = 1.0
        attn = model.layers[0].attn
        attn.W_Q[0, n + 1, n] = attention * n * (n + 2) ** 0.5
        attn.W_K[0, n, n] = 1.0
        attn.W_V[0, :n, :n] = torch.eye(n)
        attn.W_O[0, :n, :n] = 4 * torch.eye(n)
        model.unembed.weight[:n, :n] = torch.eye(n)
    return model


def perturbed(model: Transformer, seed: int, spread: float) -> Transformer:
    generator, found = torch.Generator().manual_seed(seed), Transformer(model.config).to(model.dtype)
    found.load_state_dict(model.state_dict())
    with torch.no_grad():
        for weight in found.parameters():
            weight += spread * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    return found.eval()


def right_lists(model: Transformer, task: MaxOfK) -> dict[tuple[int, ...], bool]:
    """Slow and obvious: run the network on every list."""
    lists = torch.tensor(list(itertools.product(range(task.vocab), repeat=task.k)))
    with torch.no_grad():
        answers = model(lists)[:, -1].argmax(-1)
    return {tuple(row.tolist()): int(answer) == max(row.tolist()) for row, answer in zip(lists, answers)}


def check(model: Transformer, task: MaxOfK) -> list[float]:
    """Everything that is covered is answered rightly, in the network's precision and in float64; returns the bounds."""
    found = accuracy_bounds(model, task)
    twin = Transformer(model.config).double()
    twin.load_state_dict(model.state_dict())
    for network in (model, twin.eval()):
        right = right_lists(network, task)
        by_max = np.bincount([max(row) for row, ok in right.items() if ok], minlength=task.vocab)
        assert bool((found["proved"] <= by_max).all())
        for strategy in STRATEGIES[1:]:
            covered = 0
            for row, ok in right.items():
                cap = int(
                    found["cap"].sel(strategy=strategy, case="last" if row[-1] == max(row) else "earlier")[max(row)]
                )
                within = max([-1, *(number for number in row if number < max(row))]) <= cap
                covered += within
                assert ok or not within, (strategy, row, cap)
            assert covered == int(found["proved"].sel(strategy=strategy).sum())
    assert found.attrs["accuracy"] == pytest.approx(np.mean(list(right_lists(model, task).values())), abs=1e-12)
    return found["bound"].values.tolist()


def test_the_bound_holds_on_a_thousand_perturbed_networks(unchecked: None) -> None:
    """From hardly changed to random; the accuracy is that of the network as it runs. Shapes are checked elsewhere."""
    task, bounds, accuracies = MaxOfK(5), [], []
    bases = [wired(norm=norm) for norm in NORMS]
    lists = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    largest = lists.amax(1)
    for seed in range(1000):
        model = perturbed(bases[seed % 3], seed, 0.02 + 0.4 * (seed % 50) / 50)
        tables = max_tables(model, task)
        proved = np.stack([proof(tables, task, strategy).proved for strategy in get_args(Strategy)])
        with torch.no_grad():
            right = model(lists)[:, -1].argmax(-1) == largest
        by_max = np.bincount(largest[right], minlength=5)
        assert (proved <= by_max).all(), seed
        bounds.append(proved.sum(1) / 25)
        accuracies.append(by_max.sum() / 25)
    # Some networks are right everywhere, many are not, and all strategies prove much.
    assert np.mean(accuracies) < 0.9
    assert np.mean(np.array(accuracies) == 1) > 0.1
    assert (np.mean(bounds, 0) > [0.4, 0.25, 0.2]).all()
    assert np.mean(bounds, 0)[0] > np.mean(accuracies) - 0.005


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("n", "k", "dtype", "fields"),
    [
        (5, 2, torch.float64, {}),
        (4, 3, torch.float32, {"causal": False}),
        (3, 4, torch.float32, {"positions": "none", "qkv_bias": False, "out_bias": False}),
        (4, 2, torch.float32, {"d_vocab_out": 6, "unembed_bias": False, "attention_scale": 0.3}),
    ],
)
def test_every_list_that_a_cap_covers_is_answered_rightly(
    norm: str, n: int, k: int, dtype: torch.dtype, fields: dict[str, object]
) -> None:
    base = wired(n, k, norm, **fields)  # type: ignore[arg-type]
    bounds = [
        check(perturbed(base.to(dtype), seed, spread), MaxOfK(n, k)) for seed, spread in enumerate((0.0, 0.1, 0.3))
    ]
    assert bounds[0] == [1.0, 1.0, 1.0]
    assert max(bounds[2]) < 1


def fabricated(n: int, k: int, seed: int) -> MaxTables:
    """Random tables without errors whose answers are right more often than not: extreme cases are common."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    sharpness, copying, direct = (3 * torch.rand(3, generator=generator, dtype=torch.float64)).tolist()
    score = sharpness * torch.arange(n)[:, None] + drawn(n, n, k)
    value = drawn(n, k, n) + copying * torch.eye(n, dtype=torch.float64)[:, None]

    def known(part: Tensor) -> Bounded:
        return Bounded(part, torch.zeros_like(part))

    nothing, zeros = known(torch.zeros(n, 1, dtype=torch.float64)), torch.zeros(n, dtype=torch.float64)
    others = known(direct / 2 * drawn(n, n)), known(drawn(n) / 4)
    return MaxTables(known(score), known(value), *others, nothing, nothing, None, zeros, 0)


def test_what_is_proved_holds_for_every_score_within_its_error(unchecked: None) -> None:
    task, lists = MaxOfK(4), torch.tensor(list(itertools.product(range(4), repeat=2)))
    generator, proved = torch.Generator().manual_seed(0), 0
    for seed in range(200):
        exact = fabricated(4, 2, seed)
        rough = replace(exact, score=Bounded(exact.score.value, torch.full((4, 4, 2), 0.4, dtype=torch.float64)))
        counts = [proof(rough, task, strategy).proved for strategy in get_args(Strategy)]
        proved += int(counts[0].sum())
        for _ in range(8):
            sign = torch.randint(0, 2, (4, 4, 2), generator=generator).double() * 2 - 1
            moved = replace(exact, score=Bounded(exact.score.value + 0.4 * sign, torch.zeros_like(sign)))
            right = proof(moved, task, "brute force").proved
            assert all(bool((count <= right).all()) for count in counts)
    assert proved > 0.3 * 200 * len(lists)


@pytest.mark.parametrize(("n", "k", "count"), [(4, 2, 500), (3, 3, 300), (3, 4, 100)])
def test_what_is_proved_of_extreme_tables_is_right(n: int, k: int, count: int, unchecked: None) -> None:
    """Every covered list, by the formula itself; brute force without errors is exact."""
    task, lists = MaxOfK(n, k), torch.tensor(list(itertools.product(range(n), repeat=k)))
    query, largest, places = lists[:, -1], lists.amax(1), torch.arange(k)
    other = lists.where(lists < largest[:, None], -1).amax(1)
    case, some = (query != largest).long(), 0
    for seed in range(count):
        tables = fabricated(n, k, seed)
        pattern = tables.score.value[query[:, None], lists, places].softmax(1)
        read = torch.einsum("bp,bpw->bw", pattern, tables.value.value[lists, places])
        right = (tables.direct.value[query] + read + tables.bias.value).argmax(1) == largest
        exact = proof(tables, task, "brute force").proved
        assert exact.tolist() == np.bincount(largest[right], minlength=n).tolist()
        for strategy in ("by output", "by lead"):
            found = proof(tables, task, strategy)
            covered = other <= found.cap[case, largest]
            assert bool(right[covered].all()), (seed, strategy)
            assert int(covered.sum()) == int(found.proved.sum())
            some += int(covered.sum())
        on_largest = (pattern * (lists == largest[:, None])).sum(1)
        for m in range(n):
            for at, least in enumerate(module._least_pattern(tables, task, torch.tensor([m]))):
                for cap in range(m):
                    within = (largest == m) & (case == at) & (other <= cap) & (lists[:, :-1].amax(1) >= at * m)
                    assert float(least[0, cap]) <= float(on_largest[within].min())
                    # For two numbers the worst case is a list.
                    within &= (lists == m).sum(1) == 1
                    assert k > 2 or float(least[0, cap]) == pytest.approx(float(on_largest[within].min()), rel=1e-9)
    assert some > 0.05 * count * len(lists)


@pytest.mark.parametrize("norm", NORMS)
def test_the_tables_are_the_network(norm: str) -> None:
    """logits · scale, put together from the tables, for every list; the scale is between its bounds."""
    n, k = 4, 3
    model = perturbed(wired(n, k, norm).double(), 1, 0.3)
    tables = max_tables(model, MaxOfK(n, k))
    lists = torch.tensor(list(itertools.product(range(n), repeat=k)))
    sites = oracle_sites(model, lists)
    for row, logits, scale in zip(lists, sites["logits"], sites.get("ln_final.scale", lists)):
        q = int(row[-1])
        size = float(scale[-1]) if norm != "none" else 1.0
        for low, high in ((b[q] for b in tables.scale()), (b[0] for b in tables.scale_of(row[None]))):
            assert float(low) <= size <= float(high)
        assert float(high - low) < 1e-5 * size
        read = range(k)
        pattern = tables.score.value[q, row, read].softmax(-1)
        expected = tables.direct.value[q] + pattern @ tables.value.value[row, read] + size * tables.bias.value
        got = logits[-1] * size
        torch.testing.assert_close(got - got.mean(), expected - expected.mean(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("norm", NORMS)
def test_errors_cover_what_float32_does_and_are_not_vast(norm: str) -> None:
    model = perturbed(wired(8, 2, norm), 3, 0.4)
    rough, fine = max_tables(model, MaxOfK(8)), max_tables(model.double(), MaxOfK(8))
    model = model.float()
    lists = torch.tensor(list(itertools.product(range(8), repeat=2)))
    scores = run(model, lists, ["blocks.0.attn.attn_scores"])["blocks.0.attn.attn_scores"][:, 0, -1]
    for row, seen in zip(lists, scores.double()):
        exact = fine.score.value[row[1], row, [0, 1]]
        assert bool(((seen - exact).abs() <= rough.score.error[row[1], row, [0, 1]]).all())
    for one in ("score", "value", "direct", "bias"):
        assert float(getattr(rough, one).error.max()) < 2e-2
        assert float(getattr(fine, one).error.max()) < 1e-10
        assert float(getattr(rough, one).error.max()) > 1e5 * float(getattr(fine, one).error.max()) or one == "bias"


def test_ties_and_leads_below_rounding_are_not_proved() -> None:
    """Two outputs that differ by less than float32 resolves: right in exact arithmetic, not surely as it runs."""
    model, task = wired(), MaxOfK(5)
    with torch.no_grad():
        model.unembed.weight[3] = model.unembed.weight[4]
    assert accuracy_bounds(model, task)["proved"].sel(maximum=4).values.tolist() == [0, 0, 0]
    with torch.no_grad():
        model.unembed.weight[4] *= 1 + 2**-22
    assert accuracy_bounds(model, task)["proved"].sel(maximum=4).values.tolist() == [0, 0, 0]
    finer = accuracy_bounds(model.double(), task)["proved"].sel(maximum=4)
    assert finer.values.tolist()[:2] == [9, 9]


def test_a_network_that_says_nothing_is_not_proved_anything() -> None:
    empty = initialise(wired().config, 0, std=0.0)
    found = accuracy_bounds(empty, MaxOfK(5))
    assert found["bound"].values.tolist() == [0, 0, 0]
    assert found.attrs["accuracy"] == pytest.approx(1 / 25)  # ties are broken for the first output


def test_cost_tightness_and_baselines() -> None:
    task = MaxOfK(4, 3)
    found = accuracy_bounds(wired(4, 3), task)
    assert found["inputs"].values.tolist() == [64, 0, 0]
    assert found["comparisons"].values.tolist()[0] == 64 * 3 * 3
    assert bool((found["tightness"] == found["bound"] / found.attrs["accuracy"]).all())
    lists = list(itertools.product(range(4), repeat=3))
    assert found.attrs["always_largest"] == pytest.approx(np.mean([max(row) == 3 for row in lists]))
    assert found.attrs["copies_last"] == pytest.approx(np.mean([max(row) == row[-1] for row in lists]))
    without = accuracy_bounds(wired(4, 3), task, ["by lead"], run=False)
    assert math.isnan(without.attrs["accuracy"])
    assert bool(without["tightness"].isnull().all())


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, task, seen = perturbed(wired(5, 3), 2, 0.2), MaxOfK(5, 3), []
    whole = accuracy_bounds(model, task)
    monkeypatch.setattr(module, "_ENTRIES", 300)
    assert accuracy_bounds(model, task, progress=seen.append).identical(whole)
    assert sum(seen) == 250
    assert len(seen) > 10


def test_cheap_proofs_reach_where_inputs_cannot_be_listed() -> None:
    """Ten numbers of ten: 10¹⁰ lists."""
    task = MaxOfK(10, 10)
    model = wired(10, 10, attention=8.0)
    found = accuracy_bounds(model, task, ["by output"], run=False)
    assert float(found["bound"][0]) == 1
    with pytest.raises(UserError, match=r"10,000,000,000 lists of 10 numbers below 10; at most 67,108,864"):
        accuracy_bounds(model, task)


def test_the_picture_shows_size_and_copying() -> None:
    found = max_picture(wired(6), MaxOfK(6))
    assert found.attrs["size_share"] == pytest.approx(1)
    assert found.attrs["size_correlation"] == pytest.approx(1)
    assert found.attrs["score_slope"] == pytest.approx(3.0, rel=1e-5)
    assert found.attrs["copied"] == 1
    np.testing.assert_allclose(found["copying"], 4, atol=1e-5)
    np.testing.assert_allclose(found["score_by_number"].diff("number"), 3.0, atol=1e-4)
    assert max_picture(perturbed(wired(6, attention=0.0), 0, 1.0), MaxOfK(6)).attrs["size_share"] < 0.9


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"n_layers": 2}, "n_layers = 2, which must be 1"),
        ({"n_heads": 2}, "n_heads = 2"),
        ({"d_mlp": 8}, "d_mlp = 8"),
        ({"positions": "rotary", "d_head": 8}, "positions = 'rotary'"),
        ({"attention_mix": 0.5}, "attention_mix = 0.5"),
        ({"n_ctx": 1}, "n_ctx = 1, which must be 2 or more"),
        ({"d_vocab": 4}, "d_vocab = 4, which must be 5 or more"),
        ({"pad_token": 0}, "pad_token = 0"),
    ],
)
def test_other_networks_are_refused(change: dict[str, object], says: str) -> None:
    config = TransformerConfig.from_dict(wired().config.to_dict() | change)
    with pytest.raises(UserError, match=says):
        accuracy_bounds(initialise(config, 0), MaxOfK(5))


def test_other_precisions_weights_and_strategies_are_refused(unchecked: None) -> None:
    with pytest.raises(UserError, match=r"torch.bfloat16; rounding is bounded for"):
        accuracy_bounds(wired().bfloat16(), MaxOfK(5))
    with pytest.raises(UserError, match="the nearest valid one is by output"):
        accuracy_bounds(wired(), MaxOfK(5), ["by outputs"])  # type: ignore[list-item]
    broken = wired()
    with torch.no_grad():
        broken.unembed.weight[0, 0] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        accuracy_bounds(broken, MaxOfK(5))
    flat = wired(norm="layernorm")
    with torch.no_grad():
        flat.embed.weight.fill_(1e4)
    with pytest.raises(UserError, match="constant but for rounding"):
        accuracy_bounds(flat, MaxOfK(5))


def _norm_free(model: Transformer) -> bool:
    return not isinstance(model.ln_final, Norm)


@pytest.mark.artifacts
@pytest.mark.parametrize(
    ("name", "accuracy", "least"),
    [
        ("max-of-two", 1.0, (1.0, 0.999, 0.98)),
        ("max-of-two-undertrained", 0.98779296875, (0.987, 0.96, 0.85)),
        ("max-of-two-layernorm", 0.995361328125, (0.99, 0.98, 0.97)),
    ],
)
def test_gross_networks(artifacts: object, name: str, accuracy: float, least: tuple[float, ...]) -> None:
    """Their accuracies over all 4,096 pairs; the cheap proofs come close; attention grows with the number."""
    model, task = load_transformer(f"artifact:{name}"), MaxOfK(64)
    assert _norm_free(model) == (name != "max-of-two-layernorm")
    found = accuracy_bounds(model, task)
    assert found.attrs["accuracy"] == accuracy == enumerated_accuracy(model, task)
    assert (found["bound"].values >= least).all()
    assert bool((found["tightness"] <= 1).all())
    assert bool((found["bound"] > found.attrs["copies_last"]).all())
    picture = max_picture(model, task)
    assert picture.attrs["size_correlation"] > 0.98
    assert picture.attrs["size_share"] > 0.99
    assert picture.attrs["score_slope"] > 0.3
    assert picture.attrs["copied"] > 0.9
    for seed in range(5):
        other = perturbed(model, seed, 0.03 * (1 + seed))
        assert bool((accuracy_bounds(other, task, run=False)["bound"] <= enumerated_accuracy(other, task)).all())
    shuffled = initialise(model.config, 0)
    assert float(accuracy_bounds(shuffled, task)["bound"].max()) < 0.05
