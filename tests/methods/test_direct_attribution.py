"""Direct logit attribution adds up to the metric, and each part equals a slow twin: the norm by hand, head by head."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.architectures import ARCHITECTURES, BATCH, LENGTH, network, prompts
from tests.methods.hand import NETWORKS
from tests.oracle import oracle_sites
from torch import Tensor

from headwork.engine.metrics import LogitDifference, Loss
from headwork.errors import UserError
from headwork.methods import direct_attribution as module
from headwork.methods.direct_attribution import direct_attribution
from headwork.model.transformer import Norm, Transformer

METRIC = LogitDifference(torch.tensor([4, 2, 3]), torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0]))


def metric_of(logits: Tensor) -> Tensor:
    each = zip(logits, METRIC.positions, METRIC.correct, METRIC.wrong)
    return torch.stack([one[p, c] - one[p, w] for one, p, c, w in each])


def said(model: Transformer, written: Tensor, sites: dict[str, Tensor], b: int) -> float:
    """What a vector at the read position adds to example b's logit difference: the norm with its scale, then W_U."""
    x = written
    if isinstance(model.ln_final, Norm):
        if model.config.norm == "layernorm":
            x = x - x.sum() / model.config.d_model
        x = x / sites["ln_final.scale"][b, METRIC.positions[b]] * model.ln_final.w
    logits = x @ model.W_U
    return float(logits[METRIC.correct[b]] - logits[METRIC.wrong[b]])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_components_add_up_to_the_metric(name: str) -> None:
    model, tokens = network(name), prompts(name)
    found = direct_attribution(model, tokens, METRIC)
    expected = metric_of(oracle_sites(model, tokens)["logits"]).numpy()
    np.testing.assert_allclose(found["metric"], expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(found["contribution"].sum("component"), expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(found["by_position"].sum("position"), found["by_head"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", [*NETWORKS, "bidirectional-pad", "classifier", "mix-causal"])
def test_each_component_equals_the_slow_twin(name: str) -> None:
    model, tokens = network(name), prompts(name)
    config, sites = model.config, oracle_sites(model, tokens)
    found = direct_attribution(model, tokens, METRIC, ("a", "b", "c"))
    shared = config.n_heads // config.kv_heads
    with torch.no_grad():
        for b, label in enumerate("abc"):
            at = int(METRIC.positions[b])
            one = found.sel(prompt=label)
            of = one["contribution"].sel
            assert float(of(component="embed")) == pytest.approx(said(model, sites["embed"][b, at], sites, b))
            for layer in range(config.n_layers):
                here = f"blocks.{layer}"
                for head in range(config.n_heads):
                    expected = said(model, sites[f"{here}.attn.result"][b, at, head], sites, b)
                    assert float(of(component=f"{layer}.{head}")) == pytest.approx(expected)
                    assert float(one["by_head"].sel(layer=layer, head=head)) == pytest.approx(expected)
                    for key in range(LENGTH):
                        weight = sites[f"{here}.attn.pattern"][b, head, at, key]
                        carried = weight * sites[f"{here}.attn.v"][b, key, head // shared]
                        expected = said(model, carried @ model.layers[layer].attn.W_O[head], sites, b)
                        by_position = one["by_position"].sel(layer=layer, head=head, position=key)
                        assert float(by_position) == pytest.approx(expected, abs=1e-12)
                if not config.attention_only:
                    expected = said(model, sites[f"{here}.mlp_out"][b, at], sites, b)
                    assert float(of(component=f"m{layer}")) == pytest.approx(expected)
                    assert float(one["by_mlp"].sel(layer=layer)) == pytest.approx(expected)
                bias = model.layers[layer].attn.out.bias
                if bias is not None:
                    assert float(of(component=f"b_O {layer}")) == pytest.approx(said(model, bias, sites, b))


def test_components_are_those_of_the_architecture() -> None:
    def components(name: str) -> list[str]:
        return direct_attribution(network(name), prompts(name), METRIC)["component"].values.tolist()

    assert components("gpt2") == (
        ["embed", "pos_embed", "0.0", "0.1", "b_O 0", "m0", "1.0", "1.1", "b_O 1", "m1", "b_ln_final"]
    )
    assert components("one-kv-head") == ["embed", "0.0", "0.1", "0.2", "m0", "1.0", "1.1", "1.2", "m1"]
    assert components("shortformer") == ["embed", "0.0", "0.1", "1.0", "1.1", "b_ln_final"]
    assert components("classifier")[-2:] == ["b_ln_final", "b_U"]
    assert components("no-layers") == ["embed", "pos_embed", "b_ln_final"]


def test_the_norms_treatment_is_said() -> None:
    assert "fixed" in direct_attribution(network("gpt2"), prompts("gpt2"), METRIC).attrs["norm_treatment"]
    found = direct_attribution(network("one-kv-head"), prompts("one-kv-head"), METRIC)
    assert found.attrs["norm_treatment"] == "none"
    assert (found["scale"] == 1).all()


def test_chunks_of_prompts_change_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = network("llama"), prompts("llama")
    whole = direct_attribution(model, tokens, METRIC)
    monkeypatch.setattr(module, "chunks", lambda config, batch, length: (slice(b, b + 1) for b in range(batch)))
    parts = direct_attribution(model, tokens, METRIC)
    for name in whole.data_vars:
        np.testing.assert_allclose(parts[name], whole[name], rtol=0, atol=1e-12)
    assert whole.sizes["prompt"] == BATCH


@pytest.mark.usefixtures("unchecked")
def test_other_metrics_and_prompts_are_refused() -> None:
    model, tokens = network("gpt2"), prompts("gpt2")
    with pytest.raises(UserError, match=r"needs a LogitDifference.*given was a Loss"):
        direct_attribution(model, tokens, Loss(tokens, tokens >= 0))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="is for 3 prompts, but there are 2"):
        direct_attribution(model, tokens[:2], METRIC)
    with pytest.raises(UserError, match="reads position 4; the prompts have 0–3"):
        direct_attribution(model, tokens[:, :4], METRIC)
    with pytest.raises(UserError, match="reads token 99"):
        direct_attribution(model, tokens, LogitDifference(METRIC.positions, METRIC.correct, METRIC.wrong + 97))
    with pytest.raises(UserError, match="1 different labels were given for 3 prompts"):
        direct_attribution(model, tokens, METRIC, ("a",))
