"""A published folder has its record only if it has everything; what else the user keeps there is safe."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from headwork.errors import UserError
from headwork.store import disk
from headwork.store.publish import publish
from headwork.store.temporary import PREFIX

FILES = {"record.json": "record", "report.pdf": "pdf", "figures/a.svg": "svg", "figures/deep/b.svg": "b"}


def sources(folder: Path, files: dict[str, str] = FILES, suffix: str = "") -> dict[str, Path]:
    folder.mkdir(exist_ok=True)
    found = {name: folder / f"source-{i}{suffix}" for i, name in enumerate(files)}
    for name, path in found.items():
        path.write_text(files[name] + suffix)
    return found


def tree(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "new" / "out"


def test_files_are_copied_under_their_names(tmp_path: Path, out: Path) -> None:
    publish(sources(tmp_path / "s"), out, "record.json")
    assert tree(out) == FILES


def test_the_users_own_files_are_never_touched(tmp_path: Path, out: Path) -> None:
    mine = {"notes.md": "mine", "figures/mine.svg": "mine", ".headwork-tmp-mine": "mine", "record.json.bak": "mine"}
    for name, text in mine.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text)
    publish(sources(tmp_path / "s"), out, "record.json")
    publish(sources(tmp_path / "s", suffix=" 2"), out, "record.json")
    assert tree(out) == mine | {name: text + " 2" for name, text in FILES.items()}


def operations(monkeypatch: pytest.MonkeyPatch, out: Path) -> list[tuple[str, str]]:
    """The renames and removals under ``out``, as they happen."""
    log: list[tuple[str, str]] = []
    rename, unlink = disk.rename, disk.unlink

    def logged_rename(source: Path, target: Path) -> None:
        rename(source, target)
        log.append(("rename", target.relative_to(out).as_posix()))

    def logged_unlink(path: Path) -> None:
        unlink(path)
        log.append(("unlink", path.relative_to(out).as_posix()))

    monkeypatch.setattr(disk, "rename", logged_rename)
    monkeypatch.setattr(disk, "unlink", logged_unlink)
    return log


def test_the_record_goes_first_and_comes_last(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(sources(tmp_path / "s"), out, "record.json")
    log = operations(monkeypatch, out)
    publish(sources(tmp_path / "s", suffix=" 2"), out, "record.json")
    others = [("rename", name) for name in FILES if name != "record.json"]
    assert log == [("unlink", "record.json"), *others, ("rename", "record.json")]


def test_all_others_are_on_disk_before_the_record_appears(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, fsync = operations(monkeypatch, out), disk.fsync
    folders: dict[int, str] = {}

    def logged_fsync(descriptor: int) -> None:
        fsync(descriptor)
        folders.update({p.stat().st_ino: p.relative_to(out).as_posix() for p in (out, *out.rglob("*")) if p.is_dir()})
        log.append(("fsync", folders.get(os.fstat(descriptor).st_ino, "a file")))

    monkeypatch.setattr(disk, "fsync", logged_fsync)
    publish(sources(tmp_path / "s"), out, "record.json")
    steps = [("fsync", "."), ("fsync", "figures"), ("fsync", "figures/deep"), ("rename", "record.json"), ("fsync", ".")]
    assert log[-len(steps) :] == steps


def test_unchanged_files_are_not_rewritten(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(sources(tmp_path / "s"), out, "record.json")
    log = operations(monkeypatch, out)
    publish(sources(tmp_path / "s"), out, "record.json")
    assert log == []
    (out / "report.pdf").write_text("fdp")
    publish(sources(tmp_path / "s"), out, "record.json")
    assert log == [("unlink", "record.json"), ("rename", "report.pdf"), ("rename", "record.json")]
    assert tree(out) == FILES


def test_a_link_in_the_folder_is_replaced_not_written_through(tmp_path: Path, out: Path) -> None:
    (tmp_path / "elsewhere").write_text("pdf")
    out.mkdir(parents=True)
    (out / "report.pdf").symlink_to(tmp_path / "elsewhere")
    publish(sources(tmp_path / "s", suffix=" 2"), out, "record.json")
    assert not (out / "report.pdf").is_symlink()
    assert (tmp_path / "elsewhere").read_text() == "pdf"


@pytest.mark.parametrize(
    "name", ["/etc/x", "../x", "a/../../x", "..", ".", "", "a//b", "./a", "a/", "..\\x", "C:x", "C:/x", "a\0b"]
)
def test_a_name_that_could_leave_the_folder_is_refused(tmp_path: Path, out: Path, name: str) -> None:
    files = {**sources(tmp_path / "s"), name: tmp_path / "s" / "source-0"}
    with pytest.raises(UserError, match=r"^Cannot publish a file as .*: give a relative name"):
        publish(files, out, "record.json")
    assert not out.exists()


def test_the_record_must_be_among_the_files(tmp_path: Path, out: Path) -> None:
    with pytest.raises(ValueError, match=r"'other\.json' is not among the files"):
        publish(sources(tmp_path / "s"), out, "other.json")


def test_a_source_that_is_missing_is_a_plain_error_before_anything_is_written(tmp_path: Path, out: Path) -> None:
    files = sources(tmp_path / "s")
    files["report.pdf"].unlink()
    with pytest.raises(UserError, match=rf"^Cannot read {files['report.pdf']}: no such file"):
        publish(files, out, "record.json")
    assert not out.exists()


@pytest.mark.parametrize("place", ["file", "file/out"])
def test_an_output_folder_that_is_a_file_is_a_plain_error(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=rf"^Cannot write {tmp_path / place}: a part of this path is a file"):
        publish(sources(tmp_path / "s"), tmp_path / place, "record.json")
    assert (tmp_path / "file").read_text() == "mine"


def test_an_output_folder_that_cannot_be_made_is_a_plain_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^Cannot write /proc/headwork: "):
        publish(sources(tmp_path / "s"), Path("/proc/headwork"), "record.json")


@pytest.mark.parametrize("name", ["record.json", "figures/a.svg"])
def test_a_folder_in_the_place_of_a_file_is_a_plain_error(tmp_path: Path, out: Path, name: str) -> None:
    (out / name / "mine").mkdir(parents=True)
    with pytest.raises(UserError, match=rf"^Cannot write {out / name}: there is a folder of that name"):
        publish(sources(tmp_path / "s"), out, "record.json")
    assert (out / name / "mine").is_dir()


@pytest.mark.parametrize("operation", ["create", "write", "mkdir"])
@pytest.mark.parametrize("nth", [0, 1])
def test_a_full_disk_leaves_what_was_published_before(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch, operation: str, nth: int
) -> None:
    before = {name: FILES[name] for name in ("record.json", "report.pdf")}
    publish(sources(tmp_path / "s", before), out, "record.json")
    calls, real = iter(range(100)), getattr(disk, operation)

    def fail(*arguments: object) -> object:
        if next(calls) >= nth:
            raise OSError(errno.ENOSPC, "full")
        return real(*arguments)

    monkeypatch.setattr(disk, operation, fail)
    with pytest.raises(UserError, match=rf"^Cannot write {out}: the disk is full; free some space"):
        publish(sources(tmp_path / "s", suffix=" 2"), out, "record.json")
    assert tree(out) == before
    monkeypatch.undo()
    publish(sources(tmp_path / "s", suffix=" 2"), out, "record.json")
    assert tree(out) == {name: text + " 2" for name, text in FILES.items()}


def test_a_failure_after_the_record_is_gone_leaves_no_record(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(sources(tmp_path / "s"), out, "record.json")

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(disk, "rename", fail)
    with pytest.raises(UserError, match=r"input/output error"):
        publish(sources(tmp_path / "s", suffix=" 2"), out, "record.json")
    assert set(tree(out)) == set(FILES) - {"record.json"}
    assert not [name for _, _, names in os.walk(out) for name in names if name.startswith(PREFIX)]
