"""Running an adapted module: keep activations and edit them, as `run` does on a `Transformer`.

Edits are those of `headwork.engine.edits` at one of the module's sites; `at_channels` narrows one to some channels.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headwork.engine.edits import Edit
from headwork.errors import UserError, unknown
from headwork.model.adapter import Adapted


@dataclass(frozen=True)
class AdaptedRun:
    """What one pass left: the module's `output` and, by site, the activations asked for."""

    output: Any
    activations: Mapping[str, Tensor]

    def __getitem__(self, site: str) -> Tensor:
        """The activation at `site`; `UserError` where it was not asked for."""
        if site not in self.activations:
            raise unknown("kept site", site, self.activations, f"Ask for it with sites=[{site!r}].")
        return self.activations[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self.activations)


@dataclass(frozen=True, eq=False)
class ChannelEdit:
    """An edit in some channels only: those entries along `axis`, which is 1 for images and for plain features."""

    edit: Edit
    channels: tuple[int, ...]
    axis: int = 1

    @property
    def site(self) -> str:
        return self.edit.site


def at_channels(edit: Edit, channels: int | Sequence[int], axis: int = 1) -> ChannelEdit:
    """The edit, at these channels alone: `at_channels(hw.scale("conv1", 0.0), [3])`."""
    return ChannelEdit(edit, (channels,) if isinstance(channels, int) else tuple(channels), axis)


def run_adapted(
    adapted: Adapted,
    inputs: Tensor | tuple[Tensor, ...],
    sites: Iterable[str] | str = (),
    edits: Iterable[Edit | ChannelEdit] | Edit | ChannelEdit = (),
    *,
    grad: bool = False,
) -> AdaptedRun:
    """Run the module on `inputs` with `edits` in force, and keep what `sites` name (`*` stands for any part of a name).

    An edited site is kept as edited. With `grad` the pass is recorded. Raises `UserError` for unknown sites and
    channels, for values that do not fit, and for inputs of another number of axes than the example's.
    """
    given = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    _check_inputs(adapted, given)
    keep = frozenset(_resolve(adapted, sites))
    wanted: dict[str, list[ChannelEdit]] = {}
    for edit in [edits] if isinstance(edits, Edit | ChannelEdit) else edits:
        checked = _checked(adapted, edit)
        wanted.setdefault(checked.site, []).append(checked)
    kept: dict[str, Tensor] = {}
    reached: set[str] = set()

    def see(site: str, value: Tensor) -> Tensor:
        reached.add(site)
        for edit in wanted.get(site, ()):
            value = _applied(edit, value)
        if site in keep:
            kept[site] = value
            value = value.clone()  # else a later step that works in place would change what is kept
        return value

    with torch.set_grad_enabled(grad):
        output = adapted.seen(given, see)
    missed = sorted((keep | wanted.keys()) - reached)
    if missed:
        raise UserError(f"The pass did not come to the site {missed[0]}, which it did on the example.")
    return AdaptedRun(output, kept)


def _check_inputs(adapted: Adapted, given: tuple[Tensor, ...]) -> None:
    expected = adapted.example
    if len(given) != len(expected):
        raise UserError(f"The module takes {len(expected)} inputs; given were {len(given)}.")
    for value, example in zip(given, expected):
        if value.dim() != example.dim() or value.is_floating_point() != example.is_floating_point():
            raise UserError(
                f"The module was adapted to inputs such as {example.dtype} of shape {list(example.shape)}; given was "
                f"{value.dtype} of shape {list(value.shape)}."
            )


def _resolve(adapted: Adapted, names: Iterable[str] | str) -> list[str]:
    found: dict[str, None] = {}
    for asked in [names] if isinstance(names, str) else names:
        matches = [asked] if asked in adapted.sites else fnmatch.filter(adapted.sites, asked) if "*" in asked else []
        if not matches:
            raise unknown("site", asked, adapted.sites)
        found |= dict.fromkeys(matches)
    return list(found)


def _checked(adapted: Adapted, edit: Edit | ChannelEdit) -> ChannelEdit:
    """The edit with its site and channels known to exist."""
    whole = edit if isinstance(edit, ChannelEdit) else ChannelEdit(edit, ())
    _resolve(adapted, [whole.site] if "*" not in whole.site else [])
    if whole.site not in adapted.sites:
        raise UserError(f"An edit needs one site; {whole.site!r} is a pattern.")
    if whole.edit.heads is not None or whole.edit.positions is not None:
        raise UserError(f"The site {whole.site} of an adapted module has no heads or positions; use at_channels.")
    shape = adapted.sites[whole.site]
    if whole.channels and not -len(shape) <= whole.axis < len(shape):
        raise UserError(f"The site {whole.site} has {len(shape)} axes; there is no axis {whole.axis}.")
    wrong = [c for c in whole.channels if not 0 <= c < shape[whole.axis]]
    if wrong:
        raise UserError(f"The site {whole.site} has channels 0–{shape[whole.axis] - 1}; {wrong[0]} does not exist.")
    return whole


def _applied(edit: ChannelEdit, old: Tensor) -> Tensor:
    change, value = edit.edit.change, edit.edit.value
    try:
        whole = None if value is None else torch.as_tensor(value).to(old).expand_as(old)
    except RuntimeError:
        raise UserError(
            f"The value for {edit.site} has shape {list(torch.as_tensor(value).shape)}, which does not broadcast to "
            f"{list(old.shape)}."
        ) from None
    if not edit.channels:
        return _fitted(edit.site, change(old, whole), old)
    region = (slice(None),) * (edit.axis % old.dim()) + (torch.tensor(edit.channels, device=old.device),)
    new = old.clone()
    new[region] = _fitted(edit.site, change(old[region], None if whole is None else whole[region]), old[region])
    return new


def _fitted(site: str, new: Tensor, old: Tensor) -> Tensor:
    try:
        return new.to(old).expand_as(old)
    except RuntimeError:
        raise UserError(
            f"The edit at {site} made {list(new.shape)} out of {list(old.shape)}; it must keep the shape."
        ) from None
