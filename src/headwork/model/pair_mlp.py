"""The network of Chughtai et al. 2023 for pairs of group elements: two embeddings, one hidden layer, no attention."""

from __future__ import annotations

from typing import no_type_check

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class PairMLP(nn.Module):
    """logits = ReLU([W_x[x], W_y[y]] · W) · W_U, without biases.

    Its parts are called as the sites are: `x_embed`, `y_embed`, `hidden_pre`, `hidden`, `logits`.
    """

    def __init__(self, elements: int, embed: int, hidden: int) -> None:
        super().__init__()
        self.x_embed = nn.Embedding(elements, embed)
        self.y_embed = nn.Embedding(elements, embed)
        self.hidden_pre = nn.Linear(2 * embed, hidden, bias=False)
        self.hidden = nn.ReLU()
        self.logits = nn.Linear(hidden, elements, bias=False)

    def read(
        self,
        x: Float[Tensor, "element embed"],
        y: Float[Tensor, "element embed"],
        inward: Float[Tensor, "both_embed hidden"],
        outward: Float[Tensor, "hidden element"],
    ) -> None:
        """Take these weights."""
        for parameter, tensor in (
            (self.x_embed.weight, x),
            (self.y_embed.weight, y),
            (self.hidden_pre.weight, inward.T),
            (self.logits.weight, outward.T),
        ):
            parameter.data = tensor.clone().contiguous()

    @property
    def W_x(self) -> Float[Tensor, "element embed"]:
        return self.x_embed.weight

    @property
    def W_y(self) -> Float[Tensor, "element embed"]:
        return self.y_embed.weight

    @property
    def W(self) -> Float[Tensor, "both_embed hidden"]:
        return self.hidden_pre.weight.T

    @property
    def W_U(self) -> Float[Tensor, "hidden element"]:
        return self.logits.weight.T

    @no_type_check  # a tracer hands it stand-ins, which are no tensors
    def forward(self, tokens: Int[Tensor, "batch 2"]) -> Float[Tensor, "batch element"]:
        both = torch.cat([self.x_embed(tokens[:, 0]), self.y_embed(tokens[:, 1])], 1)
        return self.logits(self.hidden(self.hidden_pre(both)))
