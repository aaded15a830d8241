"""The store: finished results on disk, each in a folder that is named by the hash of everything that can change it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from headwork.errors import UserError
from headwork.store import disk
from headwork.store.address import FORMAT, address, canonical, check_kind
from headwork.store.atomic import cannot_write, remove_tree, sweep_folder, write_file, write_folder
from headwork.store.temporary import MAX_AGE, temporary_sibling

MANIFEST = "manifest.json"
_ADDRESS = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Entry:
    """One finished result: its address, the folder that holds its files, and the manifest that describes them."""

    address: str
    folder: Path
    manifest: dict[str, Any]

    def verify(self) -> bool:
        """Whether every file still has the SHA-256 that was recorded. Reads all of them."""
        try:
            return all(
                file_hash(self.folder / name) == record["sha256"] for name, record in self.manifest["files"].items()
            )
        except OSError:
            return False


class Store:
    """Results under one root, ``root/<kind>/<first two digits>/<address>/``, shared by any number of processes.

    ``root`` is by default ``$HEADWORK_STORE``, or else ``headwork`` in the user's cache folder. It is made
    on first write.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = (_default_root() if root is None else Path(root)).expanduser().absolute()

    def find(self, address: str, *, deep: bool = False) -> Entry | None:
        """The finished result at an address, or None.

        An entry counts if its manifest is there and every file has the recorded size; with ``deep`` also the recorded
        SHA-256. One that is damaged is removed and reported as None: it is computed again. Raises ValueError only, for
        what is not an address.
        """
        if not _ADDRESS.fullmatch(address):
            raise ValueError(f"{address!r} is not an address: it must be 64 hexadecimal digits.")
        folders = self.root.glob(f"*/{address[:2]}/{address}")
        return next((entry for folder in folders if (entry := _sound_entry(folder, deep))), None)

    @contextmanager
    def write(self, address: str, *, kind: str, inputs: Mapping[str, object]) -> Iterator[Path]:
        """A folder to fill with the files of a result, which appears in the store in one step when the block ends.

        Nothing appears if the block fails or the process is killed. Where another process has written the same result
        in the meantime, that one stays. Raises ValueError if ``address`` is not that of ``kind`` and ``inputs``, or if
        the folder holds links or a file of the manifest's name; UserError where the disk is full or cannot be written.
        """
        _check_address(address, kind, inputs)
        self.find(address)  # a damaged entry makes room
        final = self.root / kind / address[:2] / address
        with write_folder(final) as folder:
            yield folder
            manifest = {
                "format": FORMAT,
                "address": address,
                "kind": kind,
                "inputs": json.loads(canonical(inputs)),
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "files": _describe(folder),
            }
            write_file(folder / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
        if self.find(address) is None:
            raise UserError(
                f"The result at {final} cannot be read back: remove that folder, or set HEADWORK_STORE to another one."
            )

    def entries(self, kind: str | None = None) -> list[Entry]:
        """All finished results, or those of one kind, ordered by kind and address."""
        folders = sorted(self.root.glob(f"{kind or '*'}/[0-9a-f][0-9a-f]/*"))
        found = (_sound_entry(folder) for folder in folders if _ADDRESS.fullmatch(folder.name))
        return [entry for entry in found if entry is not None]

    def remove(self, address: str) -> bool:
        """Remove a result, in one step; whether there was one. Raises UserError where it cannot be removed."""
        entry = self.find(address)
        if entry is None:
            return False
        away = temporary_sibling(entry.folder)
        try:
            disk.rename(entry.folder, away)
        except FileNotFoundError:
            return False  # another process removed it first
        except OSError as error:
            raise cannot_write(entry.folder, error) from error
        remove_tree(away)
        return True

    def sweep(self, max_age: float = MAX_AGE) -> int:
        """Remove what killed processes left unfinished, never what a living one is writing; how many there were.

        ``max_age``: seconds without a change after which the unfinished result of another machine counts as abandoned.
        """
        return sum(sweep_folder(folder, max_age) for folder in self.root.glob("*/[0-9a-f][0-9a-f]"))


def file_hash(path: Path) -> str:
    """SHA-256 of a file in hex. Raises OSError."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _default_root() -> Path:
    named = os.environ.get("HEADWORK_STORE")
    if named:
        return Path(named)
    import platformdirs  # only here: most users of this module name their store

    return Path(platformdirs.user_cache_dir("headwork", appauthor=False))


def _check_address(given: str, kind: str, inputs: Mapping[str, object]) -> None:
    expected = address(check_kind(kind), inputs)
    if given != expected:
        raise ValueError(f"The address {given!r} is not that of the {kind} and inputs given, which is {expected!r}.")


def _describe(folder: Path) -> dict[str, dict[str, Any]]:
    """Size in bytes and SHA-256 of every file in a folder, by its name relative to it."""
    described: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or name == MANIFEST:
            raise ValueError(f"A result cannot hold {name!r}: links and the name {MANIFEST!r} are not accepted.")
        if path.is_file():
            described[name] = {"size": path.stat().st_size, "sha256": file_hash(path)}
    return described


def _sound_entry(folder: Path, deep: bool = False) -> Entry | None:
    """The entry in a folder of the store; None where it is damaged, and then it is removed."""
    try:
        entry = _read(folder, folder.name)
    except OSError:
        return None  # unreadable to us (permissions, a failing disk): not ours to remove
    if entry is not None and (not deep or entry.verify()):
        return entry
    _discard(folder)
    return None


def _read(folder: Path, address: str) -> Entry | None:
    """The entry in a folder, or None where it is incomplete or damaged. Raises OSError where that cannot be seen."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        named = (manifest["format"], manifest["kind"], manifest["address"])
        if named != (FORMAT, folder.parent.parent.name, address):
            return None
        for name, record in manifest["files"].items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != record["size"] or len(record["sha256"]) != 64:
                return None
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None  # not the JSON that we write
    return Entry(address, folder, manifest)


def _discard(folder: Path) -> None:
    """Remove a damaged entry, unless another process has just put a sound one in its place."""
    away = temporary_sibling(folder)
    with suppress(OSError):  # another process has removed it, or the store is read-only
        disk.rename(folder, away)
        entry = _read(away, folder.name)
        if entry is not None and entry.verify():
            disk.rename(away, folder)
        remove_tree(away)
