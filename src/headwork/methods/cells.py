"""The cells of a site that a method treats apart: by layer, position, head, or several of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from headwork.engine.edits import Edit, replace
from headwork.errors import UserError, unknown
from headwork.model.config import TransformerConfig
from headwork.model.sites import SITES, Site
from headwork.tasks.prompt_pairs import PromptPairs

By = Literal["position", "head", "head-position", "layer"]


@dataclass(frozen=True)
class Cells:
    """The chosen `layers`, `positions` and `heads` of `site`; what `by` does not separate is one cell.

    `short` is the site's name without its layer. Positions before `start` are the same in both runs of every pair.
    `every_position` and `every_head` are how many there are, chosen or not.
    """

    site: Site
    short: str
    by: By
    layers: tuple[int, ...]
    positions: tuple[int, ...]
    heads: tuple[int, ...]
    start: int
    every_position: int
    every_head: int

    @property
    def separate_positions(self) -> bool:
        """Whether each position is a cell of its own."""
        return self.by in ("position", "head-position")

    @property
    def separate_heads(self) -> bool:
        """Whether each head is a cell of its own."""
        return self.by in ("head", "head-position")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Layers, positions, heads; 1 for what is taken together."""
        apart_p, apart_h = self.separate_positions, self.separate_heads
        return len(self.layers), len(self.positions) if apart_p else 1, len(self.heads) if apart_h else 1

    @property
    def coords(self) -> dict[str, tuple[int, ...]]:
        """The axes that are separated, with their values; `kv_head` stands for `head` at keys and values."""
        head = next((axis for axis in self.site.axes if axis in ("head", "kv_head")), "head")
        apart = {"layer": True, "position": self.separate_positions, head: self.separate_heads}
        values = {"layer": self.layers, "position": self.positions, head: self.heads}
        return {name: values[name] for name, separate in apart.items() if separate}

    def labelled(self, effect: Tensor) -> Tensor:
        """Of an effect [layer, position, head, …], the axes that `coords` names; the others are of size 1."""
        # By index, since an axis that is kept may be of size one too.
        apart = (True, self.separate_positions, self.separate_heads)
        return effect[tuple(slice(None) if separate else 0 for separate in apart)]

    def name(self, layer: int) -> str:
        """The site's full name."""
        return self.site.name.format(l=layer)

    def patches(self, layer: int, value: Tensor) -> list[tuple[tuple[int, int], Edit]]:
        """Index [position, head] and edit of every cell of a layer in which `value` can differ."""
        where = [(p,) for p in self.positions] if self.separate_positions else [self.positions]
        which = [(h,) for h in self.heads] if self.separate_heads else [self.heads]
        reached = [(i, tuple(p for p in ps if p >= self.start)) for i, ps in enumerate(where)]
        return [
            (
                (i, j),
                replace(self.name(layer), value, unless_all(hs, self.every_head), unless_all(ps, self.every_position)),
            )
            for (i, ps), (j, hs) in itertools.product(reached, enumerate(which))
            if ps
        ]

    def attrs(self) -> dict[str, Any]:
        """What was chosen, as attributes of a dataset."""
        return {
            "site": self.short,
            "by": self.by,
            "first_position": self.start,
            "patched_positions": list(self.positions),
            "patched_heads": list(self.heads),
        }


def cells_of(
    config: TransformerConfig,
    pairs: PromptPairs,
    site: str,
    by: By,
    layers: Sequence[int] | None,
    heads: Sequence[int] | None,
    positions: Sequence[int] | None,
) -> Cells:
    """The cells that were asked for; `UserError` for what does not exist."""
    described = {s.name.removeprefix("blocks.{l}."): s for s in SITES if s.per_layer and s.exists(config)}
    short = ".".join(part.removeprefix("hook_") for part in site.split("."))
    if short not in described or not config.n_layers:
        raise unknown("site to patch", site, described if config.n_layers else ())
    if by not in get_args(By):
        raise unknown("way to patch by", by, get_args(By))
    count = {"head": config.n_heads, "kv_head": config.kv_heads}.get(
        next((a for a in described[short].axes if "head" in a), ""), 0
    )
    if not count and (heads is not None or by in ("head", "head-position")):
        raise UserError(
            f"The site {short} has no heads; its axes are {', '.join(described[short].axes)}. "
            "Patch it by position or by layer, all of it."
        )
    return Cells(
        described[short],
        short,
        by,
        chosen("layer", layers, config.n_layers, "The network"),
        chosen("position", positions, pairs.clean.shape[1], "The prompts"),
        chosen("head", heads, count, f"The site {short}"),
        pairs.start(config),
        pairs.clean.shape[1],
        count,
    )


def unless_all(chosen: tuple[int, ...], count: int) -> tuple[int, ...] | None:
    """What was chosen, or None where that is everything, as edits have it."""
    return None if len(chosen) == count else chosen


def chosen(what: str, given: Sequence[int] | None, count: int, whose: str) -> tuple[int, ...]:
    """The given numbers, or all below `count`; `UserError` unless each exists and is given once."""
    found = tuple(range(count)) if given is None else tuple(given)
    wrong = [i for i in found if not 0 <= i < count]
    if wrong:
        verb = "have" if whose.endswith("s") else "has"
        raise UserError(f"{whose} {verb} {what}s 0–{count - 1}; {what} {wrong[0]} does not exist.")
    if given is not None and (not found or len(set(found)) < len(found)):
        raise UserError(f"The {what}s to patch are {list(found)}; at least one is needed, and each once.")
    return found
