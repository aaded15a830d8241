"""Hugging Face's GPT-Neo layout (TinyStories): a folder with `config.json` and the weights.

Attention is not scaled; `attention_types` says which layers see only the last `window_size` positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from headwork.errors import UserError
from headwork.model.config import TransformerConfig
from headwork.model.layouts import hub
from headwork.model.layouts.converted import Converted, Settings, Tensors

_BUFFERS = r"h\.\d+\.attn\.attention\.(bias|masked_bias)"
_DEFAULT = "the configuration does not say, this is GPT-Neo's default"


def convert(state: Mapping[str, Any], config: Mapping[str, Any]) -> Converted:
    """Read GPT-Neo weights with their Hugging Face configuration, of which `num_heads` must be there.

    Raises `UserError` for tensors that are missing, unknown or of the wrong shape, and for settings not supported.
    """
    tensors = Tensors(hub.unprefixed(state, "transformer."), "GPT-Neo", _BUFFERS)
    settings = Settings(config)
    architecture = _architecture(tensors, settings)
    weights = _weights(tensors, architecture)
    tensors.finish()
    return Converted(architecture, weights, inferred=tuple(settings.inferred))


def _architecture(tensors: Tensors, settings: Settings) -> TransformerConfig:
    d_vocab, d_model = tensors.shape("wte.weight", 2)
    n_ctx, n_layers = tensors.shape("wpe.weight", 2)[0], tensors.layers(r"h\.(\d+)\.")
    d_mlp = tensors.shape("h.0.mlp.c_fc.weight", 2)[0]
    settings.agree(vocab_size=d_vocab, hidden_size=d_model, max_position_embeddings=n_ctx, num_layers=n_layers)
    settings.agree(intermediate_size=d_mlp)
    n_heads = hub.n_heads(settings, "num_heads", d_model, "hidden_size")
    return TransformerConfig(
        n_layers=n_layers,
        d_model=d_model,
        n_heads=n_heads,
        d_head=d_model // n_heads,
        d_vocab=d_vocab,
        n_ctx=n_ctx,
        d_mlp=d_mlp,
        norm="layernorm",
        norm_eps=settings.choose("norm_eps", 1e-5, _DEFAULT, "layer_norm_epsilon"),
        activation=settings.choose("activation", "gelu_tanh", _DEFAULT, "activation_function", hub.ACTIVATIONS),
        window=settings.choose("window", 256, _DEFAULT, "window_size"),
        local_layers=_local_layers(settings, n_layers),
        out_bias=True,
        mlp_bias=True,
        tied=settings.choose("tied", True, "", "tie_word_embeddings"),
        attention_scale=1.0,
    )


def _local_layers(settings: Settings, n_layers: int) -> tuple[int, ...]:
    """From `[[["global", "local"], 2]]`, or from the same written out layer by layer."""
    kinds = settings.raw("attention_layers")
    types = settings.raw("attention_types")
    if kinds is None and types is not None:
        try:
            kinds = [kind for group, times in types for _ in range(times) for kind in group]
        except (TypeError, ValueError):
            raise UserError(
                f'The GPT-Neo configuration has attention_types = {types!r}; a list such as [[["global", "local"], 2]] '
                "is expected."
            ) from None
    if kinds is None:
        settings.inferred.append(f"local_layers = every second one: {_DEFAULT}")
        return tuple(range(1, n_layers, 2))
    if not isinstance(kinds, list) or len(kinds) != n_layers or not {"global", "local"}.issuperset(map(str, kinds)):
        raise UserError(
            f"The GPT-Neo configuration gives its layers the attention {kinds!r}; {n_layers} of 'global' and 'local' "
            "are expected."
        )
    return tuple(layer for layer, kind in enumerate(kinds) if kind == "local")


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
        attention = f"{theirs}.attn.attention"
        found |= hub.norm(tensors, f"{theirs}.ln_1", f"{ours}.ln1", d, bias=True)
        found |= hub.norm(tensors, f"{theirs}.ln_2", f"{ours}.ln2", d, bias=True)
        found[f"{ours}.attn.qkv.weight"] = torch.cat(
            [tensors.take(f"{attention}.{which}_proj.weight", d, d) for which in "qkv"]
        )
        found |= hub.linear(tensors, f"{attention}.out_proj", f"{ours}.attn.out", d, d, bias=True)
        found |= hub.linear(tensors, f"{theirs}.mlp.c_fc", f"{ours}.mlp.inward", d, wide, bias=True)
        found |= hub.linear(tensors, f"{theirs}.mlp.c_proj", f"{ours}.mlp.outward", wide, d, bias=True)
    return found
