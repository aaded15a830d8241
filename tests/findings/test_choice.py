"""Heads are chosen by a stated rule, on discovery sequences alone."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.handwired import BOS, VARIED, VOCAB, induction_network
from torch import Tensor

from headwork.findings.induction_heads import measure as procedure
from headwork.findings.induction_heads.attention import HeadScores, choose, head_scores
from headwork.findings.induction_heads.prompts import Prompts, draw
from headwork.model.sites import Head
from headwork.model.sources import load
from headwork.model.transformer import Transformer
from headwork.tasks.repeated_sequences import RepeatedBatch

SETTINGS = {"discovery": 16, "held_out": 12, "ablation": "zero", "seed": 0}


def scores(*layers: list[float]) -> Tensor:
    """The same score on both of two sequences, for every head."""
    return torch.tensor(layers)[:, :, None].expand(-1, -1, 2)


NULL = scores([0.1, 0.2], [0.05, 0.1])


def test_heads_above_the_best_null_and_half_the_best_score_are_found() -> None:
    found = choose(scores([0.5, 0.39], [0.8, 0.41]), NULL)
    assert found.heads == (Head(0, 0), Head(1, 0), Head(1, 1))
    assert (found.best, found.null, found.found) == (Head(1, 0), Head(0, 1), True)


def test_half_the_best_score_is_enough_only_above_the_null() -> None:
    assert choose(scores([0.19, 0.1], [0.3, 0.2]), NULL).heads == (Head(1, 0), Head(1, 1))


@pytest.mark.parametrize("best", [0.15, 0.2])
def test_where_none_is_above_the_null_the_best_stands_in(best: float) -> None:
    found = choose(scores([0.1, 0.1], [0.12, best]), NULL)
    assert (found.heads, found.best, found.found) == ((Head(1, 1),), Head(1, 1), False)


def test_of_equal_heads_the_first_is_the_best_and_all_are_found() -> None:
    found = choose(scores([0.6, 0.6], [0.6, 0.6]), scores([0.1, 0.1], [0.1, 0.1]))
    assert (found.best, found.null) == (Head(0, 0), Head(0, 0))
    assert len(found.heads) == 4


def test_only_lower_layers_are_looked_at_where_asked() -> None:
    found = choose(scores([0.3, 0.1], [0.9, 0.8]), scores([0.1, 0.2], [0.5, 0.95]), below=1)
    assert (found.heads, found.null, found.found) == ((Head(0, 0),), Head(0, 1), True)
    nothing = choose(scores([0.3, 0.1], [0.9, 0.8]), NULL, below=0)
    assert (nothing.heads, nothing.best, nothing.null, nothing.found) == ((), None, None, False)


def test_sequences_without_a_score_do_not_count() -> None:
    one = scores([0.3, 0.1], [0.9, 0.8]).clone()
    one[:, :, 1] = math.nan
    assert choose(one, NULL).heads == (Head(1, 0), Head(1, 1))


@given(st.lists(st.floats(0, 1), min_size=12, max_size=12))
def test_the_rule_in_a_loop(values: list[float]) -> None:
    score, null = torch.tensor(values[:6]).view(2, 3), torch.tensor(values[6:]).view(2, 3)
    found = choose(score[:, :, None], null[:, :, None])
    top, bar = float(score.max()), float(null.max())
    passed = {Head(i, j) for i in range(2) for j in range(3) if float(score[i, j]) >= max(bar, top / 2)}
    assert found.found == (top > bar)
    assert set(found.heads) == (passed if top > bar else {found.best})
    assert found.best is not None
    assert float(score[found.best.layer, found.best.head]) == top


def noise(batch: RepeatedBatch) -> RepeatedBatch:
    tokens = torch.randint(1, VOCAB, batch.tokens.shape, generator=torch.Generator().manual_seed(99))
    tokens[:, 0] = BOS
    return dataclasses.replace(batch, tokens=tokens)


def test_held_out_sequences_have_no_part_in_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    model = induction_network()
    honest = procedure.measure(model, SETTINGS)

    def poisoned(*arguments: object) -> Prompts:
        prompts = draw(VARIED, 16, 12, 0)
        return dataclasses.replace(prompts, held_out=noise(prompts.held_out), replaced=noise(prompts.replaced))

    monkeypatch.setattr(procedure, "draw", poisoned)
    found = procedure.measure(model, SETTINGS)
    assert found.heads == honest.heads
    assert float(found.dataset["score_best"].mean()) < 0.5 < float(honest.dataset["score_best"].mean())
    for name in ("discovery_induction", "discovery_previous", "discovery_induction_null"):
        assert found.dataset[name].equals(honest.dataset[name])


def test_held_out_scores_have_no_part_in_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    model = induction_network()
    honest = procedure.measure(model, SETTINGS)
    held_out = draw(VARIED, 16, 12, 0).held_out

    def poisoned(model: Transformer, batch: RepeatedBatch, generator: torch.Generator) -> HeadScores:
        scored = head_scores(model, batch, generator)
        if batch is not held_out:
            return scored
        return HeadScores(*(getattr(scored, f.name).flip(1) for f in dataclasses.fields(HeadScores)))

    monkeypatch.setattr(procedure, "head_scores", poisoned)
    found = procedure.measure(model, SETTINGS)
    assert float(found.dataset["score_best"].mean()) < 0.5
    assert float(found.dataset["previous_best"].mean()) < 0.5
    assert found.heads == honest.heads


def test_discovery_sequences_alone_make_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    def poisoned(*arguments: object) -> Prompts:
        prompts = draw(VARIED, 16, 12, 0)
        return dataclasses.replace(prompts, discovery=noise(prompts.discovery))

    monkeypatch.setattr(procedure, "draw", poisoned)
    found = procedure.measure(induction_network(), SETTINGS)
    assert found.dataset["discovery_induction"].max() < 0.5


def test_scores_of_heads_do_not_depend_on_the_batch_they_are_measured_with() -> None:
    model = load("zoo:attn-only-2l")
    batch = draw(VARIED, 16, 12, 0).held_out
    whole = head_scores(model, batch, torch.Generator().manual_seed(0))
    first = RepeatedBatch(batch.tokens[:5], batch.copy[:5], batch.index[:5])
    part = head_scores(model, first, torch.Generator().manual_seed(0))
    for name in ("induction", "previous", "duplicate"):
        torch.testing.assert_close(getattr(part, name), getattr(whole, name)[:, :, :5])
