"""Ablating heads: what their output is replaced with, and which other heads make a fair comparison."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from headwork.engine.edits import Edit, replace
from headwork.engine.run import run
from headwork.errors import unknown
from headwork.methods.batches import chunks
from headwork.model.sites import Head
from headwork.model.transformer import Transformer

Value = Literal["zero", "mean", "mean-by-position", "resample"]
VALUES: tuple[Value, ...] = get_args(Value)


class Ablation:
    """Replacement values for the output z of every head, estimated once on reference prompts.

    `zero`; `mean` over reference prompts and positions; `mean-by-position` over reference prompts (Wang et al. 2022 use
    one per template); `resample`: z of another prompt at the same position, paired by `generator` (Chan et al. 2022).
    """

    def __init__(self, model: Transformer, reference: Int[Tensor, "batch pos"], generator: torch.Generator) -> None:
        self.generator = generator
        parts = [
            run(model, reference[part], "blocks.*.attn.z").activations
            for part in chunks(model.config, *reference.shape)
        ]
        self.z = {name: torch.cat([p[name] for p in parts]) for name in parts[0]} if parts else {}

    def values(self, value: Value, prompts: int) -> dict[str, Float[Tensor, "#prompts #pos head d_head"]]:
        """What z becomes at each site when heads are ablated on `prompts` prompts of the reference's length."""
        if value not in VALUES:
            raise unknown("ablation value", value, VALUES)
        if value == "zero":
            return {site: torch.zeros_like(z[:1, :1]) for site, z in self.z.items()}
        if value == "mean":
            return {site: z.mean((0, 1), keepdim=True) for site, z in self.z.items()}
        if value == "mean-by-position":
            return {site: z.mean(0, keepdim=True) for site, z in self.z.items()}
        count = len(next(iter(self.z.values())))
        chosen = torch.randint(count, (prompts,), generator=self.generator)
        return {site: z[chosen] for site, z in self.z.items()}


def ablate(
    heads: Sequence[Head], values: dict[str, Float[Tensor, "batch pos head d_head"]], part: slice | None = None
) -> list[Edit]:
    """The edits that ablate these heads together; `part` takes the prompts of a chunk from per-prompt values."""
    edits = []
    for layer, group in itertools.groupby(sorted(heads), key=lambda h: h.layer):
        site = f"blocks.{layer}.attn.z"
        value = values[site]
        edits.append(replace(site, value if part is None or len(value) == 1 else value[part], [h.head for h in group]))
    return edits


def matched_sets(
    chosen: Sequence[Head], outside: Sequence[Head], rng: np.random.Generator, most: int = 12
) -> list[tuple[Head, ...]]:
    """Sets with as many heads in each layer as `chosen`, drawn from `outside` only; empty where there is none.

    All of them where there are at most `most`, else `most` drawn at random without repetition, each equally likely.
    """
    need = sorted(Counter(h.layer for h in set(chosen)).items())
    free = {layer: sorted({h for h in outside if h.layer == layer} - set(chosen)) for layer, _ in need}
    total = math.prod(math.comb(len(free[layer]), count) for layer, count in need)
    if not need or not total:
        return []
    if total <= most:
        combinations = (itertools.combinations(free[layer], count) for layer, count in need)
        return [tuple(itertools.chain(*parts)) for parts in itertools.product(*combinations)]
    drawn: set[tuple[Head, ...]] = set()
    while len(drawn) < most:
        picks = ((free[layer], sorted(rng.choice(len(free[layer]), count, replace=False))) for layer, count in need)
        drawn.add(tuple(heads[i] for heads, pick in picks for i in pick))
    return sorted(drawn)
