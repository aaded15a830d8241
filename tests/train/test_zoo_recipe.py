"""The default network, trained again from its recipe: the same verdict as the one in the package."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.long
def test_a_retrained_default_network_gets_the_same_verdict(tmp_path: Path) -> None:
    def headwork(*arguments: str) -> dict:
        command = [sys.executable, "-m", "headwork", *arguments, "--json"]
        return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout)

    trained = headwork("train", "attn-only-2l", "--seed", "17")
    ours = headwork("reproduce", "induction-heads", "--model", trained["folder"], "--seeds", "1", "--out", "ours")
    packaged = headwork("reproduce", "induction-heads", "--seeds", "1", "--out", "packaged")
    assert ours["verdict"] == packaged["verdict"] == "reproduced"
    assert all(control["as_expected"] for control in [*ours["controls"], *packaged["controls"]])
    assert Path(ours["report"]).read_bytes().startswith(b"%PDF")
