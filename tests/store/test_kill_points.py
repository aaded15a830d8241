"""Killed at any write, fsync, rename or removal, the store and the published folder show nothing half-written."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from headwork.store import disk
from headwork.store.results import Store
from headwork.store.temporary import PREFIX

PROGRAM = Path(__file__).with_name("kill_points.py")
_spec = importlib.util.spec_from_file_location("kill_points", PROGRAM)
assert _spec is not None
assert _spec.loader is not None
kill_points = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(kill_points)


def check_store(place: Path, versions: set[int]) -> set[int]:
    """The versions that the store holds, each of them whole; those that must be there are."""
    store = Store(place / "store")
    held = {version for version in (1, 2) if store.find(kill_points.key(version), deep=True)}
    assert held >= versions
    entries = store.entries()
    assert {entry.address for entry in entries} == {kill_points.key(version) for version in held}
    for entry in entries:
        for name in kill_points.NAMES:
            assert (entry.folder / name).read_text() == kill_points.text(name, entry.manifest["inputs"]["version"])
    return held


def check_out(out: Path) -> int | None:
    """The version that the record in ``out`` names, all of it there; None where there is no record."""
    whole = {name: {kill_points.text(name, version) for version in (1, 2)} for name in kill_points.NAMES}
    whole |= {"record.json": {kill_points.record(1), kill_points.record(2)}, "figures/mine.svg": {"mine"}}
    seen = {p.relative_to(out).as_posix(): p.read_text() for p in out.rglob("*") if p.is_file() and not is_ours(p)}
    for name, content in seen.items():
        assert content in whole[name], f"{name} is half-written"
    if "record.json" not in seen:
        return None
    assert {name: seen[name] for name in kill_points.NAMES} == json.loads(seen["record.json"])
    return 1 if seen["record.json"] == kill_points.record(1) else 2


def is_ours(path: Path) -> bool:
    return path.name.startswith(PREFIX)


@pytest.mark.parametrize("start, earlier", [("fresh", set()), ("again", {1})])
def test_killed_at_every_change_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str, earlier: set[int]
) -> None:
    monkeypatch.setattr(disk, "fsync", kill_points.skip_fsync)
    done = subprocess.run([sys.executable, PROGRAM, tmp_path, start], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *killed, last = done.stdout.split()
    assert last == "finished"
    assert len(killed) >= 25
    assert {"create", "write", "fsync", "rename", "mkdir"} <= set(killed)
    if earlier:
        assert {"unlink", "rmdir"} <= set(killed)

    outcomes = set()
    for nth in range(len(killed) + 1):
        place = tmp_path / str(nth)
        held = check_store(place, earlier)
        published = check_out(place / "out")
        outcomes.add((2 in held, published))
        assert published in (None, *held)

        kill_points.work(place, 2)
        assert check_store(place, earlier | {2}) == earlier | {2}
        assert check_out(place / "out") == 2
        assert (place / "out" / "figures" / "mine.svg").exists() == bool(earlier)
        Store(place / "store").sweep()
        assert not [path for path in place.rglob("*") if is_ours(path)]
    before = 1 if earlier else None
    assert outcomes == {(False, before), (True, before), (True, None), (True, 2)}
