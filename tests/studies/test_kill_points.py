"""Killed at any write, fsync, rename or removal, a reproduction leaves nothing half-written, and the next continues."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

FILES = ["figures/effect.svg", "record.json", "report.html", "report.pdf", "results.h5"]


def test_killed_at_every_change_of_the_disk(zoo: Path, tmp_path: Path) -> None:
    places = tmp_path / "places"
    places.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "tests.studies.kill_points", zoo, places],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    seen = [json.loads(line) for line in done.stdout.splitlines()]
    *killed, last = [one["killed"] for one in seen]
    assert len(killed) > 60
    assert last is None
    assert {"create", "write", "fsync", "rename", "mkdir", "write_text", "write_bytes"} <= set(killed)
    finished = seen[-1]["next"]
    assert finished["from_store"]
    assert seen[-1]["published"] == FILES
    for one in seen:
        after = one["next"]
        assert one["whole"]
        stored = one["stored"].count("run")
        assert "reproduction" not in one["stored"] or stored == 2
        # The record is published last: where it is, all that it names is there.
        assert "record.json" not in one["published"] or one["published"] == FILES
        assert len(after["measured"]) == 2 - stored
        assert after["from_store"] == ("reproduction" in one["stored"])
        assert without_seconds(after["record"]) == without_seconds(finished["record"])
        assert after["published"] == FILES
        assert not after["unfinished"]
    assert {tuple(sorted(set(one["stored"]))) for one in seen} == {(), ("run",), ("reproduction", "run")}


def without_seconds(value: object) -> object:
    if isinstance(value, dict):
        return {key: without_seconds(item) for key, item in value.items() if key != "seconds"}
    return [without_seconds(item) for item in value] if isinstance(value, list) else value
