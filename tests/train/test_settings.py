"""Settings on cards of earlier versions."""

from __future__ import annotations

import json

from headwork.model.config import TransformerConfig
from headwork.train.recipes import RECIPES
from headwork.train.settings import with_defaults


def test_what_an_earlier_version_did_not_know_stood_at_its_default() -> None:
    recipe = next(iter(RECIPES.values()))
    now = json.loads(json.dumps(recipe.settings()))
    before = {key: value for key, value in now.items() if key not in ("architecture.window", "architecture.qk_norm")}
    assert with_defaults(before) == with_defaults(now) == now


def test_what_a_card_states_is_kept() -> None:
    stated = {"steps": 3, "architecture.qk_norm": True, "architecture.local_layers": [1]}
    found = with_defaults(stated)
    assert stated.items() <= found.items()
    assert found["architecture.norm"] == TransformerConfig.__dataclass_fields__["norm"].default
