"""Folding changes what the weights say and nothing that the network computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.architectures import ARCHITECTURES, network, prompts

from headwork.engine.run import run
from headwork.errors import UserError
from headwork.model.card import ModelCard
from headwork.model.checkpoints import load, save
from headwork.model.folding import centre_unembedding, centre_writing_weights, fold_norms
from headwork.model.transformer import Transformer

NORMED = [
    name
    for name, c in ARCHITECTURES.items()
    if (c.norm != "none" and c.positions != "shortformer") or (c.norm == "none" and c.neuron_norm)
]
CENTRED = [name for name, c in ARCHITECTURES.items() if c.norm == "layernorm"]


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def logits(model: Transformer, name: str) -> torch.Tensor:
    return run(model, prompts(name)).logits


@pytest.mark.parametrize("name", NORMED)
def test_folded_norms_leave_stream_pattern_and_logits(name: str) -> None:
    model = network(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folded = fold_norms(model)
    whole, other = run(model, prompts(name), sites="*"), run(folded, prompts(name), sites="*")
    same(other.logits, whole.logits)
    for site in whole:
        if not site.endswith((".normalized", ".scale", ".mlp.post", ".mlp.mid")):
            same(other[site], whole[site])
    norms = {key: value for key, value in folded.state_dict().items() if "ln" in key}
    assert norms
    for key, value in norms.items():
        assert (value == (1 if key.endswith(".w") else 0)).all()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", CENTRED)
def test_centred_writing_weights_leave_the_logits_and_take_the_streams_mean(name: str) -> None:
    model = network(name)
    centred = centre_writing_weights(model)
    done = run(centred, prompts(name), sites="*")
    same(done.logits, logits(model, name))
    for site in done:
        if site.endswith(("embed", "attn_out", "mlp_out", "resid_pre", "resid_mid", "resid_post")):
            shifted = site == "pos_embed" and model.config.positions == "shortformer"
            assert shifted or done[site].mean(-1).abs().max() < 1e-12


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_centred_unembedding_leaves_the_probabilities(name: str) -> None:
    model = network(name)
    found = logits(centre_unembedding(model), name)
    same(found.log_softmax(-1), logits(model, name).log_softmax(-1))
    assert found.mean(-1).abs().max() < 1e-12


@pytest.mark.parametrize("name", ["gpt2", "neo", "solu-ln", "classifier"])
def test_all_three_together_and_twice(name: str) -> None:
    model = network(name)
    folded = centre_unembedding(centre_writing_weights(fold_norms(model)))
    same(logits(folded, name).log_softmax(-1), logits(model, name).log_softmax(-1))
    again = fold_norms(centre_writing_weights(centre_unembedding(folded)))
    for key, value in folded.state_dict().items():
        same(again.state_dict()[key], value)


def test_the_card_says_what_was_folded(tmp_path: Path) -> None:
    model = network("gpt2").float()
    card = ModelCard(name="toy", sha256="0" * 64)
    model.card = card
    folded = centre_unembedding(fold_norms(model))
    assert folded.card is not None
    assert [line.split(" ")[1] for line in folded.card.folded] == ["norms'", "unembedding"]
    assert folded.card.sha256 == "", "the hash is that of the weights before"
    assert model.card is card
    assert not folded.config.tied
    back = load(save(folded, tmp_path / "folded", folded.card))
    assert back.card is not None
    assert back.card.folded == folded.card.folded
    assert torch.equal(logits(back, "gpt2"), logits(folded, "gpt2"))


def test_a_network_without_a_card_gets_one() -> None:
    card = fold_norms(network("gpt2")).card
    assert card is not None
    assert (card.name, len(card.folded)) == ("unnamed", 1)


def test_what_cannot_be_folded_is_refused() -> None:
    with pytest.raises(UserError, match="has no norms whose gains could be folded"):
        fold_norms(network("one-layer"))
    with pytest.raises(UserError, match="Shortformer adds positions after the norm"):
        fold_norms(network("shortformer"))
    with pytest.raises(UserError, match="this network's norm is rmsnorm"):
        centre_writing_weights(network("llama"))
    with pytest.raises(UserError, match="this network's norm is none"):
        centre_writing_weights(network("one-layer"))
