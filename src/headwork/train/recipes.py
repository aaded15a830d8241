"""The recipes of the zoo: attention-only networks on repeated sequences, and one that learns to fake induction."""

from __future__ import annotations

import dataclasses

from headwork.errors import unknown
from headwork.model.config import TransformerConfig
from headwork.tasks.repeated_sequences import RepeatedSequences
from headwork.train.recipe import Recipe

ATTENTION_ONLY = Recipe(
    name="attn-only-2l",
    description="Two attention-only layers with rotary positions, trained on sequences with repeated segments.",
    architecture=TransformerConfig(
        n_layers=2, d_model=64, n_heads=4, d_head=16, d_vocab=128, n_ctx=64, positions="rotary"
    ),
    data=RepeatedSequences(vocab=128, length=64, segment=(8, 20), copies=(3, 3), placement="scattered"),
    steps=2500,
)


def _variant(name: str, description: str, **architecture: object) -> Recipe:
    changed = dataclasses.replace(ATTENTION_ONLY.architecture, **architecture)  # type: ignore[arg-type]
    return dataclasses.replace(ATTENTION_ONLY, name=name, description=description, architecture=changed)


_ONE_LAYER = _variant(
    "attn-only-1l",
    "One attention-only layer on the same sequences: too shallow to compose heads.",
    n_layers=1,
)

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        ATTENTION_ONLY,
        _ONE_LAYER,
        _variant("attn-only-3l", "Three attention-only layers on the same sequences.", n_layers=3),
        _variant("attn-only-2l-learned", "Two attention-only layers with learned positions.", positions="learned"),
        dataclasses.replace(
            _variant(
                "attn-only-1l-fixed-period",
                "One attention-only layer with learned positions on sequences whose second half repeats the first: "
                "it predicts repeats by position alone.",
                n_layers=1,
                positions="learned",
            ),
            data=RepeatedSequences(vocab=128, length=64, segment=(32, 32), copies=(2, 2), placement="fixed"),
        ),
    )
}


def recipe(name: str) -> Recipe:
    """The recipe of that name; `UserError` names the nearest."""
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return RECIPES[name]
