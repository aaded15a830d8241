"""`headwork artifacts`: the networks that their authors published, and fetching them."""

from __future__ import annotations

from typing import Annotated

import typer

from headwork.cli.options import AsJson
from headwork.cli.output import print_json, print_lines, print_table

group = typer.Typer(rich_markup_mode=None, help="List and fetch the networks that their authors published.")


@group.callback(invoke_without_command=True)
def artifacts(context: typer.Context, as_json: AsJson = False) -> None:
    """List the authors' own networks: where they come from, their licence and hash, and whether they are here."""
    if context.invoked_subcommand is not None:
        return
    from headwork.model.catalogue import published

    found = published()
    if as_json:
        print_json({"artifacts": [{"id": m.spec.partition(":")[2], **m.to_dict()} for m in found]})
        return
    print_table(
        ("artefact", "repository on GitHub", "licence", "sha256", "here"),
        [
            (
                m.spec.partition(":")[2],
                m.source.removeprefix("github.com/"),
                m.licence.partition(" (")[0],
                m.sha256[:8],
                "yes" if m.here else "no",
            )
            for m in found
        ],
    )
    print_lines("A network is given as artifact:ID. Fetch one now: headwork artifacts pull ID")


@group.command("pull")
def pull(
    name: Annotated[str, typer.Argument(metavar="ID", help="As `headwork artifacts` lists it.")],
    as_json: AsJson = False,
) -> None:
    """Fetch one network with the files that its authors ship beside it, and check them all."""
    from headwork.model.artifacts import artifact, fetch

    wanted = artifact(name.removeprefix("artifact:"))
    files = [fetch(part).absolute() for part in wanted.parts]
    if as_json:
        print_json({"id": wanted.id, "licence": wanted.licence, "files": [str(file) for file in files]})
        return
    print_lines(*(f"Here and as published: {file}" for file in files))
    print_lines(f"Next: headwork models show artifact:{wanted.id}")
