"""Configurations of the hub's families: what is refused, and what is inferred. test_hub_parity.py computes them."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from tests import foreign
from torch import Tensor

from headwork.errors import UserError
from headwork.model.card import ModelCard
from headwork.model.checkpoints import assemble, check_weights
from headwork.model.layouts import converter
from headwork.model.layouts.converted import Converted

TOKENS = torch.randint(0, 11, (3, 6), generator=torch.Generator().manual_seed(0))


def logits(found: Converted) -> Tensor:
    check_weights(found.state, found.architecture, "converted")
    with torch.no_grad():
        return assemble(found.architecture, found.state, ModelCard(name="x"), torch.float64)(TOKENS)


NEO = {"num_heads": 2, "window_size": 3, "attention_types": [[["global", "local"], 1]], "layer_norm_epsilon": 1e-5}
NEO |= {"activation_function": "gelu_new"}
NEOX = {"num_attention_heads": 2, "max_position_embeddings": 7, "rotary_pct": 0.5}
LLAMA = {"num_attention_heads": 2, "max_position_embeddings": 7, "rope_theta": 100.0, "rms_norm_eps": 1e-6}
SCALED = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def neo_state() -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (11, 8), "wpe.weight": (7, 8)}
    for h in ("h.0", "h.1"):
        shapes |= {f"{h}.ln_{i}.{part}": (8,) for i in (1, 2) for part in ("weight", "bias")}
        shapes |= {f"{h}.attn.attention.{which}_proj.weight": (8, 8) for which in ("q", "k", "v", "out")}
        shapes |= {f"{h}.attn.attention.out_proj.bias": (8,), f"{h}.mlp.c_fc.weight": (12, 8)}
        shapes |= {f"{h}.mlp.c_fc.bias": (12,), f"{h}.mlp.c_proj.weight": (8, 12), f"{h}.mlp.c_proj.bias": (8,)}
    return foreign.draw(shapes | {"ln_f.weight": (8,), "ln_f.bias": (8,)})


def neox_state() -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {"embed_in.weight": (11, 8), "embed_out.weight": (11, 8)}
    at = "layers.0"
    for name, outputs, inputs in (
        ("attention.query_key_value", 24, 8),
        ("attention.dense", 8, 8),
        ("mlp.dense_h_to_4h", 12, 8),
        ("mlp.dense_4h_to_h", 8, 12),
    ):
        shapes |= {f"{at}.{name}.weight": (outputs, inputs), f"{at}.{name}.bias": (outputs,)}
    for norm in (f"{at}.input_layernorm", f"{at}.post_attention_layernorm", "final_layer_norm"):
        shapes |= {f"{norm}.weight": (8,), f"{norm}.bias": (8,)}
    return foreign.draw(shapes)


def llama_state() -> dict[str, Tensor]:
    at = "layers.0"
    shapes: dict[str, tuple[int, ...]] = {f"{at}.self_attn.{which}_proj.weight": (8, 8) for which in "qkvo"}
    shapes |= {f"{at}.mlp.{which}_proj.weight": (12, 8) for which in ("gate", "up")}
    shapes |= {f"{at}.mlp.down_proj.weight": (8, 12), "embed_tokens.weight": (11, 8), "lm_head.weight": (11, 8)}
    norms = (f"{at}.input_layernorm", f"{at}.post_attention_layernorm", "norm")
    return foreign.draw(shapes | {f"{norm}.weight": (8,) for norm in norms})


HUB = {"gpt-neo": (neo_state, NEO), "gpt-neox": (neox_state, NEOX), "llama": (llama_state, LLAMA)}


@pytest.mark.parametrize(
    ("layout", "config", "says"),
    [
        ("gpt-neo", {"num_heads": 3}, r"num_heads = 3; it must be a divisor of hidden_size = 8"),
        ("gpt-neo", {"attention_types": [["global", 2]] * 3}, r"gives its layers the attention .*; 2 of 'global'"),
        ("gpt-neo", {"attention_types": 5}, r"attention_types = 5; a list such as \[\[\["),
        ("gpt-neo", {"attention_layers": ["global", "round"]}, r"\['global', 'round'\]; 2 of 'global' and 'local'"),
        ("gpt-neo", {"window_size": 0}, r"window = 0; it must be a whole number, 1 or more"),
        ("gpt-neo", {"num_layers": 3}, r"says num_layers = 3, but its tensors have 2"),
        ("gpt-neox", {"max_position_embeddings": None}, r"max_position_embeddings = None; it must be a whole number"),
        ("gpt-neox", {"rotary_pct": "all"}, r"partial_rotary_factor = 'all'; it must be a number above 0"),
        ("gpt-neox", {"rotary_pct": 0.75}, r"rotary_dim = 3; it must be even"),
        ("gpt-neox", {"attention_bias": False}, r"says attention_bias = False, but its tensors have True"),
        ("gpt-neox", {"hidden_act": "tanh"}, r"Unknown hidden_act .* 'tanh'"),
        ("llama", {"num_attention_heads": 0}, r"num_attention_heads = 0; it must be a divisor of the width of q_proj"),
        ("llama", {"num_key_value_heads": 1}, r"says num_key_value_heads = 1, but its tensors have 2"),
        (
            "llama",
            {"rope_scaling": {"type": "yarn", "factor": 2.0}},
            r"the rotary scaling 'yarn', which is not",
        ),
        ("llama", {"rope_scaling": 2}, r"rope_scaling = 2; it must be an object or null"),
        ("llama", {"rope_scaling": SCALED | {"factor": 0}}, r"factor = 0; it must be a number above 0"),
        ("llama", {"rope_scaling": {"rope_type": "llama3"}}, r"factor = None; it must be a number above 0"),
        ("llama", {"rope_theta": "x"}, r"rope_theta = 'x'; it must be a number above 0"),
        ("llama", {"attention_bias": True}, r"says attention_bias = True, but its tensors have False"),
        ("llama", {"tie_word_embeddings": True, "model_type": "mistral", "sliding_window": 0}, r"window = 0"),
        (
            "llama",
            {"model_type": "qwen2", "sliding_window": 2, "use_sliding_window": True, "layer_types": ["full"]},
            r"layer_types = \['full'\]; 1 of 'full_attention' and 'sliding_attention' are expected",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_settings_of_the_hubs_families_that_do_not_fit_are_refused(
    layout: str, config: dict[str, Any], says: str
) -> None:
    state, sound = HUB[layout]
    with pytest.raises(UserError, match=says):
        converter(layout)(state(), sound | config)


@pytest.mark.parametrize(
    ("layout", "left_out", "inferred"),
    [
        ("gpt-neo", ("window_size", "attention_types"), ["window", "local_layers"]),
        ("gpt-neo", ("layer_norm_epsilon", "activation_function"), ["norm_eps", "activation"]),
        ("llama", ("rope_theta", "rms_norm_eps"), ["rotary_base", "norm_eps", "activation"]),
    ],
)
def test_settings_that_the_hubs_configuration_leaves_out_are_inferred(
    layout: str, left_out: tuple[str, ...], inferred: list[str]
) -> None:
    state, config = HUB[layout]
    found = converter(layout)(state(), {key: value for key, value in config.items() if key not in left_out})
    assert [re.split(" = |: ", line)[0] for line in found.inferred] == inferred
    assert logits(found).isfinite().all()


def test_a_window_that_is_switched_off_is_not_used() -> None:
    window: dict[str, Any] = {"sliding_window": 2, "model_type": "qwen2"}
    assert converter("llama")(llama_state(), LLAMA | window).architecture.local_layers == ()
    switched = window | {"use_sliding_window": True, "max_window_layers": 0}
    assert converter("llama")(llama_state(), LLAMA | switched).architecture.local_layers == (0,)
