"""Matrix products with weights, by the fastest kernel at hand.

On processors, oneDNN multiplies float32 and bfloat16 faster than the BLAS behind `torch.nn.functional.linear` on some
machines, and applies the activation while the product is still in cache. PyTorch's compiler uses the same kernel.
Small products, gradients of weights, other types and devices take the plain way; both ways give the same numbers up to
rounding.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

# Below this many multiplications the call costs more than the kernel saves.
_WORTH_IT = 10_000_000
# Names of the activations in oneDNN: attribute and algorithm.
_FUSED = {"none": ("none", ""), "relu": ("relu", ""), "gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh")}


def linear(
    x: Float[Tensor, "*rows inside"], layer: nn.Linear, rows: slice | None = None
) -> Float[Tensor, "*rows outside"]:
    """x · Wᵀ + b in x's type; of some of the layer's outputs only, where `rows` are given."""
    return fused_linear(x, layer, "none", rows).to(x.dtype)


def fuses(activation: str) -> bool:
    """Whether `fused_linear` knows the activation."""
    return activation in _FUSED


def fused_linear(
    x: Float[Tensor, "*rows inside"], layer: nn.Linear, activation: str, rows: slice | None = None
) -> Float[Tensor, "*rows outside"]:
    """activation(x · Wᵀ + b), in the weights' type, for an activation that `fuses`."""
    weight, bias = layer.weight, layer.bias
    if x.dtype != weight.dtype:
        x = x.to(weight.dtype)  # weights of `with_bfloat16_products`
    if rows is not None:
        weight, bias = weight[rows], None if bias is None else bias[rows]
    if not _worth_fusing(x, weight):
        return _plain(functional.linear(x, weight, bias), activation)
    if not torch.is_grad_enabled():
        return _fast(x, weight, bias, activation)
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        return _plain(functional.linear(x, weight, bias), activation)
    return _plain(_Fixed.apply(x, weight, bias), activation)


def _fast(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, *_attribute(activation))


class _Fixed(torch.autograd.Function):
    """x · Wᵀ + b for weights that get no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _fast(x, weight, bias, "none")

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return _Fixed.apply(slopes[0], weight.t(), None), None, None


Module = TypeVar("Module", bound=nn.Module)


def with_bfloat16_products(model: Module, keep: nn.Module) -> Module:
    """A copy whose products with weights are made in bfloat16, but for those of the layer `keep`.

    Streams and norms stay as they are, so that rounding does not add up along the stream. Everything but the weights of
    the products is shared with the model.
    """
    known: dict[int, object] = {id(p): p for p in model.parameters()}
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not keep:
            for p in module.parameters():
                known[id(p)] = nn.Parameter(p.detach().bfloat16(), requires_grad=False)
    known |= {id(p): p for p in keep.parameters()}
    return copy.deepcopy(model, known)


def with_fixed_weights(model: Module) -> Module:
    """A copy that shares the weights but asks no gradient of them: the way back to activations is faster then."""
    return copy.deepcopy(model, {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()})


def _attribute(activation: str) -> tuple[str, list, str]:
    name, algorithm = _FUSED[activation]
    return name, [], algorithm


def _plain(product: Float[Tensor, "*rows outside"], activation: str) -> Float[Tensor, "*rows outside"]:
    if activation == "none":
        return product
    if activation == "relu":
        return functional.relu(product)
    return functional.gelu(product, approximate="tanh" if activation == "gelu_tanh" else "none")


def _worth_fusing(x: Tensor, weight: Tensor) -> bool:
    return (
        x.numel() * weight.shape[0] > _WORTH_IT
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and torch.backends.mkldnn.enabled
        and _offered(x.dtype)
    )


@cache
def _offered(dtype: torch.dtype) -> bool:
    """Whether this PyTorch on this processor has the kernel, and it computes what it should."""
    if not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, 32, generator=generator).to(dtype) for n in (16, 24))
    try:
        found = torch.ops.mkldnn._linear_pointwise(x, weight, None, *_attribute("gelu_tanh"))
    except (RuntimeError, AttributeError, TypeError):
        return False
    expected = functional.gelu(x.double() @ weight.double().T, approximate="tanh")
    return bool((found.double() - expected).abs().max() < 0.1 * (1 if dtype == torch.bfloat16 else 1e-3))
