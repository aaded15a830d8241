"""Running a network on all pairs equals running it on each; what cannot add is refused."""

from __future__ import annotations

import random

import pytest
import torch
from tests.architectures import network
from tests.methods import adders
from torch.nn import functional

from headwork.engine.run import run
from headwork.errors import UserError
from headwork.methods import number_pairs as module
from headwork.methods.number_pairs import adding_pairs, pair_activations, recorded_split, shuffled_split
from headwork.model.card import ModelCard
from headwork.tasks.majority import Majority
from headwork.tasks.modular_addition import ModularAddition


@pytest.mark.parametrize("name", adders.NETWORKS)
@pytest.mark.parametrize("task", [adders.SMALL, adders.SUBTRACTS, adders.OWN], ids=["adds", "subtracts", "own words"])
def test_every_pair_equals_runs_of_single_pairs(
    name: str, task: ModularAddition, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAIRS_AT_ONCE", 20)
    model, p = adders.small(name), task.modulus
    found = pair_activations(model, task, layer=0)
    assert torch.equal(task.of(adding_pairs(task)).labels.view(p, p), module.right_answers(p))
    for a, b in ((0, 1), (2, 2), (1, 0), (2, 1)):
        number = (-b if task.subtract else b) % p
        tokens = [a, number + task.second] + ([] if task.equals is None else [task.equals])
        one = run(model, [tokens], ["blocks.0.mlp.post", "blocks.0.attn.pattern"])
        torch.testing.assert_close(found.logits[a, b], one.logits[0, -1, :p])
        assert found.neurons is not None
        torch.testing.assert_close(found.neurons[a, b], one["blocks.0.mlp.post"][0, -1])
        torch.testing.assert_close(found.pattern[a, b], one["blocks.0.attn.pattern"][0, :, -1])


def test_a_network_without_mlps_has_no_neurons_and_the_last_layer_is_the_default() -> None:
    found = pair_activations(adders.small("attention-only-rotary-half"), adders.SMALL)
    assert found.neurons is None
    assert found.layer == 1


def test_the_split_is_the_one_that_the_authors_draw() -> None:
    pairs = [(i, j) for i in range(11) for j in range(11)]
    random.seed(3)
    random.shuffle(pairs)
    found = shuffled_split(11, 0.3, 3)
    assert sorted(pairs[:36]) == [tuple(pair) for pair in found.nonzero().tolist()]


def test_a_split_is_given_only_where_the_recorded_loss_confirms_it() -> None:
    logits, train = adders.noise(7, 7, 7), shuffled_split(7, 0.5, 1)
    loss = functional.cross_entropy(logits[train], module.right_answers(7)[train]).item()
    for stated, given in [
        ({"seed": 1, "frac_train": 0.5, "loss": loss}, True),
        ({"seed": 2, "frac_train": 0.5, "loss": loss}, False),
        ({"seed": 1, "frac_train": 0.5, "loss": 1.02 * loss}, False),
        ({"frac_train": 0.5, "loss": loss}, False),
    ]:
        model = network("gpt2")
        model.card = ModelCard(name="small", training=stated)
        found = recorded_split(model, logits)
        assert (found is not None) is given
        assert found is None or torch.equal(found, train)


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_add_is_refused() -> None:
    model = adders.small("gpt2")
    for task, says in [
        (ModularAddition(12), "The network has 11 tokens; addition modulo 12 as described needs 12 or more"),
        (ModularAddition(5, second=7), "has 11 tokens; addition modulo 5 as described needs 12 or more"),
        (ModularAddition(5, equals=11), "has 11 tokens; addition modulo 5 as described needs 12 or more"),
        (ModularAddition(2), "The modulus is 2; frequencies need one of 3 or more"),
        (None, "card does not say which task"),
    ]:
        with pytest.raises(UserError, match=says):
            pair_activations(model, task)
    with pytest.raises(UserError, match="has layers 0–1; layer 2 does not exist"):
        pair_activations(model, adders.SMALL, layer=2)
    with pytest.raises(UserError, match="no layers"):
        pair_activations(adders.small("no-layers"), adders.SMALL)
    other = network("gpt2")
    other.card = ModelCard(name="small", data=Majority(5, 3, 5, 6).to_dict())
    with pytest.raises(UserError, match="was trained for majority; this needs one for modular-addition"):
        module.addition_of(other)
    for fraction in (0, 1):
        with pytest.raises(UserError, match="must lie between 0 and 1"):
            shuffled_split(7, fraction, 0)
    with pytest.raises(UserError, match=r"shape \[7, 7, 6\]; needed is \[p, p, p\]"):
        module.checked_table(torch.zeros(7, 7, 6))
    broken = torch.zeros(5, 5, 5)
    broken[1, 2, 3] = torch.nan
    with pytest.raises(UserError, match="The logit of 3 for the numbers 1 and 2 is not finite"):
        module.checked_table(broken)
