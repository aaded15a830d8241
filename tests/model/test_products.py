"""Products with weights: the fused kernel computes what the plain way computes, and steps back where it must."""

from __future__ import annotations

import pytest
import torch
from tests.architectures import network, prompts
from torch import nn

from headwork.engine.run import run
from headwork.model import products
from headwork.model.products import fused_linear, linear, with_bfloat16_products, with_fixed_weights


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def layer(request: pytest.FixtureRequest) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(40, 24).to(request.param)


@pytest.mark.parametrize("activation", ["none", "relu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("rows", [None, slice(8, 16)])
def test_both_ways_give_the_same(
    layer: nn.Linear, activation: str, rows: slice | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(2, 9, 40, generator=torch.Generator().manual_seed(1)).to(layer.weight.dtype)
    tolerance = 1e-5 if x.dtype == torch.float32 else 0.05
    found = []
    for least in (0, 10**9):
        monkeypatch.setattr(products, "_WORTH_IT", least)
        with torch.no_grad():
            found.append(fused_linear(x, layer, activation, rows))
    assert found[0].shape == (2, 9, 24 if rows is None else 8)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=tolerance)
    expected = x.double() @ layer.weight.double().T + layer.bias.double()
    expected = expected if rows is None else expected[..., rows]
    if activation != "none":
        function = nn.ReLU() if activation == "relu" else nn.GELU("tanh" if activation == "gelu_tanh" else "none")
        expected = function(expected)
    torch.testing.assert_close(found[0].double(), expected, rtol=0, atol=tolerance)


def test_gradients_of_weights_other_types_and_a_switched_off_kernel_take_the_plain_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer, x = nn.Linear(4, 3), torch.randn(5, 4)
    monkeypatch.setattr(products, "_WORTH_IT", 0)
    with torch.no_grad():
        assert not products._worth_fusing(x.double(), layer.weight.double())
        with torch.backends.mkldnn.flags(enabled=False):
            assert not products._worth_fusing(x, layer.weight)
    linear(x, layer).sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize("bias", [True, False])
def test_the_way_back_through_fixed_weights_is_the_plain_one(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(40, 24, bias=bias)
    fixed = with_fixed_weights(layer)
    assert fixed.weight.data_ptr() == layer.weight.data_ptr()
    assert layer.weight.requires_grad
    found = []
    for least in (0, 10**9):
        monkeypatch.setattr(products, "_WORTH_IT", least)
        x = torch.randn(2, 9, 40, generator=torch.Generator().manual_seed(1)).requires_grad_()
        y = linear(x, fixed).tanh().sum()
        (once,) = torch.autograd.grad(y, x, create_graph=True)
        (twice,) = torch.autograd.grad(once.square().sum(), x)
        found.append((once, twice))
    for fast, plain in zip(*found):
        assert fast.abs().max() > 0.1
        torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "neox", "qwen3"])
def test_products_in_bfloat16_come_close_and_leave_the_model_alone(name: str) -> None:
    model, tokens = network(name).float(), prompts(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    rough = with_bfloat16_products(model, model.unembed)
    exact, near = run(model, tokens).logits, run(rough, tokens).logits
    assert near.dtype == torch.float32
    error = (near - exact).abs().max() / exact.abs().max()
    assert 0 < error < 0.1
    assert rough.layers[0].attn.qkv.weight.dtype == torch.bfloat16
    assert rough.embed.weight is model.embed.weight, "what is not a product is shared"
    assert rough.unembed.weight is model.unembed.weight
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
