"""Configurations: what they derive, what they refuse, and how they are written down."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from tests.architectures import ARCHITECTURES

from headwork.errors import UserError
from headwork.model.config import TransformerConfig

PLAIN: dict[str, Any] = {"n_layers": 2, "d_model": 8, "n_heads": 4, "d_head": 2, "d_vocab": 11, "n_ctx": 7}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_reading_what_was_written_gives_the_same_configuration(name: str) -> None:
    config = ARCHITECTURES[name]
    written = config.to_dict()
    assert TransformerConfig.from_dict(written) == config
    assert json.loads(json.dumps(written)) == written


def test_only_what_differs_from_the_defaults_is_written() -> None:
    assert TransformerConfig(**PLAIN, norm="none").to_dict() == PLAIN


def test_derived_sizes() -> None:
    plain = TransformerConfig(**PLAIN)
    assert (plain.outputs, plain.kv_heads, plain.turned, plain.attention_only) == (11, 4, 0, True)
    assert plain.scale == pytest.approx(1 / math.sqrt(2))
    rich = TransformerConfig(**PLAIN, d_vocab_out=3, n_kv_heads=2, positions="rotary", d_mlp=5, attention_scale=1.0)
    assert (rich.outputs, rich.kv_heads, rich.turned, rich.attention_only) == (3, 2, 2, False)
    assert rich.scale == 1


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"n_layers": -1}, "n_layers = -1; it must be a whole number, 0 or more"),
        ({"n_layers": 2.0}, "n_layers = 2.0"),
        ({"d_mlp": "12"}, "d_mlp = '12'"),
        ({"n_heads": 0}, "n_heads = 0; it must be a whole number, 1 or more"),
        ({"n_heads": True}, "n_heads = True"),
        ({"d_model": None}, "d_model = None"),
        ({"d_vocab_out": 0}, "d_vocab_out = 0"),
        ({"n_kv_heads": 0}, "n_kv_heads = 0"),
        ({"n_kv_heads": 3}, "n_kv_heads = 3; it must be a divisor of n_heads = 4"),
        (
            {"positions": "rotery"},
            "positions in the model's configuration: 'rotery': the nearest valid ones are rotary",
        ),
        ({"positions": []}, "positions"),
        ({"norm": "batchnorm"}, "'batchnorm'"),
        ({"activation": "selu"}, "'selu'"),
        ({"rotary_style": None}, "'None'"),
        ({"positions": "rotary", "rotary_dim": 1}, "rotary_dim = 1"),
        ({"positions": "rotary", "rotary_dim": 0}, "rotary_dim = 0"),
        ({"positions": "rotary", "rotary_dim": 4}, "rotary_dim = 4; it must be at most d_head = 2"),
        ({"positions": "rotary", "rotary_dim": 2.0}, "rotary_dim = 2.0"),
        ({"positions": "rotary", "d_head": 3}, "d_head = 3; it must be even"),
        ({"positions": "rotary", "d_head": 5, "rotary_dim": 3}, "rotary_dim = 3; it must be even"),
        ({"rotary_base": 0.0}, "rotary_base = 0.0"),
        ({"rotary_base": math.inf}, "rotary_base = inf"),
        ({"norm_eps": -1e-5}, "norm_eps = -1e-05"),
        ({"norm_eps": math.nan}, "norm_eps = nan"),
        ({"attention_scale": 0}, "attention_scale = 0"),
        ({"attention_mix": 1.5}, "attention_mix = 1.5; it must be a number from 0 to 1"),
        ({"attention_mix": "1"}, "attention_mix = '1'"),
        ({"tied": True, "d_vocab_out": 5}, "d_vocab_out = 5; it must be d_vocab where tied is true"),
        ({"pad_token": 11}, "pad_token = 11; it must be below d_vocab = 11"),
        ({"pad_token": -1}, "pad_token = -1"),
        ({"pad_token": 1.0}, "pad_token = 1.0"),
        ({"window": 0}, "window = 0; it must be a whole number, 1 or more"),
        ({"local_layers": [0]}, "window = None; it must be stated where there are local_layers"),
        ({"local_layers": [2], "window": 4}, "local_layers = (2,); it must be below n_layers = 2"),
        ({"local_layers": [1, 0], "window": 4}, "local_layers = (1, 0); it must be a list of layers, each once"),
        ({"local_layers": [0, 0], "window": 4}, "local_layers = (0, 0)"),
        ({"local_layers": [-1], "window": 4}, "local_layers = (-1,)"),
        ({"local_layers": ["0"], "window": 4}, "local_layers = ('0',)"),
        ({"local_layers": 1, "window": 4}, "local_layers = 1"),
        ({"rotary_factor": 0}, "rotary_factor = 0; it must be a number above 0, or left out"),
        ({"rotary_trained_ctx": 0}, "rotary_trained_ctx = 0"),
        ({"rotary_low_factor": 4.0}, "rotary_high_factor = 4.0; it must be above rotary_low_factor = 4.0"),
        ({"qk_norm": 1}, "qk_norm = 1; it must be true or false"),
        (
            {"activation": "solu_ln", "gated_mlp": True},
            "gated_mlp = True; it must be false where",
        ),
        ({"causal": "yes"}, "causal = 'yes'; it must be true or false"),
        ({"gated_mlp": 1}, "gated_mlp = 1"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("unchecked")
def test_a_contradiction_is_one_sentence_that_names_it(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as error:
        TransformerConfig.from_dict(PLAIN | wrong)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_keys_are_checked_by_name() -> None:
    with pytest.raises(UserError, match=r"'d_modle': the nearest valid ones are d_model"):
        TransformerConfig.from_dict(PLAIN | {"d_modle": 8})
    with pytest.raises(UserError, match="lacks d_model, d_head"):
        TransformerConfig.from_dict({k: v for k, v in PLAIN.items() if k not in ("d_model", "d_head")})


def test_fields_of_missing_parts_have_no_effect() -> None:
    TransformerConfig(**PLAIN, rotary_dim=64)
    assert TransformerConfig(**PLAIN, rotary_dim=64).turned == 0
