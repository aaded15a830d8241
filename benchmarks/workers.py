"""The other end: starting a side's worker and asking it for work."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 1200.0  # seconds that one piece of work may take


class WorkerError(Exception):
    """A side that cannot be measured, and why, in words that go into the table."""


class Worker:
    """A process of one side that holds one network; closed on leaving the `with` block."""

    def __init__(self, side: str, network: Path, threads: int, device: str, log: Path) -> None:
        python, module = _python(side)
        if not python.exists():
            raise WorkerError("not installed")
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        environment |= {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        command = [str(python), "-m", module, "--network", str(network.resolve()), "--threads", str(threads)]
        self._log = log.open("a")
        self._process = subprocess.Popen(
            [*command, "--device", device],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        try:
            self.versions: dict[str, str] = self._answer(LONGEST)["versions"]
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def ask(self, **request: Any) -> dict[str, Any]:
        """Do a piece of work; `WorkerError` if it fails."""
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
        except OSError:
            raise WorkerError("the process had ended") from None
        found = self._answer(LONGEST)
        if "failed" in found:
            raise WorkerError(found["failed"])
        return found

    def _answer(self, within: float) -> dict[str, Any]:
        out = self._process.stdout
        if out is None or not select.select([out], [], [], within)[0]:
            raise WorkerError(f"no answer within {within:.0f} s")
        line = out.readline()
        if not line:
            raise WorkerError("the process ended; its log says why")
        return json.loads(line)

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._log.close()


def _python(side: str) -> tuple[Path, str]:
    if side in ("headwork", "plain"):
        return Path(sys.executable), "benchmarks.ours"
    return ROOT / ".venv-peers" / side / "bin" / "python", f"benchmarks.peers.{side}"
