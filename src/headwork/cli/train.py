"""`headwork train RECIPE`: train one of the zoo's networks again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headwork.cli.entry import Failed
from headwork.cli.options import AsJson, Device
from headwork.cli.output import print_facts, print_json, print_lines, print_table
from headwork.cli.progress import progress


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A name of `headwork train --list`.")] = "",
    seed: Annotated[int, typer.Option(metavar="N", help="Decides initial weights and data.")] = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The model folder to write.", show_default="headwork-models/NAME")
    ] = None,
    device: Device = "cpu",
    list_recipes: Annotated[bool, typer.Option("--list", help="List the recipes.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a network from a recipe.

    A training that was stopped goes on from its last checkpoint when the same command is given again.
    """
    from headwork.train.loop import Diverged
    from headwork.train.produce import default_folder, produce
    from headwork.train.recipes import RECIPES
    from headwork.train.recipes import recipe as named

    if list_recipes:
        _list([(r.name, r.steps, r.description) for r in RECIPES.values()], as_json)
        return
    chosen = named(recipe)
    with progress(as_json) as report:
        try:
            done = produce(
                chosen,
                seed,
                out or default_folder(chosen, seed),
                device,
                lambda step, loss: report(f"training {chosen.name}", step / chosen.steps, f"loss {loss:.2f}"),
            )
        except Diverged as error:
            raise Failed(f"Training {chosen.name} with seed {seed} diverged: {error}") from None
    if as_json:
        print_json(done.to_dict())
        return
    training = done.card.training
    print_facts(
        {
            "model": done.folder,
            "status": "trained" if done.trained else "already there, trained from the same recipe and seed",
            "steps": training["steps"],
            "loss": f"{training['loss']} nats per token on fresh sequences",
            "inside repeats": f"{training['loss_inside']}; {training['accuracy_inside']:.1%} predicted",
            "outside": training["loss_outside"],
            "sha256": done.card.sha256,
        }
    )
    print_lines("", f"Next: headwork reproduce induction-heads --model {done.folder}")


def _list(recipes: list[tuple[str, int, str]], as_json: bool) -> None:
    if as_json:
        print_json({"recipes": [{"name": n, "steps": s, "description": d} for n, s, d in recipes]})
        return
    print_table(("recipe", ">steps", "description"), recipes)
    print_lines("Train one: headwork train RECIPE")
