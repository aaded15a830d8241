"""Copying scores equal the eigenvalues of the vocabulary-sized matrix."""

from __future__ import annotations

import pytest
import torch
from tests.architectures import network
from tests.methods.hand import NETWORKS, key_head

from headwork.errors import UserError
from headwork.methods.ov_copying import copying_scores, ov_copying
from headwork.model.sites import Head


@pytest.mark.parametrize("name", NETWORKS)
def test_scores_equal_the_eigenvalues_of_the_full_circuit(name: str) -> None:
    model = network(name)
    scores = copying_scores(model)
    for layer in range(model.config.n_layers):
        attn = model.layers[layer].attn
        for head in range(model.config.n_heads):
            w_v = attn.W_V[key_head(model, Head(layer, head), "v")]
            circuit = (model.W_E @ w_v @ attn.W_O[head] @ model.W_U).detach()
            assert circuit.shape == (model.config.d_vocab, model.config.d_vocab)
            eigenvalues = torch.linalg.eigvals(circuit)
            expected = float(eigenvalues.real.sum() / eigenvalues.abs().sum())
            assert float(scores[layer, head]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_head_that_writes_what_it_reads_scores_one(sign: float) -> None:
    model = network("attention-only-rotary-half")
    attn = model.layers[1].attn
    with torch.no_grad():
        model.W_U.copy_(torch.linalg.pinv(model.W_E))
        attn.W_O[0].copy_(sign * torch.linalg.pinv(attn.W_V[0]))
    assert float(copying_scores(model)[1, 0]) == pytest.approx(sign, abs=1e-5)


def test_scores_have_their_labels() -> None:
    model = network("llama")
    found = ov_copying(model)
    assert found.sizes == {"layer": 2, "head": 4}
    assert float(found.sel(layer=1, head=3)) == float(copying_scores(model)[1, 3])


def test_two_vocabularies_are_refused() -> None:
    with pytest.raises(UserError, match="this model reads 11 tokens and writes 3"):
        copying_scores(network("classifier"))
