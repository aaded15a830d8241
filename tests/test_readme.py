"""The README and docs say what is so: their Python runs, their commands and names exist, their links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

import headwork
from headwork.cli.app import app
from headwork.findings.registry import findings
from headwork.model.artifacts import artifacts
from headwork.model.sources import zoo_names
from headwork.train.recipes import RECIPES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
_PATHS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
PAGES = {path.relative_to(ROOT).as_posix(): path for path in _PATHS}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands(program: str) -> list[list[str]]:
    lines = [shlex.split(line) for block in blocks("sh") for line in block.splitlines()]
    return [words for words in lines if words[0] == program]


def test_the_python_example_runs_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example, _ = blocks("python")
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)  # noqa: S102 – our own README
    silenced, model = names["losses"], names["model"]
    assert silenced.shape == (8,)  # type: ignore[attr-defined]
    loss = headwork.Loss(names["batch"].targets, names["batch"].predictable)  # type: ignore[attr-defined]
    whole = headwork.sweep(model, headwork.trace(model, names["batch"].tokens), [[]], loss).mean()  # type: ignore
    assert silenced.max() > whole + 0.5  # type: ignore[attr-defined] – some head matters
    assert (tmp_path / "loss-without-each-head.svg").read_text().startswith("<?xml")


def test_the_toolbox_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    _, example = blocks("python")
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)  # noqa: S102 – our own README
    assert "layer" in capsys.readouterr().out
    assert names["effects"]["normalised"].sizes == {"layer": 2, "head": 4}  # type: ignore[index]


@pytest.mark.parametrize("words", commands("headwork"), ids=" ".join)
def test_commands_and_their_options_exist(words: list[str]) -> None:
    command, given = get_command(app), words[1:]
    while given and given[0] in (known := getattr(command, "commands", {})):
        command, given = known[given[0]], given[1:]
    assert command.callback is not None
    command.make_context(words[0], list(given))


@pytest.mark.parametrize("words", commands("make"), ids=" ".join)
def test_make_targets_exist(words: list[str]) -> None:
    assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_models_findings_and_recipes_exist() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in PAGES.values())
    named = re.findall(r"\b(zoo|artifact):([a-z0-9][\w-]*)", text)
    assert named
    for kind, name in named:
        assert name in (zoo_names() if kind == "zoo" else artifacts())
    assert {words[2] for words in commands("headwork") if words[1] == "train"} <= set(RECIPES)
    assert {words[2] for words in commands("headwork") if words[1] == "reproduce"} <= set(findings())


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_are_there(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)", PAGES[page].read_text(encoding="utf-8")):
        assert "://" in target or (PAGES[page].parent / target).is_file(), target


@pytest.mark.parametrize("page", PAGES)
def test_python_names_exist(page: str) -> None:
    names = set(re.findall(r"\bhw\.(\w+)", PAGES[page].read_text(encoding="utf-8")))
    assert names <= set(dir(headwork))
    assert all(hasattr(headwork, name) for name in names)
