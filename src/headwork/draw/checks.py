"""Checks of what a picture is given, each with a plain error that names the thing and both sizes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from headwork.errors import UserError

Array = npt.NDArray[np.float64]


def numbers(values: npt.ArrayLike, name: str, axes: Sequence[str]) -> Array:
    """The values as float64 with one dimension per named axis, none of them empty. NaN is allowed, infinity is not."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{name} must be numbers [{', '.join(axes)}], and could not be read as such: {error}."
        ) from error
    if array.ndim != len(axes):
        raise UserError(f"{name} must have the axes [{', '.join(axes)}], and has shape {array.shape}.")
    if array.size == 0:
        raise UserError(f"{name} [{', '.join(axes)}] is empty: its shape is {array.shape}.")
    if np.isinf(array).any():
        raise UserError(f"{name} holds an infinite number; numbers and NaN (not measured) can be drawn.")
    return array


def same_length(name: str, length: int, other: str, expected: int) -> None:
    """Raises UserError unless the two lengths agree."""
    if length != expected:
        raise UserError(f"There are {length} {name} for {expected} {other}; the two must be equally many.")


def interval(name: str, value: float | None, low: float | None, high: float | None) -> None:
    """Raises UserError unless low and high are both given or both absent, in order, and finite with a finite value."""
    if (low is None) != (high is None):
        raise UserError(f"{name} has only one end of its interval ({low}, {high}); give both or neither.")
    given = [x for x in (value, low, high) if x is not None]
    if not np.isfinite(given).all():
        raise UserError(f"{name} has value {value} and interval ({low}, {high}); use None for what was not measured.")
    if low is not None and high is not None and low > high:
        raise UserError(f"{name} has an interval that ends ({high}) before it starts ({low}).")
