"""Files and folders that are either whole or absent, whenever the process is killed.

The pattern is everywhere the same: write under a temporary name in the same folder, fsync, rename, fsync the folder.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from headwork.errors import UserError
from headwork.store import disk
from headwork.store.temporary import MAX_AGE, PREFIX, is_abandoned, temporary_sibling

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than the limit on file sizes",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission is denied",
    errno.EPERM: "permission is denied",
    errno.ENOTDIR: "a part of this path is a file, not a folder",
    errno.EISDIR: "there is a folder of that name",
    errno.ENAMETOOLONG: "the name is too long",
}
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def write_file(path: Path, content: bytes | str) -> None:
    """Write a file in one step, text as UTF-8, making missing folders. Raises UserError where it cannot be written."""
    data = content.encode() if isinstance(content, str) else content
    with plain_errors(path):
        make_folders(path.parent)
        temporary = stage(path, [data])
        try:
            disk.rename(temporary, path)
        except BaseException:
            remove_tree(temporary)
            raise
        fsync_folder(path.parent)


@contextmanager
def write_folder(final: Path) -> Iterator[Path]:
    """A temporary folder to fill, which becomes ``final`` in one step when the block ends.

    If the block fails or is interrupted, the folder is removed. If ``final`` exists by then, because another process
    was faster, it is kept and ours is dropped. Raises UserError where the disk is full or cannot be written.
    """
    temporary = temporary_sibling(final)
    try:
        with plain_errors(final):
            make_folders(final.parent)
            disk.mkdir(temporary)
        try:
            yield temporary
        except OSError as error:
            if error.errno in _NO_ROOM and _inside(error.filename, temporary):
                raise cannot_write(final, error) from error
            raise
        with plain_errors(final):
            _fsync_tree(temporary)
            _move_unless_there(temporary, final)
    finally:
        remove_tree(temporary)


def stage(path: Path, chunks: Iterable[bytes]) -> Path:
    """Write ``chunks`` to a temporary file beside ``path``, safe on disk, ready to be renamed. Raises OSError."""
    temporary = temporary_sibling(path)
    descriptor = disk.create(temporary)
    try:
        try:
            for chunk in chunks:
                disk.write(descriptor, chunk)
            disk.fsync(descriptor)
        finally:
            os.close(descriptor)
    except BaseException:
        remove_tree(temporary)
        raise
    return temporary


def make_folders(folder: Path) -> None:
    """Make ``folder`` and those above it, each safely on disk. Raises OSError."""
    if folder.is_dir() or folder == folder.parent:
        return
    make_folders(folder.parent)
    try:
        disk.mkdir(folder)
    except FileExistsError:
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from None
    fsync_folder(folder.parent)


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder safe on disk, where the system can. Raises OSError."""
    if os.name != "posix":
        return
    try:
        _fsync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems have no such call
            raise


def remove_tree(path: Path) -> None:
    """Remove a file, or a folder with all in it; what cannot be removed is left for a later sweep."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            for child in list(path.iterdir()):
                remove_tree(child)
            disk.rmdir(path)
        else:
            disk.unlink(path)


def sweep_folder(folder: Path, max_age: float = MAX_AGE) -> int:
    """Remove what killed processes left unfinished in ``folder`` itself, and nothing else; how many there were."""
    abandoned = [path for path in folder.glob(PREFIX + "*") if is_abandoned(path, max_age)]
    for path in abandoned:
        remove_tree(path)
    return len(abandoned)


@contextmanager
def plain_errors(path: Path) -> Iterator[None]:
    """Turns a failing system call into the UserError that says why ``path`` cannot be written."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> UserError:
    """One sentence: the path, the reason, what to do."""
    reason = _REASONS.get(error.errno or 0) or (error.strerror or str(error) or "unknown reason").lower()
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = "free some space or choose another folder" if full else "choose a folder that can be written"
    return UserError(f"Cannot write {path}: {reason}; {remedy}.")


def _move_unless_there(temporary: Path, final: Path) -> None:
    if final.is_dir():
        return
    try:
        disk.rename(temporary, final)
    except OSError:
        if not final.is_dir():  # otherwise another process was faster by a moment
            raise
    fsync_folder(final.parent)


def _fsync_tree(folder: Path) -> None:
    """Every file first, then the folders, so that a folder on disk never names a file that is not."""
    for parent, _, files in os.walk(folder, topdown=False):
        for name in files:
            _fsync(Path(parent, name))
        fsync_folder(Path(parent))


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        disk.fsync(descriptor)
    finally:
        os.close(descriptor)


def _inside(filename: object, folder: Path) -> bool:
    """Whether a failing call was about ``folder``; a failing write does not say, and counts."""
    return filename is None or Path(os.fsdecode(filename)).is_relative_to(folder)  # type: ignore[arg-type]
