"""What every test shares: shapes are checked while it runs, and nothing is written to the user's store."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import jaxtyping
import pytest
from tests import typecheck

_CHECKED = ("headwork.model", "headwork.engine")

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
