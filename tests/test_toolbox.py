"""The page on patching, lenses and circuits says what is so: its commands and its Python run."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from headwork.cli import main
from headwork.tasks.registry import tasks

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "toolbox.md").read_text(encoding="utf-8")
COMMANDS = (DOCS / "commands.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    lines = [shlex.split(line) for block in blocks("sh") for line in block.splitlines()]
    assert all(words[0] == "headwork" for words in lines)
    return [words[1:] for words in lines]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_its_commands_run(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    few = [] if {"--prompts", "--clean"} & set(words) else ["--prompts", "4"]
    assert main([*words, *few]) == 0
    assert "Next: headwork " in capsys.readouterr().out
    summary = json.loads((tmp_path / "headwork-out" / f"{words[0]}-attn-only-2l" / "summary.json").read_text())
    described = set(re.findall(r"`(\w+)`", COMMANDS))
    listed = [value[0] for value in summary.values() if isinstance(value, list) and isinstance(value[0], dict)]
    nested = [summary[key] for key in ("measured", "circuit", "discovery", "prompts") if summary.get(key)]
    assert {key for found in (summary, *listed, *nested) for key in found} <= described


def test_its_python_runs() -> None:
    (example,) = blocks("python")
    names: dict[str, object] = {}
    exec(compile(example, "toolbox.md", "exec"), names)  # noqa: S102 – our own page
    assert 0 <= names["best"] < 4  # type: ignore[operator]
    assert names["kept"] > 0.7  # type: ignore[operator]
    assert names["by_layer"][-1] < 1e-5  # type: ignore[index]


def test_its_tasks_are_all_tasks() -> None:
    for task in tasks().values():
        (row,) = re.findall(rf"^\| `{task.id}` \|.*$", PAGE, re.MULTILINE)
        assert all(f"`{name}`" in row for name in task.counterfactuals)
    assert len(re.findall(r"^\| `[a-z-]+` \|", PAGE, re.MULTILINE)) == len(tasks())
