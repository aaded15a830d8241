"""Small networks of every architecture the package declares, in float64, with all biases and gains set to something."""

from __future__ import annotations

import torch
from torch import Tensor

from headwork.model.config import TransformerConfig
from headwork.model.initialise import initialise
from headwork.model.transformer import Transformer

BATCH, LENGTH = 3, 5

_SMALL = {"n_layers": 2, "d_model": 8, "n_heads": 2, "d_head": 4, "d_vocab": 11, "n_ctx": 7}
_BIASES = {"qkv_bias": True, "out_bias": True, "mlp_bias": True}
_RELU = {"d_mlp": 6, "activation": "relu"}
_NEOX = {"positions": "rotary", "rotary_dim": 2, "norm": "layernorm", "activation": "gelu", "parallel": True}
_LLAMA = {"positions": "rotary", "rotary_style": "adjacent", "norm": "rmsnorm", "activation": "silu", "gated_mlp": True}

_NEO = {"norm": "layernorm", "out_bias": True, "mlp_bias": True, "attention_scale": 1.0, "window": 2}
_QWEN = _LLAMA | {"rotary_style": "half", "d_mlp": 10, "n_heads": 4, "n_kv_heads": 2}
_LLAMA3 = {"rotary_factor": 8.0, "rotary_trained_ctx": 16, "rotary_base": 100.0}

_VARIANTS: dict[str, dict] = {
    "attention-only-rotary-half": {"positions": "rotary"},
    "attention-only-rotary-adjacent": {"positions": "rotary", "rotary_style": "adjacent", "rotary_base": 50.0},
    "attention-only-rotary-part": {"positions": "rotary", "rotary_dim": 2, "n_layers": 3},
    "attention-only-learned": {"norm": "layernorm", "out_bias": True},
    "gpt2": {"norm": "layernorm", "d_mlp": 12, "tied": True, **_BIASES},
    "bidirectional-pad": {"norm": "layernorm", "causal": False, "pad_token": 0, **_RELU, **_BIASES},
    "causal-pad": {"pad_token": 0, **_RELU},
    "neox": {"d_mlp": 12, **_NEOX, **_BIASES},
    "llama": {"d_mlp": 10, "n_heads": 4, "n_kv_heads": 2, **_LLAMA},
    "neo": {"d_mlp": 12, "n_layers": 3, "local_layers": (1,), "tied": True, **_NEO},
    "qwen2": {"qkv_bias": True, "tied": True, **_QWEN},
    "qwen3": {"qk_norm": True, **_QWEN, **_LLAMA3},
    "head-norm-learned": {"qk_norm": True, "norm": "layernorm", "d_mlp": 6},
    "llama3": {"d_mlp": 10, "d_head": 8, **_LLAMA, **_LLAMA3},
    "all-local": {"positions": "none", "window": 3, "local_layers": (0, 1), **_RELU},
    "bidirectional-local-pad": {"causal": False, "pad_token": 0, "window": 2, "local_layers": (1,), **_RELU},
    "solu": {"d_mlp": 12, "activation": "solu", "norm": "layernorm", **_BIASES},
    "solu-ln": {"d_mlp": 12, "activation": "solu_ln", "norm": "layernorm", "norm_eps": 0.1, **_BIASES},
    "solu-ln-parallel": {"d_mlp": 12, "activation": "solu_ln", "parallel": True},
    "one-kv-head": {"positions": "none", "n_heads": 3, "n_kv_heads": 1, "d_mlp": 5, "attention_scale": 1.0},
    "shortformer": {"positions": "shortformer", "norm": "layernorm", "qkv_bias": True},
    "shortformer-mlp": {"positions": "shortformer", "norm": "rmsnorm", "d_mlp": 6},
    "mix-bidirectional": {"attention_mix": 0.3, "causal": False, **_RELU},
    "mix-causal": {"attention_mix": 0.3, **_RELU},
    "constant-attention-pad": {"attention_mix": 0.0, "pad_token": 0},
    "no-layers": {"n_layers": 0, "norm": "layernorm"},
    "no-layers-shortformer": {"n_layers": 0, "positions": "shortformer"},
    "one-layer": {"n_layers": 1, **_RELU},
    "classifier": {"d_vocab_out": 3, "unembed_bias": True, "norm": "layernorm", "d_mlp": 6},
    "parallel-attention-only": {"parallel": True},
}

ARCHITECTURES = {name: TransformerConfig.from_dict(_SMALL | fields) for name, fields in _VARIANTS.items()}


def network(name: str, seed: int = 0) -> Transformer:
    """The architecture `name` with every weight, bias and gain drawn from `seed`, so that none hides a mistake."""
    model = initialise(ARCHITECTURES[name], seed).double()
    generator = torch.Generator().manual_seed(seed + 100)
    with torch.no_grad():
        for parameter in model.parameters():
            centre = 1.0 if parameter.dim() == 1 and bool((parameter == 1).all()) else 0.0
            parameter.copy_(centre + 0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def prompts(name: str, seed: int = 0) -> Tensor:
    """Tokens `[batch, pos]`, padded on the left, the right, and inside where the architecture knows padding."""
    config = ARCHITECTURES[name]
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, config.d_vocab, (BATCH, LENGTH), generator=generator)
    if config.pad_token is not None:
        tokens[0, :2] = tokens[1, 3:] = tokens[2, 2] = config.pad_token
    return tokens
