"""Names of unfinished files and folders, which say who is writing them, so that what a killed process left can be told
from what a living one is still writing."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import time
from pathlib import Path

PREFIX = ".headwork-tmp-"
MAX_AGE = 24 * 3600.0
"""Seconds without a change after which something unfinished by a process of another machine counts as abandoned."""

_NAME = re.compile(re.escape(PREFIX) + r"(?P<host>[0-9a-f]{8})-(?P<pid>\d{1,9})-(?P<start>\d{1,20})-[0-9a-f]{8}")


def temporary_sibling(path: Path) -> Path:
    """A new hidden name in the folder of ``path``, which names this machine, this process and its start time."""
    pid = os.getpid()
    return path.with_name(f"{PREFIX}{_host()}-{pid}-{_start_time(pid) or 0}-{os.urandom(4).hex()}")


def is_abandoned(path: Path, max_age: float = MAX_AGE) -> bool:
    """Whether ``path`` bears a temporary name and nobody is writing it any more.

    The writer is looked up where it ran on this machine: gone means abandoned, alive means not, whatever the age. A
    writer on another machine (a shared disk, a container, before a restart) cannot be seen, so there ``max_age``
    seconds without a change decide.
    """
    name = _NAME.fullmatch(path.name)
    if name is None:
        return False
    if name["host"] == _host() and os.name == "posix":
        return not _is_alive(int(name["pid"]), int(name["start"]))
    return time.time() - _last_change(path) > max_age


@functools.cache
def _host() -> str:
    """Tells apart the machines, restarts and containers whose process numbers cannot be compared."""
    boot = pid_namespace = ""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        pid_namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        pass  # not Linux: the name of the machine alone
    node = os.uname().nodename if os.name == "posix" else os.environ.get("COMPUTERNAME", "")
    return hashlib.sha256(f"{node}\n{boot}\n{pid_namespace}".encode()).hexdigest()[:8]


def _is_alive(pid: int, start: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # it is there, and another user's
    # A number that was given to a new process has another start time. Where none can be read, spare what may be alive.
    return start == 0 or _start_time(pid) in (None, start)


def _start_time(pid: int) -> int | None:
    """Start of a process in clock ticks since boot, 0 for one that has ended but was not collected; None if unknown."""
    try:
        # The second field is the program's name in brackets, which may itself hold spaces and brackets.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return 0 if fields[0] in "ZX" else int(fields[19])
    except (OSError, ValueError, IndexError):
        return None


def _last_change(path: Path) -> float:
    """Newest modification time of anything in ``path``; now, if it vanishes under our eyes."""
    try:
        return max(p.lstat().st_mtime for p in (path, *path.rglob("*")))
    except OSError:
        return time.time()
