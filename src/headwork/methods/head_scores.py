"""How much each head attends to the keys a claim is about (Elhage et al. 2021; Olsson et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headwork.engine.run import run
from headwork.methods.batches import chunks
from headwork.model.transformer import Transformer


@dataclass(frozen=True, eq=False)
class Looking:
    """Which keys count, seen from which queries."""

    keys: Bool[Tensor, "batch query key"]
    queries: Bool[Tensor, "batch query"]


def attention_to(
    model: Transformer, tokens: Int[Tensor, "batch pos"], looks: Mapping[str, Looking]
) -> dict[str, Float[Tensor, "layer head batch"]]:
    """For each look: attention summed over its keys, averaged over its queries, per head and prompt.

    A prompt without a query in the look gets NaN. All looks share one forward pass.
    """
    config = model.config
    found = {name: torch.empty(config.n_layers, config.n_heads, len(tokens)) for name in looks}
    for part in chunks(config, *tokens.shape):
        done = run(model, tokens[part], "blocks.*.attn.pattern")
        for name, look in looks.items():
            keys = look.keys[part].to(model.device)
            queries = look.queries[part].to(model.device)
            weight = (keys & queries[:, :, None]).to(model.dtype)
            count = queries.sum(1)
            for layer in range(config.n_layers):
                summed = torch.einsum("bhqk,bqk->hb", done[f"blocks.{layer}.attn.pattern"], weight)
                found[name][layer, :, part] = torch.where(count > 0, summed / count, torch.nan).cpu()
    return found


def previous_token(tokens: Int[Tensor, "batch pos"]) -> Looking:
    """Attention at offset 1, from every position that has one before it: the previous-token score."""
    batch, length = tokens.shape
    keys = torch.zeros(length, length, dtype=torch.bool)
    keys[range(1, length), range(length - 1)] = True
    queries = torch.ones(batch, length, dtype=torch.bool)
    queries[:, 0] = False
    return Looking(keys.expand(batch, -1, -1), queries)
