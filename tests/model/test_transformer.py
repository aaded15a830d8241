"""The forward pass against its slow twin, site by site, on every architecture."""

from __future__ import annotations

import jaxtyping
import pytest
import torch
from tests.architectures import ARCHITECTURES, BATCH, LENGTH, network, prompts
from tests.oracle import oracle_sites

from headwork.engine.run import run
from headwork.model.config import TransformerConfig
from headwork.model.initialise import initialise
from headwork.model.sites import sites
from headwork.model.transformer import NO_TAP, Transformer


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_declared_site_is_what_the_slow_twin_computes(name: str) -> None:
    model, tokens = network(name), prompts(name)
    expected = oracle_sites(model, tokens)
    found = run(model, tokens, sites=list(sites(model.config)))
    assert set(found) == set(expected)
    for site, value in expected.items():
        torch.testing.assert_close(found[site], value, rtol=0, atol=1e-10, msg=lambda m, s=site: f"{s}: {m}")
    torch.testing.assert_close(found.logits, expected["logits"], rtol=0, atol=1e-10)
    assert expected["logits"].isfinite().all()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_looking_changes_nothing(name: str) -> None:
    model, tokens = network(name), prompts(name)
    plain = model(tokens)
    for site in sites(model.config):
        torch.testing.assert_close(run(model, tokens, sites=site).logits, plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", [n for n, c in ARCHITECTURES.items() if c.causal])
def test_a_causal_network_does_not_see_later_tokens(name: str) -> None:
    model, tokens = network(name), prompts(name)
    changed = tokens.clone()
    changed[:, 3:] = torch.randint(1, 11, changed[:, 3:].shape, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(model(changed)[:, :3], model(tokens)[:, :3], rtol=0, atol=1e-12)
    assert not torch.allclose(model(changed)[:, 3:], model(tokens)[:, 3:])


@pytest.mark.parametrize("name", ["bidirectional-pad", "causal-pad", "constant-attention-pad"])
def test_no_other_position_sees_padding(name: str) -> None:
    model, tokens = network(name), prompts(name)
    plain, real = model(tokens), tokens != 0
    with torch.no_grad():
        model.W_E[0] += torch.arange(8) ** 2
    torch.testing.assert_close(model(tokens)[real], plain[real], rtol=0, atol=1e-12)
    assert not torch.allclose(model(tokens)[~real], plain[~real])


def test_rotary_attention_depends_on_distance_only() -> None:
    config = TransformerConfig(n_layers=1, d_model=8, n_heads=2, d_head=4, d_vocab=5, n_ctx=40, positions="rotary")
    model = initialise(config, 0).double()
    scores = run(model, [[3] * 40], sites="blocks.0.attn.attn_scores")["blocks.0.attn.attn_scores"]
    for distance in (0, 1, 17):
        along = scores.diagonal(-distance, -2, -1)
        torch.testing.assert_close(along, along[..., :1].expand_as(along))


def test_tied_networks_share_one_matrix() -> None:
    model = network("gpt2")
    assert model.unembed.weight is model.embed.weight
    assert "unembed.weight" not in dict(model.named_parameters())


def test_unfused_weights_are_views() -> None:
    attn = network("llama").layers[0].attn
    with torch.no_grad():
        attn.W_K[1, 3, 2] = 7.0
    assert (attn.qkv.weight == 7.0).sum() == 1
    assert attn.W_Q.shape == (4, 8, 4)
    assert attn.W_K.shape == (2, 8, 4)


def test_shapes_are_checked_in_tests() -> None:
    model = network("gpt2")
    with pytest.raises(jaxtyping.TypeCheckError):
        model(torch.zeros(LENGTH, dtype=torch.long))
    with pytest.raises(jaxtyping.TypeCheckError):
        model(torch.zeros(BATCH, LENGTH))
    attn, q, kv = model.layers[0].attn, torch.zeros(2, 1, 2, 4), torch.zeros(1, LENGTH, 2, 4)
    with pytest.raises(jaxtyping.TypeCheckError):  # keys of another number of examples than the queries'
        attn.mix(q, kv, kv, None, NO_TAP, "")


def test_initialising_depends_on_the_seed_alone() -> None:
    config = ARCHITECTURES["gpt2"]
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, again, other = (initialise(config, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
        if value.dim() == 2:
            assert not torch.equal(value, other.state_dict()[name])
        assert value.isfinite().all()


def test_initialising_draws_weights_of_the_stated_size_and_leaves_biases_and_gains_neutral() -> None:
    config = TransformerConfig(
        n_layers=1, d_model=64, n_heads=4, d_head=16, d_vocab=500, n_ctx=8, norm="layernorm", qkv_bias=True
    )
    model: Transformer = initialise(config, 0)
    assert model.W_E.std().item() == pytest.approx(1 / 8, rel=0.02)
    assert initialise(config, 0, std=0.5).W_E.std().item() == pytest.approx(0.5, rel=0.02)
    assert torch.equal(model.state_dict()["blocks.0.ln1.w"], torch.ones(64))
    assert (model.layers[0].attn.qkv.bias == 0).all()
    assert not model.training
