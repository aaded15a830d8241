"""A network without values: names and shapes of its parameters, without memory for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from headwork.model.config import TransformerConfig
from headwork.model.transformer import Transformer


def outline(config: TransformerConfig) -> Transformer:
    """The network of a configuration on PyTorch's `meta` device, to be filled with weights or asked for shapes.

    Raises what PyTorch raises (`RuntimeError`, `TypeError`, `OverflowError`) for sizes that no tensor can have.
    """
    with torch.device("meta"), _Unfilled():
        return Transformer(config)


class _Unfilled(TorchFunctionMode):
    """Skips the initial values: there is nothing to draw them into, and trying loads PyTorch's whole compiler."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)
