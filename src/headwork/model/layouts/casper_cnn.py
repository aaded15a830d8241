"""The layout of Casper's CNN challenge of 2023: `conv1`, `conv2`, `fc1`, `fc2`, as PyTorch names their parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from headwork.errors import UserError
from headwork.model.digit_cnn import DigitCNN
from headwork.model.layouts.converted import Built, Tensors

_AXES = {"conv1": 4, "conv2": 4, "fc1": 2, "fc2": 2}


def build(state: Mapping[str, Any], config: Mapping[str, Any]) -> Built:
    """Read the network; the size of its square images follows from the weights.

    Raises `UserError` for tensors that are missing, unknown or do not fit each other.
    """
    tensors = Tensors(state, "CNN", "")
    shapes = {f"{part}.weight": tensors.shape(f"{part}.weight", axes) for part, axes in _AXES.items()}
    (a, colours, *first), (b, inputs, *second) = shapes["conv1.weight"], shapes["conv2.weight"]
    wide, flat = shapes["fc1.weight"]
    square = len({*first, *second}) == 1 and min(first) > 0
    # The two halvings round down; of the sizes that fit, the largest even one is that of MNIST, 28 for 5 × 5.
    side = math.isqrt(flat // b) if b else 0
    if not square or inputs != a or b * side * side != flat or not side or shapes["fc2.weight"][1] != wide:
        raise UserError(f"The CNN checkpoint has tensors that do not fit each other: {_stated(shapes)}.")
    size = 2 * (2 * side + 1 + second[0] - 1) + first[0] - 1
    weights: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        weights[name] = tensors.take(name, *shape)
        bias = name.replace("weight", "bias")
        weights[bias] = tensors.take(bias, shape[0])
    tensors.finish()
    module = DigitCNN(shapes)
    module.load_state_dict(weights)
    return Built(module, torch.zeros(1, colours, size, size), training=dict(config))


def _stated(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
