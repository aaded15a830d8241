"""The zoo and the finding of `fake`, in the place of the package's."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.studies import fake
from tests.studies.fake_finding import measure

from headwork.findings import registry
from headwork.findings.registry import Finding
from headwork.model import sources


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny networks, made once."""
    folder = tmp_path_factory.mktemp("networks") / "zoo"
    fake.fill(folder)
    return folder


@pytest.fixture
def zoo(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of tiny networks that stands for the zoo."""
    folder = tmp_path / "zoo"
    shutil.copytree(filled, folder)
    monkeypatch.setattr(sources, "ZOO", folder)
    return folder


@pytest.fixture
def finding(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> Finding:
    """The made-up finding, registered, with nothing measured yet."""
    monkeypatch.setitem(registry.FINDINGS, fake.FINDING.id, fake.FINDING)
    monkeypatch.setattr(measure, "measured", [])
    return fake.FINDING
