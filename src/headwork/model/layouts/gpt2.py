"""Hugging Face's GPT-2 layout: a folder with `config.json` and the weights, with or without the `transformer.` prefix.

Linear maps are stored as `[in, out]`; queries, keys and values are already fused, in that order, heads side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from headwork.model.config import TransformerConfig
from headwork.model.layouts import hub
from headwork.model.layouts.converted import Converted, Settings, Tensors

_BUFFERS = r"h\.\d+\.attn\.(bias|masked_bias)"


def convert(state: Mapping[str, Any], config: Mapping[str, Any]) -> Converted:
    """Read GPT-2 weights with their Hugging Face configuration, of which `n_head` must be there.

    Raises `UserError` for tensors that are missing, unknown or of the wrong shape, and for settings not supported.
    """
    tensors = Tensors(hub.unprefixed(state, "transformer."), "GPT-2", _BUFFERS)
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
    n_heads = hub.n_heads(settings, "n_head", d_model, "n_embd")
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
        activation=settings.choose("activation", "gelu_tanh", why, "activation_function", hub.ACTIVATIONS),
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
        **hub.norm(tensors, "ln_f", "ln_final", d, bias=True),
        **hub.unembedding(tensors, "lm_head.weight", c.tied, c.d_vocab, d),
    }
    for layer in range(c.n_layers):
        theirs, ours = f"h.{layer}", f"blocks.{layer}"
        found |= hub.norm(tensors, f"{theirs}.ln_1", f"{ours}.ln1", d, bias=True)
        found |= hub.norm(tensors, f"{theirs}.ln_2", f"{ours}.ln2", d, bias=True)
        for part, name, inputs, outputs in (
            ("attn.qkv", "attn.c_attn", d, 3 * d),
            ("attn.out", "attn.c_proj", d, d),
            ("mlp.inward", "mlp.c_fc", d, wide),
            ("mlp.outward", "mlp.c_proj", wide, d),
        ):
            found[f"{ours}.{part}.weight"] = tensors.take(f"{theirs}.{name}.weight", inputs, outputs).T
            found[f"{ours}.{part}.bias"] = tensors.take(f"{theirs}.{name}.bias", outputs)
    return found
