"""Metrics over several tokens against the whole network's logits, added up by hand."""

from __future__ import annotations

import pytest
import torch
from tests.architectures import LENGTH, network

from headwork.engine.metrics import LogitContrast, ProbabilityDifference
from headwork.engine.resume import trace
from headwork.errors import UserError
from headwork.tasks.prompt_pairs import checked_metric, of_rows

POSITIONS = torch.tensor([LENGTH - 1, 2, 3])
TOKENS = torch.tensor([[0, 1, 2], [2, 1, 0], [1, 0, 0]])
WEIGHTS = torch.tensor([[1.0, -0.5, -0.5], [0.25, 2.0, 0.0], [1.0, -1.0, 0.0]])
PROMPTS = torch.tensor([[1, 2, 3, 4, 5], [5, 4, 3, 2, 1], [2, 2, 7, 1, 3]])


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama", "solu-ln", "classifier"])
@pytest.mark.parametrize("kind", [LogitContrast, ProbabilityDifference])
def test_the_metric_is_the_weighted_sum(name: str, kind: type[LogitContrast | ProbabilityDifference]) -> None:
    model = network(name)
    metric = kind(POSITIONS, TOKENS, WEIGHTS)
    logits = model(PROMPTS)
    values = logits if kind is LogitContrast else logits.softmax(-1)
    slow = [
        sum(WEIGHTS[b, j].item() * values[b, POSITIONS[b], TOKENS[b, j]].item() for j in range(3)) for b in range(3)
    ]
    resid = trace(model, PROMPTS).resid_final
    assert metric.reads(LENGTH) == 2
    for start in (0, 2):
        found = metric(model, resid[:, start:], start)
        torch.testing.assert_close(found, torch.tensor(slow, dtype=torch.float64), rtol=0, atol=1e-12)
    cut = of_rows(metric, slice(1, 3), 3)
    torch.testing.assert_close(cut(model, resid[1:], 0), metric(model, resid, 0)[1:])


@pytest.mark.parametrize("kind", [LogitContrast, ProbabilityDifference])
@pytest.mark.usefixtures("unchecked")
def test_what_does_not_fit_is_refused(kind: type[LogitContrast | ProbabilityDifference]) -> None:
    with pytest.raises(UserError, match="needs a position, a row of tokens and a row of weights for each example"):
        kind(POSITIONS, TOKENS, WEIGHTS[:, :2])
    with pytest.raises(UserError, match="0 or more"):
        kind(POSITIONS, -TOKENS, WEIGHTS)
    metric = kind(POSITIONS, TOKENS + 9, WEIGHTS)
    with pytest.raises(UserError, match="reads position 4; the prompts have 0–3"):
        metric.reads(4)
    with pytest.raises(UserError, match="reads token 11; this network has logits for tokens 0–10"):
        checked_metric(network("gpt2"), metric, ("a", "b", "c"), LENGTH)
    with pytest.raises(UserError, match="is for 3 prompts, but there are 2"):
        checked_metric(network("gpt2"), kind(POSITIONS, TOKENS, WEIGHTS), ("a", "b"), LENGTH)
