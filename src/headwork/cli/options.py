"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Device = Annotated[str, typer.Option(metavar="cpu|cuda", help="Where to compute.")]
Spec = Annotated[
    str, typer.Argument(metavar="SPEC", help="zoo:NAME, hf:ORG/NAME, artifact:NAME or the path of a model folder.")
]
