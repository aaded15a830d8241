"""A network wired by hand that keeps a variable in a known direction, and a slow interchange for any network.

Prompts are [distractor, a, b, c]; the answer is (a xor b) xor c. Block 0 sums a and b by uniform attention and writes
a xor b along one direction of the stream at the last position; block 1 combines it with c. The stream's coordinates are
turned by a random rotation, so that no direction is a unit.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from headwork.methods.interchange_pairs import InterchangePairs
from headwork.model.config import TransformerConfig
from headwork.model.initialise import initialise
from headwork.model.transformer import Transformer

# Coordinates before the rotation; the rest holds which token stands here.
BIT, SUM, VARIABLE, C, ANSWER, TOKEN = 0, 1, 2, 3, 4, 5
WIDTH, LENGTH, VOCAB = 48, 4, 10
ZERO, ONE = 0, 1
A, B, CS, DISTRACTORS = (0, 1), (2, 3), (4, 5), (6, 7, 8, 9)

CONFIG = TransformerConfig(
    n_layers=2,
    d_model=WIDTH,
    n_heads=2,
    d_head=4,
    d_mlp=6,
    d_vocab=VOCAB,
    n_ctx=LENGTH,
    positions="none",
    activation="relu",
    mlp_bias=True,
    unembed_bias=True,
)


def rotation() -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64)).Q


def direction(coordinate: int) -> Tensor:
    """Where a coordinate lies in the stream."""
    return rotation()[:, coordinate]


def xor_network() -> Transformer:
    model = initialise(CONFIG, 0).double().requires_grad_(False)
    for parameter in model.parameters():
        parameter.zero_()
    embeddings = torch.zeros(VOCAB, WIDTH, dtype=torch.float64)
    embeddings[[A[1], B[1]], BIT] = 1
    embeddings[CS[1], C] = 1
    for token in range(VOCAB):
        embeddings[token, TOKEN + token] = 1
    model.embed.weight.copy_(embeddings @ rotation().T)
    first, second = model.layers
    first.attn.W_V[0, :, 0] = direction(BIT)
    first.attn.W_O[0, 0] = LENGTH * direction(SUM)
    for block, reads, writes in ((first, (SUM,), VARIABLE), (second, (VARIABLE, C), ANSWER)):
        read = torch.stack([direction(r) for r in reads]).sum(0)
        # x xor y = relu(x + y) − 2 relu(x + y − 1)
        block.mlp.W_in[:, 0] = block.mlp.W_in[:, 1] = read
        block.mlp.inward.bias[1] = -1
        block.mlp.W_out[0], block.mlp.W_out[1] = direction(writes), -2 * direction(writes)
    model.W_U[:, ONE] = 8 * direction(ANSWER)
    model.unembed.bias[ZERO] = 4
    return model


def every_prompt() -> Tensor:
    return torch.tensor(list(itertools.product(DISTRACTORS, A, B, CS)))


def variable(tokens: Tensor) -> Tensor:
    """a xor b."""
    return (tokens[:, 1] - A[0]) ^ (tokens[:, 2] - B[0])


def c_of(tokens: Tensor) -> Tensor:
    return tokens[:, 3] - CS[0]


def with_the_sources_variable(base: Tensor, source: Tensor) -> Tensor:
    """The causal model's answer on the base once a xor b is what it is on the source."""
    return variable(source) ^ c_of(base)


def xor_pairs(count: int, seed: int = 0, **fields) -> InterchangePairs:
    """Random ordered pairs of different prompts, none twice."""
    prompts = every_prompt()
    chosen = torch.tensor([(i, j) for i in range(len(prompts)) for j in range(len(prompts)) if i != j])
    order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed))[:count]
    base, source = prompts[chosen[order, 0]], prompts[chosen[order, 1]]
    return InterchangePairs(base, source, **{"expected": with_the_sources_variable, "answers": (ZERO, ONE)} | fields)


class Exchange:
    """Puts a component of one run's activation into another run, example by example and position by position."""

    def __init__(self, site: str, source: Tensor, basis: Tensor | None, heads: list[int] | None, where: Tensor) -> None:
        """`where [batch, n, 2]`: positions in base and source."""
        self.site, self.source, self.basis, self.heads, self.where = site, source, basis, heads, where

    def given(self, site: str) -> Tensor | None:
        return None

    def wants(self, site: str) -> bool:
        return site == self.site

    def __call__(self, site: str, value: Tensor) -> Tensor:
        if site != self.site:
            return value
        new = value.clone()
        for b, pairs in enumerate(self.where.tolist()):
            for here, there in pairs:
                old, other = value[b, here], self.source[b, there]
                if self.heads is not None:
                    old, other = old[self.heads], other[self.heads]
                change = (other - old).flatten()
                if self.basis is not None:
                    change = sum(((change @ column) * column for column in self.basis.T), torch.zeros_like(change))
                put = old + change.view_as(old)
                if self.heads is None:
                    new[b, here] = put
                else:
                    new[b, here, self.heads] = put
        return new
