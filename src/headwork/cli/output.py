"""What commands print: one JSON object, or tables and lines for people. Rich is imported when something is printed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_WIDTH_IN_FILES = 120
_RIGHT = ">"


def print_json(values: Mapping[str, Any] | Sequence[Any]) -> None:
    """One JSON document on stdout, in ASCII, so that it survives every pipe."""
    sys.stdout.write(json.dumps(values, indent=2, allow_nan=False) + "\n")


def console() -> Console:
    """Where people read: stdout, as wide as the terminal, 120 columns in a file or pipe."""
    from rich.console import Console

    fixed = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _WIDTH_IN_FILES
    return Console(width=fixed, highlight=False, soft_wrap=False, markup=False, emoji=False)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> None:
    """A table; a column name that starts with `>` is aligned to the right, None is an empty cell."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
    for name in columns:
        right = name.startswith(_RIGHT)
        table.add_column(name.removeprefix(_RIGHT), justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    console().print(table)


def print_lines(*lines: str) -> None:
    """Lines as they are, wrapped by the terminal and not by us, so that a path or a command can be copied."""
    console().print("\n".join(lines), soft_wrap=True)


def print_facts(facts: Mapping[str, object]) -> None:
    """Names and values, one a line; empty values are left out."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if value not in (None, False, "", (), []):
            table.add_row(Text(name), Text(str(value)))
    console().print(table)
