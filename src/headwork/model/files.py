"""Reading what others wrote: JSON, hashes, and telling a pickled file from a safetensors file before opening it."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any, Literal

from headwork.errors import UserError


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises `UserError` where there is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"), parse_constant=_finite, parse_float=_finite)
    except FileNotFoundError:
        raise UserError(f"There is no file {path}.") from None
    except OSError as error:
        raise UserError(f"Cannot read {path}: {(error.strerror or str(error)).lower()}.") from error
    except RecursionError:
        raise UserError(f"{path} is not JSON: it is nested too deeply.") from None
    except ValueError as error:  # covers both bytes that are not UTF-8 and text that is not JSON
        raise UserError(f"{path} is not JSON: {error}.") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds a JSON {type(values).__name__}; it must hold an object.")
    return values


def _finite(text: str) -> float:
    """What Python reads as a number and JSON does not know: NaN and infinity, also as 1e999."""
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is not a finite number")
    return number


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal. Raises `UserError` where the file cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"Cannot read {path}: {(error.strerror or str(error)).lower()}.") from error


_FIRST = 160
"""Enough bytes for the name of a zip archive's first member."""


def kind_of(path: Path) -> Literal["torch", "safetensors", "npz", "other"]:
    """What a file of weights is by its first bytes, whatever it is called. Raises `UserError` if it cannot be read."""
    try:
        with path.open("rb") as file:
            start = file.read(_FIRST)
    except FileNotFoundError:
        raise UserError(f"There is no file {path}.") from None
    except OSError as error:
        raise UserError(f"Cannot read {path}: {(error.strerror or str(error)).lower()}.") from error
    if start[4:9] == b"\0\0\0\0{":  # a header's length in eight bytes, never above 100 MB, and the header's JSON
        return "safetensors"
    if start.startswith(b"PK\x03\x04") and b".npy" in start[30:]:  # numpy's archive: the first member's name ends so
        return "npz"
    return "torch" if start.startswith((b"PK\x03\x04", b"\x80")) else "other"  # a zip archive, or a bare pickle


def pickled(path: Path) -> UserError:
    """The error for a pickled checkpoint where a model folder or its safetensors file is expected."""
    return UserError(
        f"{path} is a pickled PyTorch file, not safetensors; convert it once with "
        f"`headwork models import {path.name} --layout LAYOUT --out DIR`."
    )
