"""The system calls by which this package changes the disk.

All changes go through these seven functions, called as ``disk.write(...)``: a test replaces one of them to kill the
process, or to fill the disk, at any single call.
"""

from __future__ import annotations

import os
from pathlib import Path

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def create(path: Path) -> int:
    """Create a new file and return its descriptor, open for writing; FileExistsError where there is one."""
    return os.open(path, _CREATE, 0o666)


def write(descriptor: int, data: bytes) -> None:
    """Write all of ``data``."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def fsync(descriptor: int) -> None:
    """Wait until a file or folder has reached the disk."""
    os.fsync(descriptor)


def rename(source: Path, target: Path) -> None:
    """Move ``source`` to ``target`` in one step, replacing a file that is there."""
    os.replace(source, target)


def mkdir(path: Path) -> None:
    """Create one folder; FileExistsError where something is there."""
    os.mkdir(path)


def unlink(path: Path) -> None:
    """Remove one file."""
    os.unlink(path)


def rmdir(path: Path) -> None:
    """Remove one empty folder."""
    os.rmdir(path)
