"""From a recipe to a finished model folder, through whatever kills the process on the way."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from headwork.errors import UserError
from headwork.model.card import ModelCard
from headwork.model.files import sha256_of
from headwork.model.folder import CONFIG, WEIGHTS, read_record
from headwork.model.sources import check_device
from headwork.store.atomic import make_folders, plain_errors, sweep_folder
from headwork.train.finish import card_name, model_folder
from headwork.train.loop import Diverged, train
from headwork.train.recipe import Recipe
from headwork.train.settings import with_defaults


@dataclass(frozen=True)
class Produced:
    """A finished network: its folder (absolute), its card, and whether it was trained now."""

    folder: Path
    card: ModelCard
    trained: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"folder": str(self.folder), "trained": self.trained, **self.card.to_dict()}


def default_folder(recipe: Recipe, seed: int) -> Path:
    """Where a network goes unless the user says otherwise."""
    return Path("headwork-models") / card_name(recipe, seed)


def produce(
    recipe: Recipe,
    seed: int,
    out: Path,
    device: str = "cpu",
    progress: Callable[[int, float], None] | None = None,
) -> Produced:
    """Train a network and write its model folder `out`; a folder that already has this very network is left alone.

    Checkpoints lie in `OUT.training` beside it until the folder is complete: after a kill the same call continues.
    `progress` is called with the step and the loss. Raises `Diverged`, and `UserError` for an unknown device, a seed
    that cannot be used, or an `out` that holds something else or cannot be written.
    """
    out = out.expanduser().absolute()
    recipe.check_seed(seed)
    check_device(device)
    if (card := _finished(out, recipe, seed)) is not None:
        return Produced(out, card, trained=False)
    workplace = out.with_name(f"{out.name}.training")
    checkpoint = workplace / f"{recipe.name}-seed-{seed}.safetensors"
    with plain_errors(out):  # before the work, not after it
        make_folders(workplace)
    sweep_folder(workplace)
    try:
        with _one_thread():
            state = train(recipe, seed, device=device, checkpoint=checkpoint, progress=progress)
            folder = model_folder(state, out)
        checkpoint.unlink(missing_ok=True)
    except Diverged:
        checkpoint.unlink(missing_ok=True)  # it leads to the same step again
        raise
    finally:
        with suppress(OSError):  # it holds a checkpoint
            workplace.rmdir()
    return Produced(folder, read_record(folder).card, trained=True)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums then do not depend on the number of threads; and two that wait for each other at every small step can take
    ten times as long as one, where something else runs on the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _finished(out: Path, recipe: Recipe, seed: int) -> ModelCard | None:
    """The card of the network in `out` if it is this one; None where there is nothing; `UserError` for all else."""
    if out.is_file():
        raise UserError(f"{out} is a file; choose another folder.")
    if not out.is_dir() or not any(out.iterdir()):
        return None
    if not (out / CONFIG).is_file() or not (out / WEIGHTS).is_file():
        raise UserError(f"{out} already holds something else; choose another folder or remove it.")
    record = read_record(out)
    found = record.card.training
    wanted = {"recipe": recipe.name, "seed": seed, "settings": json.loads(json.dumps(recipe.settings()))}
    stated = found.get("settings")
    completed = {**found, "settings": with_defaults(stated) if isinstance(stated, dict) else None}
    if {key: completed.get(key) for key in wanted} != wanted:
        raise UserError(
            f"{out} already holds {record.name}, which is not {recipe.name} with seed {seed} as this version trains "
            "it; choose another folder or remove it."
        )
    if sha256_of(out / WEIGHTS) != record.weights_sha256:
        raise UserError(f"{out} holds damaged weights: their sha256 is not the recorded one; remove the folder.")
    return record.card
