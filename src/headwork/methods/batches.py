"""Cutting prompts into chunks whose logits and attention maps fit into a stated amount of memory."""

from __future__ import annotations

from collections.abc import Iterator

from headwork.model.config import TransformerConfig

BYTES_PER_CHUNK = 256 * 2**20


def chunks(config: TransformerConfig, batch: int, length: int) -> Iterator[slice]:
    """Consecutive slices of the batch whose logits and attention maps stay in bounds together."""
    per_prompt = 4 * length * (config.outputs + length * config.n_heads * max(1, config.n_layers))
    size = max(1, min(batch, BYTES_PER_CHUNK // per_prompt))
    for first in range(0, batch, size):
        yield slice(first, min(first + size, batch))
