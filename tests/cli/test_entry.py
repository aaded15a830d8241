"""The entry point: quick help, versions, and how every kind of ending becomes an exit code."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.architectures import network
from tests.cli.conftest import Cli

import headwork
from headwork.cli import main
from headwork.errors import UserError
from headwork.model.card import ModelCard
from headwork.model.checkpoints import save

SPY = """
import json, sys
from headwork.cli import main
code = main(sys.argv[1:])
json.dump([code, sorted(sys.modules)], sys.stderr)
"""
HEAVY = {"torch", "numpy", "scipy", "xarray", "matplotlib", "pydantic", "rich", "safetensors", "huggingface_hub"}


def imported(*arguments: str) -> set[str]:
    """What is imported by the time a command has been carried out."""
    done = subprocess.run([sys.executable, "-c", SPY, *arguments], capture_output=True, text=True, check=True)
    code, modules = json.loads(done.stderr)
    assert code == 0
    assert done.stdout
    return set(modules)


@pytest.mark.parametrize("arguments", [["--help"], []])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    assert not HEAVY & imported(*arguments)


@pytest.mark.parametrize("arguments", [["--version"], ["reproduce", "--help"], ["models", "import", "--help"]])
def test_help_on_a_command_imports_no_more_than_reading_arguments_takes(arguments: list[str]) -> None:
    assert not (HEAVY - {"pydantic"}) & imported(*arguments)  # Typer reads arguments with it


@pytest.mark.parametrize("arguments", [["findings"], ["findings", "show", "induction-heads"], ["models"]])
def test_lists_import_no_torch(arguments: list[str]) -> None:
    assert not {"torch", "scipy", "xarray", "matplotlib"} & imported(*arguments)


def test_the_version_is_the_package_s(cli: Cli) -> None:
    assert cli("--version").out == f"headwork {headwork.__version__}\n"


def test_the_module_runs_as_the_command_does() -> None:
    done = subprocess.run([sys.executable, "-m", "headwork", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"headwork {headwork.__version__}\n"


def test_every_command_explains_itself(cli: Cli) -> None:
    for command in ("reproduce", "findings", "models", "sites", "train"):
        assert command in cli("--help").out
        assert f"Usage: headwork {command}" in cli(command, "--help").out


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["reprodce", "x"], "reproduce"),
        (["models", "shw", "x"], "show"),
        (["train", "--sed", "1"], "--seed"),
        (["train", "--seed", "one"], "--seed"),
        (["reproduce"], "FINDING"),
        (["models", "import", "x"], "--layout"),
    ],
)
def test_wrong_arguments_are_one_sentence_naming_what_was_meant(refused: Cli, arguments: list[str], named: str) -> None:
    said = refused(*arguments).err
    assert named in said
    assert "--help`" in said


def _raise(error: BaseException) -> Callable[..., None]:
    def command(*_: object, **__: object) -> None:
        raise error

    return command


@pytest.mark.parametrize(
    "error, code, said",
    [
        (UserError("Give another name."), 2, "Give another name."),
        (KeyboardInterrupt(), 130, "the same command goes on"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, ""),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "disk is full"),
        (MemoryError(), 2, "not enough memory"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
            2,
            "fewer prompts",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "results/report.pdf"), 2, "results/report.pdf"),
    ],
)
def test_endings_become_exit_codes(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str
) -> None:
    monkeypatch.setattr("headwork.findings.registry.findings", _raise(error))
    result = cli("findings")
    assert result.code == code
    assert not result.out
    assert said in result.err
    assert len(result.err.splitlines()) == bool(said)


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headwork.findings.registry.findings", _raise(ZeroDivisionError("a defect")))
    with pytest.raises(ZeroDivisionError):
        main(["findings"])


def test_a_reader_that_leaves_early_is_no_error() -> None:
    command = f"{sys.executable} -m headwork findings show induction-heads | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert not done.stderr
    assert done.stdout.strip() in ("0", "141")  # 0 where it was done before the reader left


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_under_stdout_is_one_sentence() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "headwork", "findings"], stdout=full, stderr=-1, text=True)
    assert done.returncode == 2
    assert done.stderr == "Cannot write the output: the disk is full; free some space or choose another folder.\n"


def test_tables_survive_a_terminal_without_unicode(tmp_path: Path) -> None:
    folder = save(network("one-layer").float(), tmp_path / "m", ModelCard(name="m"))
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-m", "headwork", "sites", str(folder)], capture_output=True, env=environment, check=True
    )
    assert b"resid_post" in done.stdout
