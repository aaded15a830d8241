"""A finding knows no network by name: which ones it runs on stands in one table beside the findings."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

import headwork.findings
from headwork.errors import UserError
from headwork.findings.registry import finding, findings
from headwork.methods.ablation import VALUES
from headwork.model.artifacts import artifacts
from headwork.model.sources import locate, zoo_names

FOLDER = Path(headwork.findings.__file__).parent
SOURCES = sorted(path for path in FOLDER.rglob("*") if path.suffix in (".py", ".md") and path.name != "registry.py")


def test_there_are_sources_and_names_to_look_for() -> None:
    assert {"measure.py", "card.py", "notes.md"} <= {path.name for path in SOURCES}
    assert len(zoo_names()) >= 21
    assert len(artifacts()) >= 4


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_no_source_of_a_finding_names_a_network(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for name in [*zoo_names(), *artifacts(), "zoo:", "artifact:", "hf:"]:
        assert name not in text


@pytest.mark.parametrize("id", sorted(findings()))
def test_the_table_is_whole(id: str) -> None:
    found = finding(id)
    assert found.id == found.card.id == id
    assert callable(importlib.import_module(f"{found.module}.measure").measure)
    assert callable(importlib.import_module(f"{found.module}.figures").figures)
    assert locate(found.model).kind == "zoo"
    assert all(locate(spec).kind == "zoo" for spec in found.controls.values())
    assert found.settings["ablation"] in VALUES
    ids = [claim.id for claim in found.card.subclaims]
    assert len(set(ids)) == len(ids)
    assert found.card.central
    assert found.grid is None or found.grid.claim in ids


def test_an_unknown_finding_names_the_nearest() -> None:
    with pytest.raises(UserError, match="Unknown finding 'induction-head': the nearest valid one is induction-heads"):
        finding("induction-head")
