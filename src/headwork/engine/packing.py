"""Packing: many edited copies of a batch, each computed from its own position on, as the rows of one stream.

What a network does to single rows – norms, projections, MLPs – then happens in few large matrix products, however
short the prompts; only attention looks at one part of the rows at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from headwork.engine.edits import Edit
from headwork.engine.resume import Entry, Trace
from headwork.model import sites as places
from headwork.model.sites import Site, layer_of, sites
from headwork.model.transformer import Asking, Attention, Frame, PerKeyHead, Tap, Transformer


@dataclass(frozen=True)
class Part:
    """Copies of the batch that are computed from position `start` on; `rows` are theirs in the packed stream."""

    start: int
    copies: int
    rows: slice


@dataclass(frozen=True)
class Packing:
    """Copies of a batch of prompts, copy i from position `starts[i]` on (in ascending order), packed into rows."""

    batch: int
    length: int
    starts: tuple[int, ...]

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """Copies with the same start, in order."""
        found: list[Part] = []
        row = 0
        for start in sorted(set(self.starts)):
            copies = self.starts.count(start)
            rows = copies * self.batch * (self.length - start)
            found.append(Part(start, copies, slice(row, row + rows)))
            row += rows
        return tuple(found)

    @cached_property
    def copies(self) -> tuple[slice, ...]:
        """The rows of every copy."""
        ends = torch.tensor([self.batch * (self.length - start) for start in self.starts]).cumsum(0).tolist()
        return tuple(slice(a, b) for a, b in zip([0, *ends], ends))

    def packed(self, value: Shaped[Tensor, "batch length *rest"]) -> Shaped[Tensor, "1 rows *rest"]:
        """The value at the computed positions, once for every copy."""
        found = [
            value[:, part.start :].expand(part.copies, *value[:, part.start :].shape).flatten(0, 2)
            for part in self.parts
        ]
        return (torch.cat(found) if len(found) > 1 else found[0])[None]

    def places(self, device: torch.device) -> Int[Tensor, " rows"]:
        """The position at which every row stands."""
        return self.packed(torch.arange(self.length, device=device).expand(self.batch, -1))[0]

    def unpacked(self, value: Shaped[Tensor, "1 rows *rest"], copy: int) -> Shaped[Tensor, "batch pos *rest"]:
        """A view of one copy's rows."""
        return value[0, self.copies[copy]].unflatten(0, (self.batch, -1))

    def of_part(self, value: Shaped[Tensor, "1 rows *rest"], part: Part) -> Shaped[Tensor, "copies_batch pos *rest"]:
        """A view of the rows of copies with the same start."""
        return value[0, part.rows].unflatten(0, (part.copies * self.batch, -1))

    def from_position(self, first: int) -> Packing:
        """The same copies, none of them before position `first`."""
        return Packing(self.batch, self.length, tuple(max(start, first) for start in self.starts))

    def rows_of(self, later: Packing, device: torch.device) -> Int[Tensor, " later_rows"]:
        """Which rows those of `later`, the same copies with later starts, are here."""
        count = self.copies[-1].stop
        here = torch.arange(count, device=device)[None]
        pairs = zip(range(len(self.starts)), self.starts, later.starts)
        return torch.cat([self.unpacked(here, i)[:, at - start :].flatten() for i, start, at in pairs])


class PackedTap:
    """Applies each copy's edits to its own rows, and hands out what the trace still knows."""

    def __init__(self, base: Trace, packing: Packing, variants: Sequence[Sequence[Edit]], where: Entry) -> None:
        self.base, self.packing, self.where = base, packing, where
        self.described = sites(base.config)
        self.by_site: dict[str, list[tuple[int, Edit]]] = {}
        for copy, edits in enumerate(variants):
            for edit in edits:
                self.by_site.setdefault(edit.site, []).append((copy, edit))

    def given(self, site: str) -> Tensor | None:
        known = site in self.where.valid and site in self.base.values
        return self.packing.packed(self.base.values[site]) if known else None

    def wants(self, site: str) -> bool:
        return site in self.by_site

    def __call__(self, site: str, value: Tensor) -> Tensor:
        edits = self.by_site.get(site)
        if not edits:
            return value
        value = value.clone()
        for copy, edit in edits:
            old = self.packing.unpacked(value, copy)
            old.copy_(edit.apply(self.described[site], old, self.packing.starts[copy]))
        return value


class _PartTap:
    """What a packed tap does at attention maps, which exist for one part of the rows at a time."""

    def __init__(self, tap: PackedTap, part: Part, first_copy: int) -> None:
        self.tap, self.part, self.first = tap, part, first_copy

    def given(self, site: str) -> Tensor | None:
        return None

    def wants(self, site: str) -> bool:
        return self.tap.wants(site)

    def __call__(self, site: str, value: Tensor) -> Tensor:
        chosen = [(c, e) for c, e in self.tap.by_site.get(site, ()) if 0 <= c - self.first < self.part.copies]
        if not chosen:
            return value
        value = value.clone()
        by_copy = value.unflatten(0, (self.part.copies, -1))
        described: Site = self.tap.described[site]
        for copy, edit in chosen:
            old = by_copy[copy - self.first]
            old.copy_(edit.apply(described, old, self.part.start))
        return value


@dataclass(frozen=True, kw_only=True)
class PackedFrame(Frame):
    """The frame of a packed stream. `after` is the packing that a block goes on with: later rows only, or the same."""

    base: Trace
    packing: Packing
    after: Packing
    tap: PackedTap

    @cached_property
    def _onward(self) -> Int[Tensor, " rows"]:
        return self.packing.rows_of(self.after, self.base.tokens.device)

    def onward(self, x: Float[Tensor, "1 rows d_model"]) -> Float[Tensor, "1 later d_model"]:
        return x if self.after is self.packing else x[:, self._onward]

    def query_rotation(self) -> tuple[Tensor, Tensor] | None:
        if self.rotation is None or self.after is self.packing:
            return self.rotation
        cos, sin = self.rotation
        return cos[self._onward], sin[self._onward]

    def mixed(
        self, attention: Attention, layer: int, q: Asking, k: PerKeyHead, v: PerKeyHead, tap: Tap, here: str
    ) -> Asking:
        keys, values = self.base.values[places.key_site(self.base.config, layer)], self.base.values[f"{here}.v"]
        visible, first, found = self.masks.of(attention), 0, []
        for part, asking in zip(self.packing.parts, self._query_parts()):
            seen = None if visible is None else visible[:, asking.start :]
            if seen is not None and len(seen) > 1:
                seen = seen.repeat(part.copies, 1, 1)
            past = (keys[:, : part.start], values[:, : part.start]) if part.start else None
            own_k, own_v = self.packing.of_part(k, part), self.packing.of_part(v, part)
            asked = q[0, asking.rows].unflatten(0, (part.copies * self.packing.batch, -1))
            z = attention.mix(asked, own_k, own_v, seen, _PartTap(self.tap, asking, first), here, past)
            found.append(z.flatten(0, 1))
            first += part.copies
        return (torch.cat(found) if len(found) > 1 else found[0])[None]

    def _query_parts(self) -> Iterator[Part]:
        """The rows that ask, part by part of those that are asked."""
        row = 0
        for part in self.packing.parts:
            start = max(part.start, min(self.after.starts))
            rows = part.copies * self.packing.batch * (self.packing.length - start)
            yield Part(start, part.copies, slice(row, row + rows))
            row += rows


def packed_resume(
    model: Transformer, base: Trace, variants: Sequence[Sequence[Edit]], entries: Sequence[Entry], read: int
) -> list[Float[Tensor, "batch pos d_model"]]:
    """The final residual stream under each variant's edits, from the later of its start and `read` on.

    The entries, in order of their starts, share their layer and what is valid there.
    """
    config, where = model.config, entries[0]
    batch, length = base.tokens.shape
    packing = Packing(batch, length, tuple(entry.start for entry in entries))
    if where.layer >= config.n_layers and not where.embeds:
        return [base.resid_final[:, max(start, read) :] for start in packing.starts]
    tap = PackedTap(base, packing, variants, where)
    at, tokens = packing.places(model.device), packing.packed(base.tokens)
    if where.embeds:
        resid = model.embedded_at(tokens, at, tap)
    else:
        resid = packing.packed(base.values[f"blocks.{where.layer}.resid_pre"])
    frame = PackedFrame(
        masks=model.masks(base.tokens),
        rotation=model.rotation(at),
        key_positions=model.key_positions(tokens, at, tap),
        base=base,
        packing=packing,
        after=packing,
        tap=tap,
    )
    last = config.n_layers - 1
    for layer, block in enumerate(model.layers[where.layer :], where.layer):
        if layer == last and not _edits_behind_keys(variants, last):
            packing = packing.from_position(read)
            frame = dataclasses.replace(frame, after=packing)
        resid = block(resid, frame, tap)
    return [packing.unpacked(resid, copy) for copy in range(len(variants))]


def _edits_behind_keys(variants: Sequence[Sequence[Edit]], layer: int) -> bool:
    """Whether an edit in this layer is anywhere but at its input: it may then ask for rows that nobody reads."""
    return any(layer_of(e.site) == layer and not e.site.endswith(".resid_pre") for edits in variants for e in edits)
