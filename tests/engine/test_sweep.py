"""Sweeps against the slow loop: edit, run the whole network, read the metric from its logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tests.architectures import ARCHITECTURES, BATCH, LENGTH, network, prompts
from torch import Tensor

from headwork.engine import sweep as module
from headwork.engine.edits import Edit, add, function, patch, scale
from headwork.engine.metrics import LogitDifference, Loss, Metric, token_losses
from headwork.engine.resume import trace
from headwork.engine.run import run
from headwork.engine.sweep import sweep
from headwork.errors import UserError
from headwork.model.initialise import initialise
from headwork.model.sites import layer_of, sites
from headwork.model.transformer import Transformer

MASK = torch.tensor([[0, 0, 0, 1, 0], [0, 1, 0, 0, 1], [0, 0, 0, 0, 0]], dtype=torch.bool)
DIFFERENCE = LogitDifference(torch.tensor([4, 2, 3]), torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0]))
LOSS = Loss(
    torch.tensor([[0, 1, 2, 0, 1], [2, 2, 1, 0, 0], [1, 0, 1, 0, 2]]),
    torch.tensor([[0, 1, 0, 1, 1], [0, 0, 1, 0, 0], [0, 1, 1, 1, 1]], dtype=torch.bool),
)


def slowly(metric: Metric, logits: Tensor) -> Tensor:
    """The metric, one example and one position at a time, from the logits of the whole network."""
    values = []
    for b in range(len(logits)):
        if isinstance(metric, LogitDifference):
            at = logits[b, metric.positions[b]]
            values.append(at[metric.correct[b]] - at[metric.wrong[b]])
        else:
            assert isinstance(metric, Loss)
            where = [p for p in range(logits.shape[1]) if metric.where[b, p]]
            each = [logits[b, p].exp().sum().log() - logits[b, p, metric.targets[b, p]] for p in where]
            values.append(sum(each) / len(each))
    return torch.stack(values)


def variants(model: Transformer, name: str) -> list[list[Edit] | Edit]:
    """Edits at every site before the end, at different positions, alone and several at once."""
    other = run(model, prompts(name, 1), sites="*")
    places: list[Any] = [None, 4, 1, (3, 2), MASK]
    reachable = [site for site in sites(model.config) if layer_of(site) is not None or "embed" in site]
    found: list[list[Edit] | Edit] = [[]]
    for i, site in enumerate(reachable):
        found += [scale(site, 0.3, positions=places[i % 5]), [patch(site, other, positions=places[(i + 3) % 5])]]
        found.append([add(site, 0.2, positions=places[(i + 1) % 5]), scale(reachable[-1 - i], 0.5)])
    found += [function(site, torch.sigmoid, positions=places[i % 5]) for i, site in enumerate(reachable[::3])]
    return found


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.usefixtures("unchecked")
def test_a_sweep_equals_the_slow_loop(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = network(name), prompts(name)
    base, tried = trace(model, tokens), variants(model, name)
    logits = [run(model, tokens, edits=v).logits for v in tried]
    for metric, widest in ((DIFFERENCE, 2000), (LOSS, 10**6)):
        monkeypatch.setattr(module, "_WIDEST", widest)
        done: list[int] = []
        found = sweep(model, base, tried, metric, progress=done.append)
        expected = torch.stack([slowly(metric, one) for one in logits])
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
        assert sum(done) == len(tried)
        assert len(done) < len(tried), "variants that bite at one place share a pass"


def test_variants_share_as_few_passes_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = network("gpt2"), prompts("gpt2")
    heads = [scale("blocks.1.attn.z", 0, heads=h % 2, positions=2) for h in range(7)]
    width = 3 * 2 * 4 + 2 * LENGTH  # queries, keys, values, and a row of each head's attention map
    for rows, passes in ((BATCH * 3 * 7, [7]), (BATCH * 3 * 3, [3, 3, 1]), (0, [1] * 7)):
        monkeypatch.setattr(module, "_WIDEST", rows * width)
        done: list[int] = []
        metric = LogitDifference(torch.tensor([4, 3, 2]), DIFFERENCE.correct, DIFFERENCE.wrong)
        sweep(model, trace(model, tokens), heads, metric, done.append)
        assert done == passes


def test_an_edit_after_what_the_metric_reads_changes_nothing() -> None:
    model, tokens = network("gpt2"), prompts("gpt2")
    metric = LogitDifference(torch.tensor([1, 0, 1]), DIFFERENCE.correct, DIFFERENCE.wrong)
    without, late = sweep(
        model, trace(model, tokens), [[], scale("blocks.0.resid_pre", 0, positions=[2, 3, 4])], metric
    )
    torch.testing.assert_close(late, without, rtol=0, atol=1e-12)


def test_no_variants_give_an_empty_table() -> None:
    model = network("gpt2")
    assert sweep(model, trace(model, prompts("gpt2")), [], LOSS).shape == (0, BATCH)


def test_wrong_edits_are_refused_before_any_work() -> None:
    model = network("gpt2")
    base, good = trace(model, prompts("gpt2")), scale("blocks.0.attn.z", 0)
    done: list[int] = []
    for wrong, says in [
        (scale("blocks.0.attn.zz", 0), "Unknown site"),
        (scale("blocks.0.attn.z", 0, heads=9), "head 9 does not exist"),
        (scale("ln_final.scale", 2), "cannot edit ln_final.scale"),
        (scale("hook_logits", 2), "cannot edit logits"),
    ]:
        with pytest.raises(UserError, match=says):
            sweep(model, base, [good, [good, wrong]], LOSS, done.append)
    with pytest.raises(UserError, match="made on another network"):
        sweep(initialise(model.config, 0), base, [good], LOSS, done.append)
    assert not done


def test_a_metric_must_fit_the_prompts() -> None:
    model = network("gpt2")
    base = trace(model, prompts("gpt2"))
    token = torch.tensor([0, 0, 0])
    with pytest.raises(UserError, match="reads position 5; the prompts have 0–4"):
        sweep(model, base, [[]], LogitDifference(torch.tensor([1, 5, 2]), token, token))
    with pytest.raises(UserError, match="prompts of 4 tokens; these have 5"):
        sweep(model, base, [[]], Loss(LOSS.targets[:, :4], LOSS.where[:, :4]))
    with pytest.raises(UserError, match="position, a correct and a wrong token for each example, 0 or more"):
        LogitDifference(torch.tensor([1, -1, 2]), token, token)
    with pytest.raises(UserError, match="example 1 has none"):
        Loss(LOSS.targets, LOSS.where & torch.tensor([[True], [False], [True]]))

    @dataclass(frozen=True)
    class Mean:
        def __call__(self, model: Transformer, resid: Tensor, start: int) -> Tensor:
            return resid.mean()

        def reads(self, length: int) -> int:
            return 0

    with pytest.raises(UserError, match=r"gave \[\] for 3 examples"):
        sweep(model, base, [[]], Mean())


@pytest.mark.usefixtures("unchecked")
def test_a_metric_must_be_of_one_piece() -> None:
    token = torch.tensor([0, 0, 0])
    with pytest.raises(UserError, match="for each example"):
        LogitDifference(token, token, token[:2])
    model = network("gpt2")
    with pytest.raises(UserError, match=r"gave \[1\] for 3 examples"):
        sweep(model, trace(model, prompts("gpt2")), [[]], LogitDifference(token[:1], token[:1], token[:1]))
    with pytest.raises(UserError, match=r"targets \[3, 5\] but positions \[3, 4\]"):
        Loss(LOSS.targets, LOSS.where[:, :4])


def test_token_losses_are_cross_entropies_in_nats() -> None:
    losses = token_losses(torch.zeros(2, 4), torch.tensor([0, 3]))
    torch.testing.assert_close(losses, torch.full((2,), 4.0).log())
