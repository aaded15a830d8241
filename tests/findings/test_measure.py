"""What is measured on a trained network equals a slow recomputation from the oracle's forward pass."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from tests.methods.hand import logits_with, slow_paths
from tests.oracle import oracle_sites
from torch import Tensor

from headwork.findings.induction_heads.card import CARD
from headwork.findings.induction_heads.measure import measure
from headwork.findings.induction_heads.prompts import Prompts, draw
from headwork.findings.measurement import Measurement
from headwork.methods.ablation import VALUES
from headwork.methods.path_patching import Route
from headwork.model.sites import Head
from headwork.model.sources import load
from headwork.model.transformer import Transformer
from headwork.tasks.repeated_sequences import RepeatedBatch, RepeatedSequences

DATA = RepeatedSequences(vocab=128, length=26, segment=(4, 8), copies=(3, 3))
SETTINGS = {"discovery": 12, "held_out": 5, "ablation": "mean", "seed": 1}


@pytest.fixture(scope="module")
def model() -> Transformer:
    found = load("zoo:attn-only-2l", dtype=torch.float64)
    assert found.card is not None
    found.card = dataclasses.replace(found.card, data=DATA.to_dict())
    return found


@pytest.fixture(scope="module")
def measured(model: Transformer) -> Measurement:
    return measure(model, SETTINGS)


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    return draw(DATA, 12, 5, 1)


@pytest.fixture(scope="module")
def on_discovery(model: Transformer, prompts: Prompts) -> dict[str, Tensor]:
    return oracle_sites(model, prompts.discovery.tokens)


@pytest.fixture(scope="module")
def on_held_out(model: Transformer, prompts: Prompts) -> dict[str, Tensor]:
    return oracle_sites(model, prompts.held_out.tokens)


def slow_score(pattern: Tensor, batch: RepeatedBatch, row: int) -> float:
    """Attention of one head's pattern `[query, key]` to what followed earlier copies, over predictable positions."""
    tokens = batch.tokens[row].tolist()
    found = [
        sum(float(pattern[query, k + 1]) for k in range(query) if tokens[k] == tokens[query])
        for query in batch.predictable[row].nonzero()[:, 0].tolist()
    ]
    return sum(found) / len(found)


def slow_losses(logits: Tensor, batch: RepeatedBatch, where: Tensor) -> list[float]:
    """Mean loss over the chosen positions of each sequence."""
    means = []
    for row in range(len(logits)):
        found = []
        for p in where[row].nonzero()[:, 0].tolist():
            scores = logits[row, p].tolist()
            total = math.log(sum(math.exp(x) for x in scores))
            found.append(total - scores[int(batch.tokens[row, p + 1])])
        means.append(sum(found) / len(found))
    return means


def close(found: object, expected: object, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=0, atol=tolerance)


def heads(measured: Measurement, role: str) -> list[Head]:
    return [Head(*(int(part) for part in name.split("."))) for name in measured.heads[role]]


def test_losses(measured: Measurement, prompts: Prompts, on_held_out: dict[str, Tensor]) -> None:
    batch, logits = prompts.held_out, on_held_out["logits"]
    close(measured.dataset["loss_inside"], slow_losses(logits, batch, batch.predictable))
    close(measured.dataset["loss_outside"], slow_losses(logits, batch, batch.unpredictable))
    right = [
        [int(logits[row, p].argmax()) == int(batch.tokens[row, p + 1]) for p in where.nonzero()[:, 0].tolist()]
        for row, where in enumerate(batch.predictable)
    ]
    close(measured.dataset["accuracy_inside"], [sum(one) / len(one) for one in right])


def test_losses_by_place(measured: Measurement, prompts: Prompts, on_held_out: dict[str, Tensor]) -> None:
    batch, shown = prompts.held_out, measured.dataset["loss_by_place"]
    every = torch.ones_like(batch.predictable)
    every[:, -1] = False
    for row in range(len(batch.tokens)):
        for copy in range(3):
            place = (batch.copy[row] == copy).nonzero()[:, 0].tolist()
            for index in range(shown.sizes["index"]):
                found = float(shown[copy, index, row])
                if index < len(place) - 1:
                    alone = torch.zeros_like(every)
                    alone[:, place[index]] = True
                    logits = on_held_out["logits"][row : row + 1]
                    one = RepeatedBatch(batch.tokens[row : row + 1], batch.copy[:1], batch.index[:1])
                    close(found, slow_losses(logits, one, alone[:1])[0])
                else:
                    assert math.isnan(found)


def test_heads_and_their_scores(
    measured: Measurement, prompts: Prompts, on_discovery: dict[str, Tensor], on_held_out: dict[str, Tensor]
) -> None:
    every = [Head(layer, head) for layer in range(2) for head in range(4)]

    def mean_score(head: Head) -> float:
        patterns = on_discovery[f"blocks.{head.layer}.attn.pattern"][:, head.head]
        found = [slow_score(patterns[row], prompts.discovery, row) for row in range(12)]
        return sum(found) / 12

    means = {head: mean_score(head) for head in every}
    for head, value in means.items():
        close(measured.dataset["discovery_induction"].sel(layer=head.layer, head=head.head), value)
    best = max(means, key=lambda h: means[h])
    bar = float(measured.dataset["discovery_induction_null"].max())
    assert bar < 0.3
    assert heads(measured, "induction") == [h for h in every if means[h] >= max(bar, means[best] / 2)]
    patterns = on_held_out[f"blocks.{best.layer}.attn.pattern"][:, best.head]
    expected = [slow_score(patterns[row], prompts.held_out, row) for row in range(5)]
    close(measured.dataset["score_best"], expected)
    previous = on_discovery["blocks.0.attn.pattern"].diagonal(-1, 2, 3).mean((0, 2))
    assert heads(measured, "previous-token")[0].layer == 0
    assert int(previous.argmax()) in [h.head for h in heads(measured, "previous-token")]


def test_ablation_costs(
    model: Transformer,
    measured: Measurement,
    prompts: Prompts,
    on_discovery: dict[str, Tensor],
    on_held_out: dict[str, Tensor],
) -> None:
    batch = prompts.held_out
    clean = np.array(slow_losses(on_held_out["logits"], batch, batch.predictable))
    replaced: dict[str, dict[int, Tensor]] = {}
    for head in heads(measured, "induction"):
        site = f"blocks.{head.layer}.attn.z"
        replaced.setdefault(site, {})[head.head] = on_discovery[site][:, :, head.head].mean((0, 1))
    ablated = logits_with(model, batch.tokens, replaced)
    close(measured.dataset["ablation_cost"], slow_losses(ablated, batch, batch.predictable) - clean)
    zeroed = {site: {head: torch.zeros_like(z) for head, z in one.items()} for site, one in replaced.items()}
    without = logits_with(model, batch.tokens, zeroed)
    close(measured.dataset["cost"].sel(value="zero"), slow_losses(without, batch, batch.predictable) - clean)
    assert tuple(measured.dataset["value"].values) == VALUES


def test_paths(model: Transformer, measured: Measurement, prompts: Prompts, on_held_out: dict[str, Tensor]) -> None:
    batch, last = prompts.held_out, prompts.held_out.last_copy()
    clean = np.array(slow_losses(on_held_out["logits"], batch, last))
    roles = heads(measured, "previous-token"), heads(measured, "induction")
    sites = on_held_out, oracle_sites(model, prompts.replaced.tokens)
    routes: tuple[tuple[Route, str], ...] = (("q", "path_queries"), ("k", "path_keys"), ("v", "path_values"))
    for route, quantity in routes:
        patched = slow_paths(model, batch.tokens, *sites, *roles, route)
        close(measured.dataset[quantity], slow_losses(patched, batch, last) - clean)


def test_the_attention_pictures_are_the_median_and_the_worst(
    measured: Measurement, on_held_out: dict[str, Tensor]
) -> None:
    data = measured.dataset
    scores = data["score_best"].values
    rows = dict(zip(data["case"].values.tolist(), data["case_sequence"].values.tolist()))
    assert rows["worst"] == int(scores.argmin())
    assert scores[rows["median"]] == sorted(scores)[len(scores) // 2]
    for case, row in rows.items():
        for layer in data["shown_layer"].values:
            shown = data["attention"].sel(case=case, shown_layer=layer)
            close(shown, on_held_out[f"blocks.{layer}.attn.pattern"][row])


def test_everything_that_the_card_names_is_measured(measured: Measurement) -> None:
    for claim in CARD.subclaims:
        assert claim.quantity in measured.dataset
        axes = () if claim.replicate is None else (claim.replicate,)
        assert measured.dataset[claim.quantity].dims == axes
        for other in (claim.null, claim.ratio_of):
            assert other is None or other not in measured.dataset or measured.dataset[other].dims == axes
