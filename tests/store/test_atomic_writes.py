"""Files and folders are whole or absent; what cannot be written is a plain error."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwork.errors import UserError
from headwork.store import disk, temporary
from headwork.store.atomic import sweep_folder, write_file, write_folder
from headwork.store.temporary import is_abandoned, temporary_sibling


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, operation: str, code: int) -> Iterator[None]:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(disk, operation, fail)
        yield


@settings(max_examples=25)
@given(st.binary(max_size=50) | st.text(max_size=50))
def test_a_file_holds_what_was_written(tmp_path_factory: pytest.TempPathFactory, content: bytes | str) -> None:
    path = tmp_path_factory.mktemp("write") / "new" / "file"
    for _ in range(2):
        write_file(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert os.listdir(path.parent) == ["file"]


def test_a_new_file_gets_the_permissions_that_any_new_file_gets(tmp_path: Path) -> None:
    write_file(tmp_path / "ours", b"")
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("operation", ["create", "write", "fsync", "rename"])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str) -> None:
    path = tmp_path / "file"
    write_file(path, "old")
    with failing(monkeypatch, operation, errno.ENOSPC), pytest.raises(UserError) as caught:
        write_file(path, "new")
    assert str(caught.value) == f"Cannot write {path}: the disk is full; free some space or choose another folder."
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("operation", ["mkdir", "fsync", "rename"])
@pytest.mark.parametrize("code, reason", [(errno.ENOSPC, "full"), (errno.EROFS, "read-only"), (errno.EIO, "error")])
def test_a_folder_that_cannot_be_written_is_a_plain_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str, code: int, reason: str
) -> None:
    final = tmp_path / "final"
    with (
        failing(monkeypatch, operation, code),
        pytest.raises(UserError, match=rf"^Cannot write {final}: .*{reason}.*; .*\.$"),
        write_folder(final) as folder,
    ):
        (folder / "a").write_text("a")
    assert os.listdir(tmp_path) == []


def test_a_limit_of_the_system_on_what_the_block_writes_is_a_plain_error(tmp_path: Path) -> None:
    """A real refusal by the kernel, in a process of its own, through a library that knows nothing of the store."""
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from headwork.errors import UserError; from headwork.store.atomic import write_folder\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    with write_folder(Path(sys.argv[1])) as folder:\n"
        "        (folder / 'small').write_bytes(b'x' * 1000)\n"
        "        (folder / 'large').write_bytes(b'x' * 1001)\n"
        "except UserError as error:\n"
        "    print(error, end='')\n"
    )
    final = tmp_path / "final"
    done = subprocess.run([sys.executable, "-c", code, str(final)], capture_output=True, text=True, check=True)
    assert done.stdout == (
        f"Cannot write {final}: the file would be larger than the limit on file sizes; "
        "choose a folder that can be written."
    )
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("place", ["file/below", "file/far/below", "file"])
def test_a_path_through_a_file_is_a_plain_error(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("the user's")
    with pytest.raises(UserError, match=r"^Cannot write .*: a part of this path is a file, not a folder; choose"):
        write_file(tmp_path / place / "x", "x")
    with (
        pytest.raises(UserError, match=r"^Cannot write .*: a part of this path is a file, not a folder; choose"),
        write_folder(tmp_path / place / "x"),
    ):
        pytest.fail("the block must not run")
    assert (tmp_path / "file").read_text() == "the user's"


def test_a_file_system_that_refuses_is_a_plain_error() -> None:
    with pytest.raises(UserError, match=r"^Cannot write /proc/headwork/x: "):
        write_file(Path("/proc/headwork/x"), "x")


def test_a_folder_where_the_file_should_go_is_a_plain_error(tmp_path: Path) -> None:
    (tmp_path / "x" / "kept").mkdir(parents=True)
    with pytest.raises(UserError, match=r"^Cannot write .*/x: there is a folder of that name; choose"):
        write_file(tmp_path / "x", "x")
    assert [p.name for p in tmp_path.rglob("*")] == ["x", "kept"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, FileNotFoundError])
def test_a_block_that_fails_leaves_nothing_and_its_error_passes(tmp_path: Path, error: type[BaseException]) -> None:
    def fill(folder: Path) -> None:
        (folder / "deep" / "er").mkdir(parents=True)
        (folder / "deep" / "er" / "file").write_text("half")
        raise error

    with pytest.raises(error), write_folder(tmp_path / "final") as folder:
        fill(folder)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_elsewhere_is_not_ours_to_explain(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="elsewhere"), write_folder(tmp_path / "final"):
        raise OSError(errno.ENOSPC, "full", "/elsewhere/file")


def test_a_folder_that_is_there_already_is_kept(tmp_path: Path) -> None:
    final = tmp_path / "final"
    with write_folder(final) as slow:
        with write_folder(final) as fast:
            (fast / "who").write_text("fast")
        (slow / "who").write_text("slow")
    assert (final / "who").read_text() == "fast"
    assert os.listdir(tmp_path) == ["final"]


def test_an_empty_folder_that_is_there_already_is_kept(tmp_path: Path) -> None:
    with write_folder(tmp_path / "final") as folder:
        (folder / "who").write_text("slow")
        (tmp_path / "final").mkdir()
    assert [path.name for path in tmp_path.rglob("*")] == ["final"]


def test_a_folder_that_appears_just_before_the_rename_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    final, rename = tmp_path / "final", disk.rename

    def late(source: Path, target: Path) -> None:
        final.mkdir()
        (final / "who").write_text("fast")
        rename(source, target)

    monkeypatch.setattr(disk, "rename", late)
    with write_folder(final) as folder:
        (folder / "who").write_text("slow")
    assert (final / "who").read_text() == "fast"
    assert os.listdir(tmp_path) == ["final"]


def test_everything_is_on_disk_before_the_name_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill cannot show a missing fsync, a power failure would: so the order itself is checked."""
    log: list[tuple[str, int]] = []
    fsync, rename = disk.fsync, disk.rename

    def logged_fsync(descriptor: int) -> None:
        log.append(("fsync", os.fstat(descriptor).st_ino))
        fsync(descriptor)

    def logged_rename(source: Path, target: Path) -> None:
        log.append(("rename", source.stat().st_ino))
        rename(source, target)

    monkeypatch.setattr(disk, "fsync", logged_fsync)
    monkeypatch.setattr(disk, "rename", logged_rename)
    with write_folder(tmp_path / "new" / "final") as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "a").write_text("a")
        (folder / "b").write_text("b")
    names = {path.stat().st_ino: path.relative_to(tmp_path).as_posix() for path in (tmp_path, *tmp_path.rglob("*"))}
    assert [(operation, names[inode]) for operation, inode in log] == [
        ("fsync", "."),
        ("fsync", "new/final/deep/a"),
        ("fsync", "new/final/deep"),
        ("fsync", "new/final/b"),
        ("fsync", "new/final"),
        ("rename", "new/final"),
        ("fsync", "new"),
    ]


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """Another process, which does nothing until its input is closed."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def name_of(pid: int, start: int | None, folder: Path, host: str | None = None) -> Path:
    return folder / f"{temporary.PREFIX}{host or temporary._host()}-{pid}-{start or 0}-0123abcd"


def test_what_a_living_process_writes_is_spared_at_any_age(tmp_path: Path, stranger: subprocess.Popen[bytes]) -> None:
    ours = temporary_sibling(tmp_path / "final")
    theirs = name_of(stranger.pid, temporary._start_time(stranger.pid), tmp_path)
    for path in (ours, theirs):
        path.mkdir()
        os.utime(path, (0, 0))
    assert sweep_folder(tmp_path) == 0
    stranger.kill()
    stranger.wait()
    assert sweep_folder(tmp_path) == 1
    assert os.listdir(tmp_path) == [ours.name]


@pytest.mark.parametrize(
    "recorded, now, abandoned",
    [(7, 7, False), (7, 9, True), (7, None, False), (0, 9, False), (7, 0, True)],
    ids=["the same", "its number was given to a new process", "unreadable now", "never known", "ended, not collected"],
)
def test_the_start_time_tells_a_process_from_its_successor(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stranger: subprocess.Popen[bytes],
    recorded: int,
    now: int | None,
    abandoned: bool,
) -> None:
    monkeypatch.setattr(temporary, "_start_time", lambda _: now)
    assert is_abandoned(name_of(stranger.pid, recorded, tmp_path)) == abandoned


def test_what_another_machine_writes_is_judged_by_its_newest_change(tmp_path: Path) -> None:
    folder = name_of(1, 1, tmp_path, host="00000000")
    folder.mkdir()
    (folder / "file").write_text("half")
    os.utime(folder, (0, 0))
    assert not is_abandoned(folder)
    old = time.time() - temporary.MAX_AGE - 60
    os.utime(folder / "file", (old, old))
    assert is_abandoned(folder)
    assert sweep_folder(tmp_path) == 1


@pytest.mark.parametrize("name", ["notes.md", ".headwork-tmp-mine", ".headwork-tmp-0-0-0-0", "x.headwork-tmp-"])
def test_other_files_are_never_swept(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("the user's")
    os.utime(tmp_path / name, (0, 0))
    assert sweep_folder(tmp_path) == 0
    assert os.listdir(tmp_path) == [name]
