"""What every test shares: shapes are checked while it runs, and nothing is written to the user's store."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import jaxtyping
import pytest
from tests import typecheck

_CHECKED = tuple(f"headwork.{name}" for name in ("model", "engine", "tasks", "train", "methods", "findings"))

# Before any of these modules is imported: each of their functions then checks its tensors' shapes, as annotated.
assert not [name for name in sys.modules if name.startswith(_CHECKED)], "imported too early to be checked"
_HOOK = jaxtyping.install_import_hook(list(_CHECKED), f"{typecheck.__name__}.check")

import torch  # noqa: E402 – after the hook, like everything that could import the package

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _store(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results go to a folder of the test's own."""
    monkeypatch.setenv("HEADWORK_STORE", str(tmp_path_factory.mktemp("store")))


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Types are not checked in this test, so that wrong ones meet the package's own errors, as a user's would."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def artifacts() -> Path:
    """The folder of the authors' networks; the test is skipped where there is none."""
    folder = os.environ.get("HEADWORK_ARTIFACTS")
    if not folder:
        pytest.skip("needs the authors' networks: set HEADWORK_ARTIFACTS to their folder")
    return Path(folder)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A test that skips although the authors' networks are here is a failure."""
    if os.environ.get("HEADWORK_ARTIFACTS") and _of_artifacts(session.config)[1] and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    ran, skipped = _of_artifacts(terminalreporter.config)
    here = os.environ.get("HEADWORK_ARTIFACTS")
    why = f", although HEADWORK_ARTIFACTS is {here}" if here and skipped else ""
    terminalreporter.write_line(f"artifact tests: {ran} ran, {skipped} skipped{why}")


def _of_artifacts(config: pytest.Config) -> tuple[int, int]:
    """How many tests marked `artifacts` ran, and how many were skipped."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if not isinstance(reporter, pytest.TerminalReporter):
        return 0, 0
    count = {
        outcome: sum("artifacts" in getattr(report, "keywords", ()) for report in reporter.stats.get(outcome, ()))
        for outcome in ("passed", "failed", "error", "skipped")
    }
    return count["passed"] + count["failed"] + count["error"], count["skipped"]
