"""How much of a patching sweep is held at once, so that it stays under a limit on memory."""

from __future__ import annotations

from dataclasses import dataclass

from headwork.engine.resume import trace_sites
from headwork.engine.run import bytes_kept
from headwork.errors import UserError
from headwork.model.config import TransformerConfig
from headwork.model.transformer import Transformer


@dataclass(frozen=True)
class Room:
    """How many `prompts` are patched at once, from how many `layers` held together, in how many `copies` a pass."""

    prompts: int
    layers: int
    copies: int


def room(model: Transformer, batch: int, length: int, site: str, memory: int | None) -> Room:
    """What fits into `memory` bytes beside the weights, by an estimate from above; no limit where it is None.

    Counted are the trace of the run to be patched, the activations at `site` (a name with `{l}`) of the run they come
    from, and what the patched copies compute. Raises `UserError` where not even one prompt fits.
    """
    config = model.config
    if memory is None:
        return Room(batch, config.n_layers, _UNLIMITED)
    layer = bytes_kept(model, 1, length, [site.format(l=0)])
    fixed, copy = _runs_and_copy(model, length)
    least = fixed + layer + copy
    prompts = min(batch, memory // least)
    if not prompts:
        raise UserError(
            f"Patching one prompt of {length} tokens needs about {least / 1e6:,.1f} MB beside the weights; the limit "
            f"is {memory / 1e6:,.1f} MB."
        )
    free = memory // prompts - fixed - copy
    layers = min(config.n_layers, max(1, free // (2 * layer)))
    return Room(prompts, layers, 1 + (free - layers * layer) // copy)


_UNLIMITED = 2**31


def copies_that_fit(
    model: Transformer, batch: int, length: int, beside: int, memory: int | None, what: str, each: int = 0
) -> tuple[int, int]:
    """How many prompts a sweep holds at once, and in how many copies.

    Beside the sweep itself it holds `beside` bytes a prompt, and `each` for every copy of one. Counted like `room`.
    Raises `UserError`, which names the work by `what`, where not even one prompt fits.
    """
    if memory is None:
        return batch, _UNLIMITED
    fixed, copy = _runs_and_copy(model, length)
    copy += each
    least = fixed + beside + copy
    prompts = min(batch, memory // least)
    if not prompts:
        raise UserError(
            f"{what} on one prompt of {length} tokens needs about {least / 1e6:,.1f} MB beside the weights; the limit "
            f"is {memory / 1e6:,.1f} MB."
        )
    return prompts, 1 + (memory // prompts - least) // copy


def _runs_and_copy(model: Transformer, length: int) -> tuple[int, int]:
    """Bytes a prompt: what the trace and the other run take, and what one patched copy computes."""
    element = model.embed.weight.element_size()
    copy = length * _width(model.config, length) * element
    # Both runs leave logits and a final stream, and each computes the whole prompt once.
    fixed = bytes_kept(model, 1, length, trace_sites(model.config)) + copy
    return fixed + 2 * length * (model.config.outputs + model.config.d_model) * element, copy


def _width(config: TransformerConfig, length: int) -> int:
    """Numbers per token that one resumed pass holds: streams, fused and repeated projections, maps, earlier keys."""
    heads, shared = config.n_heads * config.d_head, config.kv_heads * config.d_head
    attention = 5 * heads + 4 * shared + 5 * config.n_heads * length
    mlp = config.d_mlp * (4 if config.gated_mlp else 2)
    return 6 * config.d_model + max(attention, mlp) + 2 * config.n_layers * shared
