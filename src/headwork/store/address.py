"""The address of a result: the hash of everything that can change it."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping

FORMAT = 1
"""Version of the layout on disk. Being part of every address, it keeps results of another layout apart from ours."""

_KIND = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


def canonical(inputs: object) -> str:
    """The one JSON text of ``inputs``: keys sorted, no spaces, floats exact (``repr``), tuples written as lists.

    Two inputs have the same text only if they are equal in value *and* type: ``1``, ``1.0`` and ``True`` differ, and so
    do ``0.0`` and ``-0.0``. Only None, bool, int, float, str, lists, tuples and mappings with text keys are accepted,
    and no subclasses of the scalar types: an enum, a path, a dataclass or a NumPy number would leave its meaning to
    chance.

    Raises TypeError for another type, ValueError for NaN, infinity or text that is not valid Unicode; both say where.
    """
    return json.dumps(_plain(inputs, "inputs"), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def address(kind: str, inputs: Mapping[str, object]) -> str:
    """The address of the result of one ``kind`` (``"run"``, ``"figure"`` …) for ``inputs``: a SHA-256 in 64 hex digits.

    Raises ValueError if ``kind`` is not a short lower-case name, and what ``canonical`` raises.
    """
    text = canonical({"format": FORMAT, "kind": check_kind(kind), "inputs": inputs})
    return hashlib.sha256(text.encode()).hexdigest()


def check_kind(kind: str) -> str:
    """``kind`` itself where it can be the name of a folder; otherwise ValueError."""
    if not _KIND.fullmatch(kind):
        raise ValueError(f"The kind of a result is {kind!r}; it must be lower-case letters, digits, '-' and '_'.")
    return kind


def _plain(value: object, where: str) -> object:
    """``value`` in the types that JSON has, each checked."""
    if value is None or type(value) in (bool, int):
        return value
    if type(value) is float:
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value!r}; only finite numbers can be part of an address.")
        return value
    if type(value) is str:
        return _text(value, where)
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        return {_key(key, where): _plain(item, f"{where}.{key}") for key, item in value.items()}
    raise TypeError(
        f"{where} is of type {type(value).__name__}; convert it to None, bool, int, float, str, a list or a dict first."
    )


def _key(key: object, where: str) -> str:
    if type(key) is not str:
        raise TypeError(f"{where} has the key {key!r} of type {type(key).__name__}; keys must be plain text.")
    return _text(key, f"a key of {where}")


def _text(value: str, where: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where} is {value!r}, which is not valid Unicode text.") from None
    return value
