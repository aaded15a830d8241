"""Copies of finished results in a folder of the user's, with a record that is there only if all it names is."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath, PureWindowsPath

from headwork.errors import UserError
from headwork.store import disk
from headwork.store.atomic import fsync_folder, make_folders, plain_errors, remove_tree, stage, sweep_folder
from headwork.store.results import file_hash

_CHUNK = 1 << 20


def publish(files: Mapping[str, Path], out: Path, last: str) -> None:
    """Copy ``files`` (name in ``out`` → source) into the folder ``out``; ``last`` is the record that names the others.

    Everything is first written beside its target under a temporary name, so a full disk leaves what was there before.
    Then the record is removed, the others renamed into place, and the record last: a folder without it is recognisably
    unfinished. Files that already have the right bytes are not rewritten; other files in ``out`` are never touched.

    Raises UserError for a name that is not a plain relative one (``figures/a.svg`` is), a source that cannot be read,
    or an ``out`` that is a file, cannot be written or has no room; ValueError if ``last`` is not among ``files``.
    """
    if last not in files:
        raise ValueError(f"The record {last!r} is not among the files to publish: {', '.join(sorted(files))}.")
    targets = {_checked(name): out / name for name in files}
    _sweep(out, targets)
    changed = [name for name in files if name != last and _differs(files[name], targets[name])]
    if not changed and not _differs(files[last], targets[last]):
        return
    with plain_errors(out):
        _replace([(files[name], targets[name]) for name in changed], (files[last], targets[last]))


def require_folder(out: Path) -> None:
    """Fail before the work rather than after it, and leave no folder behind. Raises UserError."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out is {out}, which is a file; it must be a folder.")
    missing = [folder for folder in (out, *out.parents) if not folder.exists()]
    with plain_errors(out):
        make_folders(out)
        for folder in missing:
            folder.rmdir()
    if not missing and not os.access(out, os.W_OK):
        raise UserError(f"--out is {out}, where nothing can be written; choose another folder.")


def _replace(others: list[tuple[Path, Path]], record: tuple[Path, Path]) -> None:
    """Stage all, then remove the record, rename the others, rename the record. Raises OSError."""
    staged: list[tuple[Path, Path]] = []
    try:
        for source, target in (*others, record):
            make_folders(target.parent)
            staged.append((stage(target, _chunks(source)), target))
        with suppress(FileNotFoundError):
            disk.unlink(record[1])
            fsync_folder(record[1].parent)
        for temporary, target in staged[:-1]:
            disk.rename(temporary, target)
        for folder in sorted({target.parent for _, target in staged[:-1]}):
            fsync_folder(folder)
        disk.rename(*staged[-1])
        fsync_folder(record[1].parent)
    finally:
        for temporary, _ in staged:
            remove_tree(temporary)


def _checked(name: str) -> str:
    path = PurePosixPath(name)
    plain = not path.is_absolute() and ".." not in path.parts and "\\" not in name and "\0" not in name
    if not plain or PureWindowsPath(name).drive or str(path) != name or name == ".":
        raise UserError(f"Cannot publish a file as {name!r}: give a relative name without '..', such as figures/a.svg.")
    return name


def _sweep(out: Path, targets: Mapping[str, Path]) -> None:
    """Remove what a killed publication left, and refuse folders that stand where files should go."""
    for folder in {target.parent for target in targets.values()}:
        sweep_folder(folder)
    for target in targets.values():
        if target.is_dir():
            raise UserError(f"Cannot write {target}: there is a folder of that name; move it or choose another folder.")


def _differs(source: Path, target: Path) -> bool:
    try:
        size, digest = source.stat().st_size, file_hash(source)
    except OSError as error:
        raise UserError(f"Cannot read {source}: {(error.strerror or str(error)).lower()}.") from error
    try:
        return target.is_symlink() or target.stat().st_size != size or file_hash(target) != digest
    except OSError:
        return True


def _chunks(source: Path) -> Iterator[bytes]:
    with source.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            yield chunk
