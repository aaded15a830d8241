"""Errors that a user can act on: one plain sentence, exit code 2, no traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user gave cannot be used. The message is one sentence: what was given and what is accepted."""


def nearest(given: str, valid: Iterable[str], limit: int = 3) -> list[str]:
    """The valid names closest to what was given, best first; case is ignored. May be empty."""
    by_folded = {name.lower(): name for name in valid}
    return [by_folded[m] for m in difflib.get_close_matches(given.lower(), by_folded, n=limit, cutoff=0.4)]


def unknown(kind: str, given: str, valid: Iterable[str], hint: str = "") -> UserError:
    """The error for a name that is not among the valid ones: names the nearest, or all where they are few."""
    valid = list(valid)
    close = nearest(given, valid)
    if close:
        choice = f"the nearest valid {'one is' if len(close) == 1 else 'ones are'} {', '.join(close)}"
    elif len(valid) <= 12:
        choice = f"valid ones are {', '.join(valid)}" if valid else "there is none to choose from"
    else:
        choice = f"there are {len(valid)}, such as {', '.join(valid[:3])}"
    return UserError(f"Unknown {kind} {given!r}: {choice}{'. ' + hint if hint else '.'}")
