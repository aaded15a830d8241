"""Edits: interventions as data. An edit is a pure function at one site, for given heads and positions.

Values broadcast to the whole site (`[batch, pos, head, d_head]` and so on, all positions of the prompts); the edit then
takes its region from them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from dataclasses import replace as with_fields

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from headwork.engine.run import Run
from headwork.errors import UserError
from headwork.model.config import TransformerConfig
from headwork.model.sites import Site, resolve, sites

Heads = int | Sequence[int] | Int[Tensor, " n"] | None
Positions = int | Sequence[int] | Int[Tensor, " n"] | Bool[Tensor, "batch pos"] | Bool[np.ndarray, "batch pos"] | None
Change = Callable[[Tensor, Tensor | None], Tensor]


@dataclass(frozen=True, eq=False)
class Edit:
    """What happens at `site`: `change(old, value)` on the region that `heads` and `positions` select.

    `positions` are positions of the tokens; at attention maps they select queries. A boolean mask `[batch, pos]`
    selects different positions in each example: the change is handed every position that any example selects, and
    counts where the mask is true. `value=None` hands the change the old activation alone.
    """

    site: str
    change: Change
    value: Tensor | None = None
    heads: tuple[int, ...] | None = None
    positions: tuple[int, ...] | Bool[Tensor, "batch pos"] | None = None

    @property
    def start(self) -> int:
        """The first position that can change."""
        if self.positions is None:
            return 0
        return min(self._selected(), default=0)

    def _selected(self) -> Sequence[int]:
        """Every position that the edit selects in any example."""
        if isinstance(self.positions, Tensor):
            return self.positions.any(0).nonzero()[:, 0].tolist()
        return self.positions or ()

    def checked(self, config: TransformerConfig, batch: int, length: int) -> Edit:
        """The same edit with its site's full name; `UserError` where site, head or position does not exist."""
        names = resolve(config, [self.site])
        if len(names) != 1:
            raise UserError(f"An edit needs one site; {self.site!r} stands for {len(names)}.")
        site = sites(config)[names[0]]
        if self.heads is not None:
            axis = _head_axis(site)
            if axis is None:
                raise UserError(
                    f"The site {names[0]} has no heads to choose from; its axes are {', '.join(site.axes)}."
                )
            count = config.kv_heads if site.axes[axis] == "kv_head" else config.n_heads
            wrong = [h for h in self.heads if not 0 <= h < count]
            if wrong:
                raise UserError(f"The site {names[0]} has heads 0–{count - 1}; head {wrong[0]} does not exist.")
        if isinstance(self.positions, tuple):
            wrong = [p for p in self.positions if not 0 <= p < length]
            if wrong:
                raise UserError(f"The prompts have positions 0–{length - 1}; position {wrong[0]} does not exist.")
        elif self.positions is not None and self.positions.shape != (batch, length):
            raise UserError(
                f"The mask of positions has shape {list(self.positions.shape)}; the prompts are [{batch}, {length}]."
            )
        return with_fields(self, site=names[0])

    def apply(self, site: Site, old: Tensor, start: int = 0) -> Tensor:
        """The site's new activation, where `old` covers the positions from `start` on; `old` is left as it was."""
        value = None if self.value is None else self._broadcast(site, old, start)
        if self.heads is None and self.positions is None:
            return self._fitted(self.change(old, value), old)
        region = self._region(site, old, start)
        chosen = old[region]
        if not chosen.numel():
            return old
        changed = self._fitted(self.change(chosen, None if value is None else value[region]), chosen)
        if isinstance(self.positions, Tensor):
            changed = torch.where(self._mask(site, old, self.positions[:, start:])[region], changed, chosen)
        new = old.clone()
        new[region] = changed
        return new

    def _broadcast(self, site: Site, old: Tensor, start: int) -> Tensor:
        """The value at the positions that `old` covers; its own axis of positions covers the whole prompts, or is 1."""
        value = torch.as_tensor(self.value).to(old)
        axis = _position_axis(site)
        whole = list(old.shape)
        whole[axis] += start
        try:
            return value.expand(whole).narrow(axis, start, old.shape[axis])
        except RuntimeError:
            raise UserError(
                f"The value for {self.site} has shape {list(value.shape)}, which does not broadcast to "
                f"{whole} ({', '.join(site.axes)})."
            ) from None

    def _fitted(self, new: Tensor, old: Tensor) -> Tensor:
        try:
            return new.to(old).expand_as(old)
        except RuntimeError:
            raise UserError(
                f"The edit at {self.site} made {list(new.shape)} out of {list(old.shape)}; it must keep the shape."
            ) from None

    def _region(self, site: Site, old: Tensor, start: int) -> tuple[slice | Tensor, ...]:
        """Indices of the chosen heads at the selected positions; the two axes are neighbours at every site."""
        chosen: dict[int, Sequence[int]] = {}
        if self.positions is not None:
            chosen[_position_axis(site)] = [p - start for p in self._selected()]
        if self.heads is not None and (head_axis := _head_axis(site)) is not None:
            chosen[head_axis] = self.heads
        index: list[slice | Tensor] = [slice(None)] * old.dim()
        for axis, where in chosen.items():
            # As a column for the first of two axes, so that every head is combined with every position.
            column = len(chosen) == 2 and axis == min(chosen)
            index[axis] = torch.tensor(where, dtype=torch.long, device=old.device).view(-1, *[1] * column)
        return tuple(index)

    def _mask(self, site: Site, old: Tensor, mask: Tensor) -> Tensor:
        """The mask over examples and positions, spread over the site's other axes."""
        axes = (0, _position_axis(site))
        return mask.to(old.device).view([s if a in axes else 1 for a, s in enumerate(old.shape)]).expand_as(old)


def replace(site: str, value: Tensor | float, heads: Heads = None, positions: Positions = None) -> Edit:
    """Put `value` there."""
    return _edit(site, lambda old, new: _given(new), value, heads, positions)


def add(site: str, value: Tensor | float, heads: Heads = None, positions: Positions = None) -> Edit:
    """Add `value`: steering vectors, and path patching's differences."""
    return _edit(site, lambda old, new: old + _given(new), value, heads, positions)


def scale(site: str, factor: Tensor | float, heads: Heads = None, positions: Positions = None) -> Edit:
    """Multiply with `factor`; 0 is zero ablation. A score of −∞, a key that the query may not see, stays −∞."""
    return _edit(
        site, lambda old, new: torch.where(old == -torch.inf, old, old * _given(new)), factor, heads, positions
    )


def patch(site: str, source: Run, heads: Heads = None, positions: Positions = None) -> Edit:
    """Put there what another run had at the same site (Vig et al. 2020; Meng et al. 2022)."""
    return _edit(site, lambda old, new: _given(new), source[site], heads, positions)


def function(site: str, change: Callable[[Tensor], Tensor], heads: Heads = None, positions: Positions = None) -> Edit:
    """Any function of the activation in the chosen region (under a mask: at every position that any example selects).

    What it returns broadcasts to what it was given. It is given a copy, so it may work in place.
    """
    return _edit(site, lambda old, _: change(old.clone()), None, heads, positions)


def _edit(site: str, change: Change, value: Tensor | float | None, heads: Heads, positions: Positions) -> Edit:
    exact = torch.float64 if isinstance(value, float) else None
    tensor = None if value is None else torch.as_tensor(value, dtype=exact)
    mask = isinstance(positions, Tensor | np.ndarray) and positions.ndim == 2
    where = _as_mask(torch.as_tensor(positions)) if mask else _whole_numbers("positions", positions)
    return Edit(site, change, tensor, _whole_numbers("heads", heads), where)


def _as_mask(positions: Tensor) -> Bool[Tensor, "batch pos"]:
    if positions.dtype != torch.bool:
        raise UserError(f"A mask of positions [batch, pos] must be boolean; this one is {positions.dtype}.")
    return positions


def _whole_numbers(what: str, given: Heads | Positions) -> tuple[int, ...] | None:
    if given is None:
        return None
    try:
        found = torch.as_tensor(given)
        whole = not found.numel() or found.dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
    except (TypeError, ValueError, RuntimeError):
        found, whole = torch.empty(0), False
    if not whole or found.dim() > 1:
        raise UserError(
            f"The {what} of an edit must be whole numbers, or a boolean mask [batch, pos]; given were {given!r}."
        )
    return tuple(int(i) for i in found.reshape(-1))


def _given(value: Tensor | None) -> Tensor:
    assert value is not None, "this change was built with a value"  # noqa: S101 – an invariant of this file
    return value


def _position_axis(site: Site) -> int:
    return site.axes.index("query" if "query" in site.axes else "pos")


def _head_axis(site: Site) -> int | None:
    return next((i for i, axis in enumerate(site.axes) if axis in ("head", "kv_head")), None)
