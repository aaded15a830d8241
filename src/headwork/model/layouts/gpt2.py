"""Hugging Face's GPT-2 layout: a folder with `config.json` and the weights, with or without the `transformer.` prefix.

Linear maps are stored as `[in, out]`; queries, keys and values are already fused, in that order, heads side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from headwork.errors import UserError
from headwork.model.config import TransformerConfig
from headwork.model.layouts.converted import Converted, Settings, Tensors

_ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
_HEAD = "lm_head.weight"
_PREFIX = "transformer."
_BUFFERS = r"h\.\d+\.attn\.(bias|masked_bias)"


def convert(state: Mapping[str, Any], config: Mapping[str, Any]) -> Converted:
    """Read GPT-2 weights with their Hugging Face configuration, of which `n_head` must be there.

    Raises `UserError` for tensors that are missing, unknown or of the wrong shape, and for settings not supported.
    """
    tensors = Tensors({name.removeprefix(_PREFIX): t for name, t in state.items()}, "GPT-2", _BUFFERS)
    settings = Settings(config)
    settings.refuse(scale_attn_by_inverse_layer_idx=(False, None), add_cross_attention=(False, None))
    architecture = _architecture(tensors, settings)
    weights = _weights(tensors, architecture)
    tensors.finish()
    return Converted(architecture, weights, inferred=tuple(settings.inferred))


def _architecture(tensors: Tensors, settings: Settings) -> TransformerConfig:
    d_vocab, d_model = tensors.shape("wte.weight", 2)
    n_ctx, n_layers = tensors.shape("wpe.weight", 2)[0], tensors.layers(r"h\.(\d+)\.")
    d_mlp = tensors.shape("h.0.mlp.c_fc.weight", 2)[1]
    settings.agree(vocab_size=d_vocab, n_embd=d_model, n_positions=n_ctx, n_layer=n_layers, n_inner=d_mlp)
    n_heads = settings.choose("n_heads", None, "", "n_head")
    if not isinstance(n_heads, int) or n_heads < 1 or d_model % n_heads:
        raise UserError(
            f"The GPT-2 configuration has n_head = {n_heads!r}; it must be a divisor of n_embd = {d_model}."
        )
    why = "the configuration does not say, this is GPT-2's default"
    return TransformerConfig(
        n_layers=n_layers,
        d_model=d_model,
        n_heads=n_heads,
        d_head=d_model // n_heads,
        d_vocab=d_vocab,
        n_ctx=n_ctx,
        d_mlp=d_mlp,
        norm="layernorm",
        norm_eps=settings.choose("norm_eps", 1e-5, why, "layer_norm_epsilon"),
        activation=settings.choose("activation", "gelu_tanh", why, "activation_function", _ACTIVATIONS),
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        tied=settings.choose("tied", True, "", "tie_word_embeddings"),
        attention_scale=settings.choose("attention_scale", None, "", "scale_attn_weights", _scale),
    )


def _scale(by_width: bool) -> float | None:
    return None if by_width else 1.0


def _weights(tensors: Tensors, c: TransformerConfig) -> dict[str, Tensor]:
    d, wide = c.d_model, c.d_mlp
    found = {
        "embed.weight": tensors.take("wte.weight", c.d_vocab, d),
        "pos_embed.weight": tensors.take("wpe.weight", c.n_ctx, d),
        "ln_final.w": tensors.take("ln_f.weight", d),
        "ln_final.b": tensors.take("ln_f.bias", d),
    }
    if c.tied:
        tensors.peek(_HEAD)  # a copy of the embedding, in the files that hold one
    else:
        found["unembed.weight"] = tensors.take(_HEAD, c.d_vocab, d)
    for layer in range(c.n_layers):
        theirs, ours = f"h.{layer}", f"blocks.{layer}"
        for norm, name in (("ln1", "ln_1"), ("ln2", "ln_2")):
            found[f"{ours}.{norm}.w"] = tensors.take(f"{theirs}.{name}.weight", d)
            found[f"{ours}.{norm}.b"] = tensors.take(f"{theirs}.{name}.bias", d)
        for part, name, inputs, outputs in (
            ("attn.qkv", "attn.c_attn", d, 3 * d),
            ("attn.out", "attn.c_proj", d, d),
            ("mlp.inward", "mlp.c_fc", d, wide),
            ("mlp.outward", "mlp.c_proj", wide, d),
        ):
            found[f"{ours}.{part}.weight"] = tensors.take(f"{theirs}.{name}.weight", inputs, outputs).T
            found[f"{ours}.{part}.bias"] = tensors.take(f"{theirs}.{name}.bias", outputs)
    return found
