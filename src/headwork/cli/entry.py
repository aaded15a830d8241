"""The entry point: runs one command and turns how it ended into an exit code and at most one line on stderr."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from headwork.errors import UserError

DONE, FAILED, USER_ERROR, INTERRUPTED, PIPE_CLOSED = 0, 1, 2, 130, 141
_ABOUT_OUTPUT = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "ENOTDIR", "EISDIR", "ENAMETOOLONG", "EIO")
    if hasattr(errno, name)
}
_STOPPED = "Stopped. Nothing is half-written; the same command goes on from what is finished."

_NO_MEMORY = (
    "There is not enough memory for this; take fewer prompts or a smaller network, or set a limit with --memory where "
    "the command has it."
)


class Failed(Exception):
    """A run that was asked for came to no result; the message is one sentence, the exit code 1."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command in `arguments` (default: those of the process) and return its exit code.

    0 for every verdict reached, 1 where a run or check failed, 2 for a user's error, 130 for Ctrl-C, 141 where the
    reader of a pipe has left. A defect of Headwork's own ends with its traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # a stream of a test or a notebook
            stream.reconfigure(errors="replace")  # type: ignore[union-attr] – a terminal without ✓ shows ? instead
    try:
        return _run(arguments)
    except UserError as error:
        return _say(str(error), USER_ERROR)
    except Failed as error:
        return _say(str(error), FAILED)
    except KeyboardInterrupt:
        return _say(_STOPPED, INTERRUPTED)
    except BrokenPipeError:
        _drop_stdout()
        return PIPE_CLOSED
    except OSError as error:
        if error.errno not in _ABOUT_OUTPUT:
            raise
        _drop_stdout()
        return _say(_cannot_write(error), USER_ERROR)
    except Exception as error:
        if _out_of_memory(error):
            return _say(_NO_MEMORY, USER_ERROR)
        if not hasattr(error, "format_message"):  # how Typer marks what is wrong with the arguments, in all versions
            raise
        return _say(_usage(error), USER_ERROR)


def _run(arguments: Sequence[str] | None) -> int:
    from headwork.cli.app import app

    given = sys.argv[1:] if arguments is None else list(arguments)
    streams = sys.stdout, sys.stderr
    try:
        code = app(args=given or ["--help"], prog_name="headwork", standalone_mode=False)
    except SystemExit as error:  # Typer's answer to a closed pipe, with streams of its own
        sys.stdout, sys.stderr = streams
        raise error.__context__ or error from None
    sys.stdout.flush()
    if code == INTERRUPTED:  # Typer's answer to Ctrl-C
        raise KeyboardInterrupt
    return code if isinstance(code, int) else DONE


def _say(sentence: str, code: int) -> int:
    with suppress(OSError):
        print(sentence, file=sys.stderr, flush=True)  # noqa: T201 – the one line that tells the user
    return code


def _usage(error: Exception) -> str:
    """Typer's message as one sentence, with the command whose help says more."""
    said = str(error.format_message()).strip().rstrip(".")  # type: ignore[attr-defined]
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "headwork"
    return f"{said}{'' if said.endswith(('?', ')')) else '.'} See `{command} --help`."


def _out_of_memory(error: Exception) -> bool:
    """Whether Python or PyTorch, on any device, found no memory; PyTorch is not imported to ask."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or (isinstance(error, RuntimeError) and "allocate memory" in str(error))


def _cannot_write(error: OSError) -> str:
    from headwork.store.atomic import cannot_write

    return str(cannot_write(Path(os.fsdecode(error.filename)) if error.filename else Path("the output"), error))


def _drop_stdout() -> None:
    """Send what is still buffered nowhere, so that Python does not complain about it on the way out."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
