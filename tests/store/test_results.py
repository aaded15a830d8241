"""The store answers with whole results only, and loses none."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwork.errors import UserError
from headwork.store import disk, results
from headwork.store.address import address
from headwork.store.results import Store, file_hash
from headwork.store.temporary import PREFIX

INPUTS = {"finding": "induction-heads", "seed": 3}
ADDRESS = address("run", INPUTS)


def put(store: Store, files: dict[str, bytes] | None = None, inputs: dict[str, object] = INPUTS) -> str:
    key = address("run", inputs)
    with store.write(key, kind="run", inputs=inputs) as folder:
        for name, data in ({"scores.bin": b"12345", "figures/a.svg": b"<svg/>"} if files is None else files).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
    return key


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def leftovers(store: Store) -> list[Path]:
    return list(store.root.rglob(PREFIX + "*"))


NAMES = st.text("abcXYZ.-_ é", min_size=1, max_size=8).filter(lambda n: n.strip(". ") == n)


@settings(max_examples=25)
@given(st.dictionaries(NAMES, st.binary(max_size=30), max_size=4))
def test_a_result_is_found_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> None:
    store = Store(tmp_path_factory.mktemp("store"))
    entry = None
    for _ in range(2):
        put(store, files)
        entry = store.find(ADDRESS, deep=True)
        assert entry is not None
    assert entry is not None
    assert {name: (entry.folder / name).read_bytes() for name in entry.manifest["files"]} == files
    assert not leftovers(store)


def test_the_manifest_tells_what_the_result_is(store: Store) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    put(store)
    entry = store.find(ADDRESS)
    assert entry is not None
    assert entry.folder == store.root / "run" / ADDRESS[:2] / ADDRESS
    assert entry.manifest == json.loads((entry.folder / "manifest.json").read_text())
    assert before <= datetime.fromisoformat(entry.manifest.pop("created")) <= datetime.now(UTC)
    assert entry.manifest == {
        "format": 1,
        "address": ADDRESS,
        "kind": "run",
        "inputs": INPUTS,
        "files": {
            "figures/a.svg": {"size": 6, "sha256": file_hash(entry.folder / "figures" / "a.svg")},
            "scores.bin": {"size": 5, "sha256": file_hash(entry.folder / "scores.bin")},
        },
    }


def test_looking_changes_nothing_on_disk(store: Store) -> None:
    assert store.find(ADDRESS) is None
    assert store.entries() == []
    assert store.sweep() == 0
    assert not store.remove(ADDRESS)
    assert not store.root.exists()


def truncate(folder: Path) -> None:
    (folder / "scores.bin").write_bytes(b"123")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a file is shorter": truncate,
    "a file is gone": lambda folder: (folder / "scores.bin").unlink(),
    "a file became a folder": lambda folder: ((folder / "scores.bin").unlink(), (folder / "scores.bin").mkdir()),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "an empty manifest": lambda folder: (folder / "manifest.json").write_bytes(b""),
    "half a manifest": lambda folder: (folder / "manifest.json").write_bytes(b'{"format": 1, "addr'),
    "a binary manifest": lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe\x00"),
    "a list for a manifest": lambda folder: (folder / "manifest.json").write_bytes(b"[]"),
    "a manifest without files": lambda folder: (folder / "manifest.json").write_text(
        json.dumps({"format": 1, "kind": "run", "address": ADDRESS})
    ),
    "files that are no table": lambda folder: (folder / "manifest.json").write_text(
        json.dumps({"format": 1, "kind": "run", "address": ADDRESS, "files": {"scores.bin": 5}})
    ),
    "another result's manifest": lambda folder: (folder / "manifest.json").write_text(
        json.dumps({"format": 1, "kind": "run", "address": "0" * 64, "files": {}})
    ),
    "nesting beyond all bounds": lambda folder: (folder / "manifest.json").write_text("[" * 100_000),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
@pytest.mark.parametrize("ask", [lambda store: store.find(ADDRESS), lambda store: next(iter(store.entries()), None)])
def test_a_damaged_result_is_cleared_away_and_made_again(
    store: Store, damage: Callable[[Path], object], ask: Callable[[Store], object]
) -> None:
    put(store)
    folder = store.root / "run" / ADDRESS[:2] / ADDRESS
    damage(folder)
    assert ask(store) is None
    assert not folder.exists()
    assert not leftovers(store)
    put(store)
    assert ask(store) is not None


def test_writing_replaces_a_damaged_result_without_being_asked(store: Store) -> None:
    put(store)
    truncate(store.root / "run" / ADDRESS[:2] / ADDRESS)
    put(store)
    assert store.find(ADDRESS, deep=True)


def test_changed_bytes_of_the_same_size_are_found_by_the_deep_check(store: Store) -> None:
    put(store)
    entry = store.find(ADDRESS)
    assert entry is not None
    assert entry.verify()
    (entry.folder / "scores.bin").write_bytes(b"54321")
    assert not entry.verify()
    assert store.find(ADDRESS) is not None
    assert store.find(ADDRESS, deep=True) is None
    assert store.find(ADDRESS) is None


def test_a_result_that_another_process_has_just_repaired_is_not_cleared_away(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """We see the damage; before we act, another process has replaced the entry by a sound one."""
    put(store)
    folder = store.root / "run" / ADDRESS[:2] / ADDRESS
    read = results._read
    monkeypatch.setattr(results, "_read", lambda f, a: None if f == folder else read(f, a))
    assert store.find(ADDRESS) is None
    monkeypatch.undo()
    assert store.find(ADDRESS, deep=True) is not None
    assert not leftovers(store)


def test_a_result_that_cannot_be_read_now_is_not_cleared_away(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store)

    def fail(*_: object) -> None:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(results, "_read", fail)
    assert store.find(ADDRESS) is None
    with pytest.raises(UserError, match="cannot be read back: remove that folder, or set HEADWORK_STORE"):
        put(store)
    monkeypatch.undo()
    assert store.find(ADDRESS, deep=True) is not None


def test_damage_in_a_store_that_cannot_be_written_is_reported_as_none(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store)
    truncate(store.root / "run" / ADDRESS[:2] / ADDRESS)

    def fail(*_: object) -> None:
        raise OSError(errno.EROFS, "read-only")

    for operation in ("rename", "mkdir", "unlink", "rmdir", "create"):
        monkeypatch.setattr(disk, operation, fail)
    assert store.find(ADDRESS) is None
    with pytest.raises(UserError, match="the file system is read-only"):
        put(store)


def test_a_failing_block_stores_nothing(store: Store) -> None:
    def fill(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), store.write(ADDRESS, kind="run", inputs=INPUTS) as folder:
        fill(folder)
    assert store.entries() == []
    assert not leftovers(store)


@pytest.mark.parametrize("operation", ["create", "write", "fsync", "mkdir", "rename"])
def test_a_full_disk_is_a_plain_error_and_leaves_earlier_results(
    store: Store, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    earlier = put(store, inputs={"seed": 1})

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(disk, operation, fail)
    with pytest.raises(UserError, match=r"^Cannot write .*: the disk is full; free some space"):
        put(store)
    monkeypatch.undo()
    assert [entry.address for entry in store.entries()] == [earlier]
    assert not leftovers(store)
    put(store)
    assert len(store.entries()) == 2


@pytest.mark.parametrize("root", ["file", "file/below"])
def test_a_root_that_cannot_be_is_a_plain_error(tmp_path: Path, root: str) -> None:
    (tmp_path / "file").write_text("the user's")
    store = Store(tmp_path / root)
    assert store.find(ADDRESS) is None
    assert store.entries() == []
    with pytest.raises(UserError, match=r"^Cannot write .*: a part of this path is a file"):
        put(store)


def test_an_address_must_be_that_of_the_inputs(store: Store) -> None:
    with (
        pytest.raises(ValueError, match="is not that of the run and inputs given"),
        store.write(ADDRESS, kind="run", inputs={"seed": 4}),
    ):
        pytest.fail("the block must not run")
    for bad in ("../../etc", ADDRESS[:-1], ADDRESS.upper(), ""):
        with pytest.raises(ValueError, match="is not an address"):
            store.find(bad)


def test_links_and_the_manifests_own_name_are_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot hold 'manifest\.json'"):
        put(store, {"manifest.json": b"{}"})
    (tmp_path / "secret").write_text("x")
    with (
        pytest.raises(ValueError, match="cannot hold 'link'"),
        store.write(ADDRESS, kind="run", inputs=INPUTS) as folder,
    ):
        (folder / "link").symlink_to(tmp_path / "secret")
    assert store.find(ADDRESS) is None


def test_results_are_listed_by_kind_and_removed_one_by_one(store: Store) -> None:
    runs = sorted(put(store, inputs={"seed": seed}) for seed in range(4))
    figure = address("figure", {})
    with store.write(figure, kind="figure", inputs={}):
        pass
    assert [entry.address for entry in store.entries("run")] == runs
    assert [entry.address for entry in store.entries()] == [figure, *runs]
    assert store.entries("other") == []
    assert store.remove(runs[1])
    assert not store.remove(runs[1])
    assert [entry.address for entry in store.entries("run")] == [runs[0], *runs[2:]]
    assert not leftovers(store)


def test_a_result_that_cannot_be_removed_is_a_plain_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store)

    def fail(*_: object) -> None:
        raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr(disk, "rename", fail)
    with pytest.raises(UserError, match="the file system is read-only"):
        store.remove(ADDRESS)
    assert store.find(ADDRESS) is not None


def test_sweeping_takes_the_dead_and_spares_the_living(store: Store) -> None:
    code = (
        "import os, sys; from pathlib import Path; from headwork.store.results import Store\n"
        "from headwork.store.address import address\n"
        "with Store(Path(sys.argv[1])).write(address('run', {}), kind='run', inputs={}) as folder:\n"
        "    (folder / 'half').write_text('half'); os._exit(9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(store.root)], check=False)
    assert done.returncode == 9
    assert len(leftovers(store)) == 1
    with store.write(ADDRESS, kind="run", inputs=INPUTS) as folder:
        assert store.sweep(max_age=0) == 1
        assert leftovers(store) == [folder]
    assert store.find(ADDRESS) is not None


def test_the_root_is_named_by_the_environment_or_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEADWORK_STORE", "here")
    assert Store().root == tmp_path / "here"
    assert Store(tmp_path / "given").root == tmp_path / "given"
    monkeypatch.setenv("HEADWORK_STORE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Store().root.name == "headwork"
    assert Store().root.is_relative_to(tmp_path)


WRITER = """
import sys
from pathlib import Path
from headwork.store.address import address
from headwork.store.results import Store

store, worker = Store(Path(sys.argv[1])), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
for seed in range(12):
    inputs = {"seed": seed}
    key = address("run", inputs)
    with store.write(key, kind="run", inputs=inputs) as folder:
        for name in "ab":
            (folder / name).write_text(worker * 5000)
    entry = store.find(key, deep=True)
    assert entry is not None
    assert (entry.folder / "a").read_text() == (entry.folder / "b").read_text()
    store.sweep()
print("done", flush=True)
"""


def test_processes_that_write_the_same_results_at_once_all_succeed(store: Store) -> None:
    command = [sys.executable, "-c", WRITER, str(store.root)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    workers = [subprocess.Popen([*command, str(worker)], **pipes) for worker in range(5)]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    assert [worker.communicate()[0] for worker in workers] == ["done\n"] * 5
    assert len(store.entries()) == 12
    assert all(entry.verify() for entry in store.entries())
    assert not leftovers(store)
    assert len(os.listdir(store.root)) == 1
