"""Prompt pairs are refused where nothing could be compared, and say where they first differ."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.architectures import network
from torch import Tensor

from headwork.engine.metrics import LogitDifference, Loss
from headwork.errors import UserError
from headwork.model.transformer import Transformer
from headwork.tasks.prompt_pairs import PromptPairs, of_rows, prompt_labels

CLEAN = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8], [1, 1, 1, 1]])
CORRUPT = torch.tensor([[1, 2, 9, 4], [5, 1, 7, 2], [1, 1, 1, 2]])


def test_pairs_say_where_they_first_differ() -> None:
    pairs = PromptPairs(CLEAN, CORRUPT)
    assert pairs.first_difference.tolist() == [2, 1, 3]
    assert pairs.labels == ("0", "1", "2")
    assert pairs.start(network("gpt2").config) == 1
    assert pairs.start(network("bidirectional-pad").config) == 0
    part = pairs.part(slice(2, 3))
    assert (part.labels, part.first_difference.tolist()) == (("2",), [3])


@settings(deadline=None)
@given(st.data())
def test_no_token_before_the_first_difference_differs(data: st.DataObject) -> None:
    rows = st.lists(st.integers(0, 2), min_size=4, max_size=4)
    clean = torch.tensor(data.draw(st.lists(rows, min_size=2, max_size=2)))
    corrupt = torch.tensor(data.draw(st.lists(rows, min_size=2, max_size=2)))
    if (clean == corrupt).all(1).any():
        with pytest.raises(UserError, match="are the same prompt"):
            PromptPairs(clean, corrupt)
        return
    for b, first in enumerate(PromptPairs(clean, corrupt).first_difference.tolist()):
        assert torch.equal(clean[b, :first], corrupt[b, :first])
        assert clean[b, first] != corrupt[b, first]


@pytest.mark.usefixtures("unchecked")
def test_pairs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match=r"clean prompts have shape \[3, 4\], the corrupt ones \[3, 3\]"):
        PromptPairs(CLEAN, CORRUPT[:, :3])
    with pytest.raises(UserError, match=r"clean prompts have shape \[4\], the corrupt ones \[4\]"):
        PromptPairs(CLEAN[0], CORRUPT[0])
    with pytest.raises(UserError, match=r"same prompt in 2 of 3 pairs \(a, c\)"):
        PromptPairs(CLEAN, torch.stack([CLEAN[0], CORRUPT[1], CLEAN[2]]), ("a", "b", "c"))
    with pytest.raises(UserError, match="2 different labels were given for 3 prompts"):
        PromptPairs(CLEAN, CORRUPT, ("a", "b", "b"))
    with pytest.raises(UserError, match="1 different labels were given for 2 prompts"):
        prompt_labels(("a",), 2)


def test_pairs_must_be_readable_by_the_network() -> None:
    model = network("gpt2")
    with pytest.raises(UserError, match="Token 11 is outside this model's vocabulary 0–10"):
        PromptPairs(CLEAN, CORRUPT + 2).on(model)
    with pytest.raises(UserError, match="have 8 tokens; this model reads at most 7"):
        PromptPairs(CLEAN.repeat(1, 2), CORRUPT.repeat(1, 2)).on(model)
    padded = CLEAN.clone()
    padded[1, 1] = 0
    with pytest.raises(UserError, match=r"pair 1 have padding \(token 0\) at different positions"):
        PromptPairs(padded, CORRUPT).on(network("causal-pad"))
    assert torch.equal(PromptPairs(CLEAN, CORRUPT).on(model).corrupt, CORRUPT)


def test_a_metric_is_cut_to_some_prompts() -> None:
    metric = LogitDifference(torch.tensor([3, 2, 1]), torch.tensor([0, 1, 2]), torch.tensor([4, 5, 6]))
    cut = of_rows(metric, slice(1, 3), 3)
    assert isinstance(cut, LogitDifference)
    assert (cut.positions.tolist(), cut.correct.tolist(), cut.wrong.tolist()) == ([2, 1], [1, 2], [5, 6])
    loss = of_rows(Loss(CLEAN, CLEAN > 0), slice(0, 2), 3)
    assert isinstance(loss, Loss)
    assert torch.equal(loss.targets, CLEAN[:2])
    assert of_rows(metric, slice(0, 3), 3) is metric

    class Plain:
        def __call__(self, model: Transformer, resid: Tensor, start: int) -> Tensor:
            return resid.sum((1, 2))

        def reads(self, length: int) -> int:
            return 0

    with pytest.raises(UserError, match="metric Plain is no dataclass"):
        of_rows(Plain(), slice(0, 2), 3)

    @dataclass(frozen=True)
    class Shared(Plain):
        """All prompts share its one direction; nothing in it has a row per prompt."""

        direction: Tensor

    shared = of_rows(Shared(torch.ones(8)), slice(0, 2), 3)
    assert isinstance(shared, Shared)
    assert len(shared.direction) == 8
