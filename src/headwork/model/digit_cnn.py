"""The convolutional network of Casper's challenge of 2023: two convolutions, two linear layers, images of digits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import no_type_check

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class DigitCNN(nn.Module):
    """conv1, ReLU, pooling by 2, conv2, ReLU, pooling by 2, fc1, ReLU, fc2; pixels run from 0 to 1."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """`shapes` are those of the four weights: `conv1.weight [out, in, height, width]`, `fc1.weight [out, in]` …"""
        super().__init__()
        (a, inputs, *first), (b, _, *second) = shapes["conv1.weight"], shapes["conv2.weight"]
        self.conv1 = nn.Conv2d(inputs, a, (first[0], first[1]))
        self.conv2 = nn.Conv2d(a, b, (second[0], second[1]))
        self.fc1 = nn.Linear(shapes["fc1.weight"][1], shapes["fc1.weight"][0])
        self.fc2 = nn.Linear(shapes["fc2.weight"][1], shapes["fc2.weight"][0])

    @no_type_check  # a tracer hands it stand-ins, which are no tensors
    def forward(self, images: Float[Tensor, "batch colour height width"]) -> Float[Tensor, "batch label"]:
        x = functional.max_pool2d(functional.relu(self.conv1(images)), 2)
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2)
        return self.fc2(functional.relu(self.fc1(x.flatten(1))))
