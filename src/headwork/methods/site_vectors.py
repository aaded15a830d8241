"""Activations as vectors: what a place in a network holds at one position, its chosen heads side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headwork.engine.run import Tokens, as_tokens, observe, shapes
from headwork.errors import UserError
from headwork.methods.batches import chunks
from headwork.model.config import TransformerConfig
from headwork.model.sites import layer_of, resolve, sites
from headwork.model.transformer import Transformer

Positions = int | Sequence[int] | Int[Tensor, "_ _"] | None

_BEFORE_BLOCKS = ("embed", "pos_embed")
_UNITS = ("d_model", "d_head", "d_mlp")


@dataclass(frozen=True)
class Place:
    """A site with one vector at each position, or some of its `heads` (key–value heads at keys and values)."""

    site: str
    heads: tuple[int, ...] | None = None

    def checked(self, config: TransformerConfig) -> Place:
        """With the site's full name; `UserError` where it is no single site, has no such vectors or no such head."""
        names = resolve(config, [self.site])
        if len(names) != 1:
            raise UserError(f"One site is needed here; {self.site!r} stands for {len(names)}.")
        axes = sites(config)[names[0]].axes
        inside = layer_of(names[0]) is not None or names[0] in _BEFORE_BLOCKS
        if axes[1] != "pos" or axes[-1] not in _UNITS or not inside:
            raise UserError(
                f"The site {names[0]} has axes {', '.join(axes)}; needed is one inside the blocks with a vector at "
                "each position, such as resid_pre, attn.z or mlp.post."
            )
        if self.heads is not None:
            if len(axes) < 4:
                raise UserError(f"The site {names[0]} has no heads to choose from; its axes are {', '.join(axes)}.")
            count = config.kv_heads if axes[2] == "kv_head" else config.n_heads
            wrong = [h for h in self.heads if not 0 <= h < count]
            if wrong or not self.heads or len(set(self.heads)) < len(self.heads):
                raise UserError(
                    f"The site {names[0]} has heads 0–{count - 1}; {list(self.heads)} must name some, each once."
                )
        return replace(self, site=names[0])

    def width(self, config: TransformerConfig) -> int:
        """How many numbers its vector has."""
        units = shapes(config, 1, 1, [self.site])[self.site][2:]
        return math.prod(units if self.heads is None else (len(self.heads), *units[1:]))

    def columns(self, config: TransformerConfig) -> Int[Tensor, " width"]:
        """Where its numbers stand in the vector of the whole site."""
        every = torch.arange(Place(self.site).width(config))
        if self.heads is None:
            return every
        return every.unflatten(0, (-1, shapes(config, 1, 1, [self.site])[self.site][-1]))[list(self.heads)].flatten()

    def of(self, value: Tensor) -> Float[Tensor, "batch pos width"]:
        """The place's vectors in its site's activation."""
        return (value if self.heads is None else value[:, :, list(self.heads)]).flatten(2)


def as_positions(given: Positions, batch: int, length: int, whose: str = "prompts") -> Int[Tensor, "batch n"] | None:
    """Positions for each example; whole numbers are the same ones for all, counted from the end where negative.

    None, for all positions, stays None. Raises `UserError` where a position does not exist or is named twice.
    """
    if given is None:
        return None
    found = torch.as_tensor(given)
    if not found.numel() or found.dim() > 2 or found.is_floating_point() or found.dtype == torch.bool:
        raise UserError(f"Positions must be whole numbers, for all examples or [batch, n]; given were {given!r}.")
    found = found.reshape(1, -1).expand(batch, -1) if found.dim() < 2 else found
    if len(found) != batch:
        raise UserError(f"Positions are given for {len(found)} examples; there are {batch}.")
    wrong = found[(found < -length) | (found >= length)]
    if len(wrong):
        raise UserError(f"The {whose} have positions 0–{length - 1}; position {int(wrong[0])} does not exist.")
    found = torch.where(found < 0, found + length, found).to("cpu", torch.long)
    ordered = found.sort(1).values
    if bool((ordered[:, 1:] == ordered[:, :-1]).any()):
        raise UserError("An example's positions must be different ones; one is named twice.")
    return found


def vectors(
    model: Transformer, tokens: Tokens, place: Place, positions: Positions = None, memory: int | None = None
) -> Float[Tensor, "batch n width"]:
    """The place's vectors at the chosen positions of each prompt, on the processor.

    `memory` (bytes, beside the weights and the result) bounds how many prompts run at once; logits are not made. Raises
    `UserError` for places and positions that do not exist, and where one prompt exceeds the limit.
    """
    return vectors_at(model, tokens, [place], positions, memory)[0]


def vectors_at(
    model: Transformer, tokens: Tokens, places: Sequence[Place], positions: Positions = None, memory: int | None = None
) -> list[Float[Tensor, "batch n _"]]:
    """The same for several places, from one run."""
    tokens, places = as_tokens(model, tokens), [place.checked(model.config) for place in places]
    batch, length = tokens.shape
    where = as_positions(positions, batch, length)
    each = forward_bytes(model, length, max(1, len(places)))
    size = next(chunks(model.config, batch, length)).stop if memory is None else min(batch, memory // each)
    if not size:
        raise UserError(
            f"One prompt of {length} tokens needs about {each / 1e6:,.1f} MB beside the weights; the limit is "
            f"{(memory or 0) / 1e6:,.1f} MB."
        )
    parts: list[list[Tensor]] = [[] for _ in places]
    for rows in torch.arange(batch).split(size):
        done, _ = observe(model, tokens[rows.to(tokens.device)], [place.site for place in places])
        for place, kept in zip(places, parts):
            found = place.of(done[place.site]).cpu()
            kept.append(found if where is None else found[torch.arange(len(rows))[:, None], where[rows]])
    return [torch.cat(kept) for kept in parts]


def forward_bytes(model: Transformer, length: int, layers: int = 1) -> int:
    """Bytes from above that one prompt's pass holds at once: logits, and the activations of so many `layers`."""
    config = model.config
    attention = 4 * (config.n_heads + 2 * config.kv_heads) * config.d_head + 4 * config.n_heads * length
    layer = 8 * config.d_model + attention + config.d_mlp * (6 if config.gated_mlp else 4)
    return (
        length * (layer * max(1, layers) + 2 * config.outputs + 2 * config.d_model) * model.embed.weight.element_size()
    )
