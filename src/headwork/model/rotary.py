"""Rotary positions (Su et al. 2021): pairs of entries of queries and keys, turned by angles that grow with position."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headwork.model.config import TransformerConfig


def rotary_frequencies(config: TransformerConfig) -> Float[Tensor, " pairs"]:
    """Radians a position by which each pair of entries turns, in float64: base^(−2i/r).

    With a `rotary_factor`, as in Llama 3.1 (Grattafiori et al. 2024): a pair that makes fewer than `rotary_low_factor`
    turns in the `rotary_trained_ctx` positions of the first training turns that many times slower, one that makes more
    than `rotary_high_factor` as before, and between the two the frequency goes linearly with the number of turns.
    """
    r = config.turned
    frequencies = config.rotary_base ** (-torch.arange(0, r, 2, dtype=torch.float64) / r)
    if config.rotary_factor is None:
        return frequencies
    turns = config.rotary_trained_ctx * frequencies / (2 * math.pi)
    kept = (turns - config.rotary_low_factor) / (config.rotary_high_factor - config.rotary_low_factor)
    return torch.lerp(frequencies / config.rotary_factor, frequencies, kept.clamp(0, 1))


def rotary_table(
    config: TransformerConfig, positions: Int[Tensor, " pos"], dtype: torch.dtype
) -> tuple[Float[Tensor, "pos 1 turned"], Float[Tensor, "pos 1 turned"]]:
    """Cosine and signed sine of each turned entry's angle, computed in float64 whatever `dtype`."""
    angles = positions[:, None, None].double() * rotary_frequencies(config).to(positions.device)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    return _interleave(cos, cos, config), _interleave(-sin, sin, config)


def rotate(
    x: Float[Tensor, "batch pos head d_head"],
    cos: Float[Tensor, "pos 1 turned"],
    sin: Float[Tensor, "pos 1 turned"],
    config: TransformerConfig,
) -> Float[Tensor, "batch pos head d_head"]:
    """Turn pairs of entries by their position's angles: (a, b) ↦ (a cos − b sin, b cos + a sin)."""
    r = config.turned
    turned, rest = x[..., :r], x[..., r:]
    a, b = _pairs(turned, config)
    turned = torch.addcmul(turned * cos, _interleave(b, a, config), sin)
    return torch.cat([turned, rest], -1) if rest.shape[-1] else turned


def _pairs(x: Float[Tensor, "*axes turned"], config: TransformerConfig) -> tuple[Tensor, Tensor]:
    """The first and second entries of the pairs: (i, i + r/2) or (2i, 2i + 1), by `rotary_style`."""
    half = x.shape[-1] // 2
    return (x[..., :half], x[..., half:]) if config.rotary_style == "half" else (x[..., 0::2], x[..., 1::2])


def _interleave(first: Tensor, second: Tensor, config: TransformerConfig) -> Tensor:
    """The inverse of `_pairs`."""
    if config.rotary_style == "half":
        return torch.cat([first, second], -1)
    return torch.stack([first, second], -1).flatten(-2)
