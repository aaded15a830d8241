"""Edits: interventions as data. An edit is a pure function at one site, for given heads and positions.

Values broadcast to the whole site (`[batch, pos, head, d_head]` and so on); the edit then takes its region from them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from headwork.engine.run import Run
from headwork.errors import UserError
from headwork.model.config import TransformerConfig
from headwork.model.sites import Site, resolve, sites

Positions = int | Sequence[int] | Bool[Tensor, "batch pos"] | None
Change = Callable[[Tensor, Tensor | None], Tensor]


@dataclass(frozen=True, eq=False)
class Edit:
    """What happens at `site`: `change(old, value)` on the region that `heads` and `positions` select.

    `positions` are positions of the tokens; at attention maps they select queries. A boolean mask `[batch, pos]`
    selects different positions in each example. `value=None` hands the change the old activation alone.
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
        if isinstance(self.positions, tuple):
            return min(self.positions, default=0)
        anywhere = self.positions.any(0).nonzero()
        return int(anywhere[0]) if len(anywhere) else self.positions.shape[1] - 1

    def checked(self, config: TransformerConfig, length: int) -> Edit:
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
        elif self.positions is not None and self.positions.shape[1] != length:
            raise UserError(f"The mask of positions covers {self.positions.shape[1]} of {length} positions.")
        return Edit(names[0], self.change, self.value, self.heads, self.positions)

    def apply(self, site: Site, old: Tensor, start: int = 0) -> Tensor:
        """The site's new activation, where `old` covers the positions from `start` on; `old` is left as it was."""
        value = None if self.value is None else self._broadcast(site, old, start)
        region = self._region(site, old, start)
        if region is None:
            return self.change(old, value)
        if isinstance(region, Tensor):
            return torch.where(region, self.change(old, value), old)
        new = old.clone()
        new[region] = self.change(old[region], None if value is None else value[region])
        return new

    def _broadcast(self, site: Site, old: Tensor, start: int) -> Tensor:
        value = torch.as_tensor(self.value).to(old)
        axis = _position_axis(site) - len(site.axes)
        if start and value.dim() >= -axis and value.shape[axis] not in (1, old.shape[axis]):
            value = value.narrow(axis, start, old.shape[axis])
        try:
            return value.expand_as(old)
        except RuntimeError:
            raise UserError(
                f"The value for {self.site} has shape {list(value.shape)}, which does not broadcast to "
                f"{list(old.shape)} ({', '.join(site.axes)})."
            ) from None

    def _region(self, site: Site, old: Tensor, start: int) -> tuple | Tensor | None:
        """None for everything, a mask, or an index tuple; head and position axes are neighbours at every site."""
        if self.heads is None and self.positions is None:
            return None
        position_axis, head_axis = _position_axis(site), _head_axis(site)
        if isinstance(self.positions, Tensor):
            mask = self.positions[:, start:].to(old.device)
            mask = mask.view([s if a in (0, position_axis) else 1 for a, s in enumerate(old.shape)])
            if self.heads is not None and head_axis is not None:
                chosen = torch.zeros(old.shape[head_axis], dtype=torch.bool, device=old.device)
                chosen[list(self.heads)] = True
                mask = mask & chosen.view([-1 if a == head_axis else 1 for a in range(old.dim())])
            return mask
        index: list = [slice(None)] * old.dim()
        if self.positions is not None:
            index[position_axis] = torch.tensor(self.positions, device=old.device) - start
        if self.heads is not None and head_axis is not None:
            index[head_axis] = torch.tensor(self.heads, device=old.device)
        if self.positions is not None and self.heads is not None and head_axis is not None:
            first, second = sorted((position_axis, head_axis))
            index[first] = index[first].view(-1, 1)
            index[second] = index[second].view(1, -1)
        return tuple(index)


def replace(
    site: str, value: Tensor | float, heads: Sequence[int] | int | None = None, positions: Positions = None
) -> Edit:
    """Put `value` there."""
    return _edit(site, lambda old, new: _given(new), value, heads, positions)


def add(
    site: str, value: Tensor | float, heads: Sequence[int] | int | None = None, positions: Positions = None
) -> Edit:
    """Add `value`: steering vectors, and path patching's differences."""
    return _edit(site, lambda old, new: old + _given(new), value, heads, positions)


def scale(
    site: str, factor: Tensor | float, heads: Sequence[int] | int | None = None, positions: Positions = None
) -> Edit:
    """Multiply with `factor`; 0 is zero ablation."""
    return _edit(site, lambda old, new: old * _given(new), factor, heads, positions)


def patch(site: str, source: Run, heads: Sequence[int] | int | None = None, positions: Positions = None) -> Edit:
    """Put there what another run had at the same site (Vig et al. 2020; Meng et al. 2022)."""
    return _edit(site, lambda old, new: _given(new), source[site], heads, positions)


def function(
    site: str, change: Callable[[Tensor], Tensor], heads: Sequence[int] | int | None = None, positions: Positions = None
) -> Edit:
    """Any pure function of the activation in the chosen region (under a mask: of the whole activation)."""
    return _edit(site, lambda old, _: change(old), None, heads, positions)


def _edit(
    site: str, change: Change, value: Tensor | float | None, heads: Sequence[int] | int | None, positions: Positions
) -> Edit:
    heads = (heads,) if isinstance(heads, int) else None if heads is None else tuple(heads)
    if isinstance(positions, int):
        positions = (positions,)
    elif positions is not None and not isinstance(positions, Tensor):
        positions = tuple(positions)
    return Edit(site, change, None if value is None else torch.as_tensor(value), heads, positions)


def _given(value: Tensor | None) -> Tensor:
    assert value is not None, "this change was built with a value"  # noqa: S101 – an invariant of this file
    return value


def _position_axis(site: Site) -> int:
    return site.axes.index("query" if "query" in site.axes else "pos")


def _head_axis(site: Site) -> int | None:
    return next((i for i, axis in enumerate(site.axes) if axis in ("head", "kv_head")), None)
