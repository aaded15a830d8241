"""`headwork models`: the networks there are, what is known about one, and importing others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwork.cli.options import AsJson, Spec
from headwork.cli.output import print_facts, print_json, print_lines, print_table
from headwork.model.layouts import LAYOUTS

if TYPE_CHECKING:
    from headwork.model.catalogue import Description

group = typer.Typer(rich_markup_mode=None, help="List, show and import networks.")
_TRAINING = ("recipe", "seed", "steps", "tokens", "loss", "loss_inside", "loss_outside", "accuracy_inside")


@group.callback(invoke_without_command=True)
def models(context: typer.Context, as_json: AsJson = False) -> None:
    """List the networks inside the package, and those that their authors published."""
    if context.invoked_subcommand is not None:
        return
    from headwork.model.catalogue import published, zoo

    inside, elsewhere = zoo(), published()
    if as_json:
        print_json({"zoo": [m.to_dict() for m in inside], "artifacts": [m.to_dict() for m in elsewhere]})
        return
    print_table(
        ("model", ">layers", "positions", ">parameters", ">seed", ">loss", ">size"),
        [
            (m.spec, m.layers, m.positions, f"{m.parameters:,}", m.seed, _loss(m.loss), f"{m.bytes / 1e3:,.0f} kB")
            for m in inside
        ],
        "Inside the package (loss: nats per token on fresh sequences)",
    )
    print_table(
        ("model", "source", "licence", "here"),
        [(m.spec, m.source, m.licence, "yes" if m.here else "no") for m in elsewhere],
        "Published by their authors (fetched when first used, unless here)",
    )
    print_lines("Also: hf:ORG/NAME, or the path of a model folder. More on one: headwork models show SPEC")


@group.command("show")
def show(spec: Spec, as_json: AsJson = False) -> None:
    """Show what is known about one network.

    Its architecture, where it comes from, how and on what it was trained, and what an importer had to assume.
    """
    from headwork.model.catalogue import describe

    found = describe(spec)
    if as_json:
        print_json(found.to_dict())
        return
    card = found.card
    print_facts(
        {
            "model": found.spec,
            "description": card.description,
            "architecture": _architecture(found),
            "parameters": None if found.parameters is None else f"{found.parameters:,}",
            "sites": found.sites,
            "trained": _pairs({key: card.training[key] for key in _TRAINING if key in card.training}),
            "data": _pairs(card.data or {}),
            "inferred": "\n".join(card.inferred),
            "source": card.source,
            "licence": card.licence,
            "sha256": card.sha256,
        }
    )
    print_lines("", f"Next: headwork sites {spec}")


@group.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The checkpoint, or a folder of the hub.")],
    layout: Annotated[str, typer.Option(metavar="LAYOUT", help=f"How its tensors are named: {', '.join(LAYOUTS)}.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The model folder to write.")],
    config: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Settings the file does not state.")] = None,
    data: Annotated[Path | None, typer.Option(metavar="FILE.json", help="The training distribution.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(metavar="FILE", help="Its tokenizer, if not in FILE.")] = None,
    as_json: AsJson = False,
) -> None:
    """Turn somebody's checkpoint into a model folder."""
    from headwork.model.importing import import_checkpoint

    folder = import_checkpoint(file, layout, out, config, data, tokenizer).absolute()
    from headwork.model.folder import read_card

    card = read_card(folder)
    if as_json:
        print_json({"folder": str(folder), "sha256": card.sha256, "inferred": list(card.inferred)})
        return
    print_lines(f"Wrote {folder}, sha256 {card.sha256}.")
    if card.inferred:
        print_lines("The file does not say these; --config FILE.json can:", *(f"  {line}" for line in card.inferred))
    print_lines(f"Next: headwork models show {folder}")


def _architecture(found: Description) -> str:
    if found.architecture is not None:
        return _pairs(found.architecture.to_dict())
    if found.other_sites:
        return f"no transformer; its sites are {', '.join(found.other_sites)}"
    return "known once it is fetched"


def _loss(loss: float | None) -> str:
    return "" if loss is None else f"{loss:.3f}"


def _pairs(values: dict[str, Any] | Any) -> str:
    return ", ".join(f"{name} {_plain(value)}" for name, value in values.items())


def _plain(value: Any) -> str:
    return "–".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
