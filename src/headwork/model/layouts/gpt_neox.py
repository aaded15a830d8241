"""Hugging Face's GPT-NeoX layout (Pythia): a folder with `config.json` and the weights.

Queries, keys and values are fused head by head: `query_key_value.weight` is `[head, 3, d_head, d_model]` flattened.
Blocks are parallel unless `use_parallel_residual` is false; both norms then read the block's input.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from headwork.model.config import TransformerConfig
from headwork.model.layouts import hub
from headwork.model.layouts.converted import Converted, Settings, Tensors

_BUFFERS = r"layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)"
_DEFAULT = "the configuration does not say, this is GPT-NeoX's default"


def convert(state: Mapping[str, Any], config: Mapping[str, Any]) -> Converted:
    """Read GPT-NeoX weights with their Hugging Face configuration, of which `num_attention_heads` must be there.

    Raises `UserError` for tensors that are missing, unknown or of the wrong shape, and for settings not supported.
    """
    tensors = Tensors(hub.unprefixed(state, "gpt_neox."), "GPT-NeoX", _BUFFERS)
    settings = Settings(config)
    architecture = _architecture(tensors, settings)
    weights = _weights(tensors, architecture)
    tensors.finish()
    return Converted(architecture, weights, inferred=tuple(settings.inferred))


def _architecture(tensors: Tensors, settings: Settings) -> TransformerConfig:
    d_vocab, d_model = tensors.shape("embed_in.weight", 2)
    n_layers = tensors.layers(r"layers\.(\d+)\.")
    d_mlp = tensors.shape("layers.0.mlp.dense_h_to_4h.weight", 2)[0]
    n_heads = hub.n_heads(settings, "num_attention_heads", d_model, "hidden_size")
    bias = "layers.0.attention.query_key_value.bias" in tensors
    settings.agree(vocab_size=d_vocab, hidden_size=d_model, num_hidden_layers=n_layers, intermediate_size=d_mlp)
    settings.agree(attention_bias=bias)
    return TransformerConfig(
        n_layers=n_layers,
        d_model=d_model,
        n_heads=n_heads,
        d_head=d_model // n_heads,
        d_vocab=d_vocab,
        n_ctx=hub.n_ctx(settings),
        d_mlp=d_mlp,
        **hub.rotary(settings, d_model // n_heads, "rotary_emb_base", "rotary_pct", turned=0.25),
        norm="layernorm",
        norm_eps=settings.choose("norm_eps", 1e-5, _DEFAULT, "layer_norm_eps"),
        activation=settings.choose("activation", "gelu", _DEFAULT, "hidden_act", hub.ACTIVATIONS),
        parallel=settings.choose("parallel", True, _DEFAULT, "use_parallel_residual"),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=True,
        tied=settings.choose("tied", False, "", "tie_word_embeddings"),
    )


def _weights(tensors: Tensors, c: TransformerConfig) -> dict[str, Tensor]:
    d, wide, bias = c.d_model, c.d_mlp, c.qkv_bias
    found = {"embed.weight": tensors.take("embed_in.weight", c.d_vocab, d)}
    found |= hub.norm(tensors, "final_layer_norm", "ln_final", d, bias=True)
    found |= hub.unembedding(tensors, "embed_out.weight", c.tied, c.d_vocab, d)
    for layer in range(c.n_layers):
        theirs, ours = f"layers.{layer}", f"blocks.{layer}"
        found |= hub.norm(tensors, f"{theirs}.input_layernorm", f"{ours}.ln1", d, bias=True)
        found |= hub.norm(tensors, f"{theirs}.post_attention_layernorm", f"{ours}.ln2", d, bias=True)
        fused = hub.linear(tensors, f"{theirs}.attention.query_key_value", f"{ours}.attn.qkv", d, 3 * d, bias)
        found |= {name: _by_part(tensor, c) for name, tensor in fused.items()}
        found |= hub.linear(tensors, f"{theirs}.attention.dense", f"{ours}.attn.out", d, d, bias)
        found |= hub.linear(tensors, f"{theirs}.mlp.dense_h_to_4h", f"{ours}.mlp.inward", d, wide, bias=True)
        found |= hub.linear(tensors, f"{theirs}.mlp.dense_4h_to_h", f"{ours}.mlp.outward", wide, d, bias=True)
    return found


def _by_part(fused: Tensor, c: TransformerConfig) -> Tensor:
    """From queries, keys and values of each head in turn to all queries, all keys, all values."""
    return fused.unflatten(0, (c.n_heads, 3, c.d_head)).transpose(0, 1).flatten(0, 2)
