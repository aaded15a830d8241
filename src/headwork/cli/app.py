"""All commands together. Nothing heavy is imported here: `headwork --help` must answer at once."""

from __future__ import annotations

import typer

import headwork
from headwork.cli import artifacts, circuit, findings, lens, models, patch, reproduce, sites, tasks, train
from headwork.cli.entry import DONE

# Plain help: the coloured one would import all of rich before the first line.
app = typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)
app.command("reproduce")(reproduce.reproduce)
app.add_typer(findings.group, name="findings")
app.add_typer(models.group, name="models")
app.add_typer(artifacts.group, name="artifacts")
app.command("patch")(patch.patch)
app.command("lens")(lens.lens)
app.command("circuit")(circuit.circuit)
app.command("tasks")(tasks.tasks)
app.command("sites")(sites.sites)
app.command("train")(train.train)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"headwork {headwork.__version__}")
        raise typer.Exit(DONE)


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """From a published claim about small networks to a reproduction that others can check.

    Start with: headwork reproduce induction-heads
    """
