"""From a finished training run to a model folder: what is measured on fresh sequences, and the card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from headwork.engine.run import run
from headwork.model.card import ModelCard
from headwork.model.checkpoints import save
from headwork.train.loop import Training
from headwork.train.recipe import Recipe, derived_seed

_FRESH_SEQUENCES = 512


def model_folder(state: Training, folder: Path) -> Path:
    """Write the trained network with its card to `folder`; raises `UserError` where that cannot be done."""
    return save(state.model, folder, card(state))


def card_name(recipe: Recipe, seed: int) -> str:
    """What the network of a recipe and seed is called; the first seed's bears the recipe's own name."""
    return recipe.name if seed == 0 else f"{recipe.name}-s{seed}"


def card(state: Training) -> ModelCard:
    """Recipe, data, seed, steps and losses. What it states of the loss is measured here, on sequences never seen."""
    recipe = state.recipe
    return ModelCard(
        name=card_name(recipe, state.seed),
        description=recipe.description,
        source="trained by Headwork's own recipe",
        licence="Apache-2.0",
        training={
            "recipe": recipe.name,
            "seed": state.seed,
            "steps": state.step,
            "tokens": state.step * recipe.batch * recipe.data.length,
            "settings": {k: list(v) if isinstance(v, tuple) else v for k, v in recipe.settings().items()},
            **fresh_losses(state),
            "curve": [[step, round(loss, 4)] for step, loss in state.curve],
            "torch": torch.__version__,
            "device": state.model.device.type,
        },
        data=recipe.data.to_dict(),
    )


def fresh_losses(state: Training) -> dict[str, Any]:
    """Mean loss in nats per token on fresh sequences of the recipe's own distribution: all, inside repeats, outside."""
    generator = torch.Generator().manual_seed(derived_seed(state.seed, "evaluation"))
    batch = state.recipe.data.sample(_FRESH_SEQUENCES, generator)
    logits = run(state.model, batch.tokens).logits
    losses = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), batch.targets.to(logits.device), reduction="none"
    ).cpu()
    right = (logits.argmax(-1).cpu() == batch.targets)[batch.predictable]
    return {
        "loss": round(float(losses[:, :-1].mean()), 4),
        "loss_inside": round(float(losses[batch.predictable].mean()), 4),
        "loss_outside": round(float(losses[batch.unpredictable].mean()), 4),
        "accuracy_inside": round(float(right.double().mean()), 4),
    }
