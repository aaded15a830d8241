"""The command line: one file per command group; a command parses, calls one library function, and prints."""

from __future__ import annotations

from headwork.cli.entry import main as main
