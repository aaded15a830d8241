"""Hugging Face's Llama layout, which Mistral, Qwen2 and Qwen3 share: a folder with `config.json` and the weights.

Qwen2 has biases on queries, keys and values, Qwen3 norms of queries and keys; Mistral and the Qwens may have layers
that see a window only.
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

_BUFFERS = r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq"
_DEFAULT = "the configuration does not say, this is the family's default"
_HEAD = "lm_head.weight"


def convert(state: Mapping[str, Any], config: Mapping[str, Any]) -> Converted:
    """Read such weights with their Hugging Face configuration, of which `num_attention_heads` must be there.

    Raises `UserError` for tensors that are missing, unknown or of the wrong shape, and for settings not supported.
    """
    tensors = Tensors(hub.unprefixed(state, "model."), "Llama", _BUFFERS)
    settings = Settings(config)
    architecture = _architecture(tensors, settings)
    weights = _weights(tensors, architecture)
    tensors.finish()
    return Converted(architecture, weights, inferred=tuple(settings.inferred))


def _architecture(tensors: Tensors, settings: Settings) -> TransformerConfig:
    d_vocab, d_model = tensors.shape("embed_tokens.weight", 2)
    n_layers = tensors.layers(r"layers\.(\d+)\.")
    first = "layers.0.self_attn"
    d_mlp = tensors.shape("layers.0.mlp.gate_proj.weight", 2)[0]
    wide, narrow = (tensors.shape(f"{first}.{which}_proj.weight", 2)[0] for which in "qk")
    n_heads = hub.n_heads(settings, "num_attention_heads", wide, "the width of q_proj")
    d_head = wide // n_heads
    n_kv_heads = narrow // d_head
    qkv_bias, out_bias = f"{first}.q_proj.bias" in tensors, f"{first}.o_proj.bias" in tensors
    settings.agree(vocab_size=d_vocab, hidden_size=d_model, num_hidden_layers=n_layers, intermediate_size=d_mlp)
    settings.agree(head_dim=d_head, num_key_value_heads=n_kv_heads, attention_bias=qkv_bias)
    return TransformerConfig(
        n_layers=n_layers,
        d_model=d_model,
        n_heads=n_heads,
        d_head=d_head,
        d_vocab=d_vocab,
        n_ctx=hub.n_ctx(settings),
        d_mlp=d_mlp,
        n_kv_heads=None if n_kv_heads == n_heads else n_kv_heads,
        **hub.rotary(settings, d_head),
        **_window(settings, n_layers),
        norm="rmsnorm",
        norm_eps=settings.choose("norm_eps", 1e-6, _DEFAULT, "rms_norm_eps"),
        activation=settings.choose("activation", "silu", _DEFAULT, "hidden_act", hub.ACTIVATIONS),
        gated_mlp=True,
        qk_norm=f"{first}.q_norm.weight" in tensors,
        qkv_bias=qkv_bias,
        out_bias=out_bias,
        mlp_bias="layers.0.mlp.down_proj.bias" in tensors,
        tied=settings.choose("tied", _HEAD not in tensors, "", "tie_word_embeddings"),
    )


def _window(settings: Settings, n_layers: int) -> dict[str, Any]:
    """Which layers see a window only: as `layer_types` lists them, else all from `max_window_layers` on."""
    family, window = str(settings.raw("model_type")), settings.raw("sliding_window")
    uses = settings.raw("use_sliding_window", not family.startswith("qwen"))
    if window is None or not uses or family == "llama":
        return {}
    first = settings.raw("max_window_layers", 0)
    kinds = settings.raw("layer_types")
    if kinds is None:
        kinds = ["sliding_attention" if layer >= first else "full_attention" for layer in range(n_layers)]
    known = {"sliding_attention", "full_attention"}
    if not isinstance(kinds, list) or len(kinds) != n_layers or not known.issuperset(map(str, kinds)):
        raise UserError(
            f"The configuration has layer_types = {kinds!r}; {n_layers} of 'full_attention' and 'sliding_attention' "
            "are expected."
        )
    local = tuple(layer for layer, kind in enumerate(kinds) if kind == "sliding_attention")
    return {"window": window, "local_layers": local} if local else {}


def _weights(tensors: Tensors, c: TransformerConfig) -> dict[str, Tensor]:
    d, heads = c.d_model, c.n_heads * c.d_head
    found = {
        "embed.weight": tensors.take("embed_tokens.weight", c.d_vocab, d),
        **hub.norm(tensors, "norm", "ln_final", d, bias=False),
        **hub.unembedding(tensors, _HEAD, c.tied, c.d_vocab, d),
    }
    for layer in range(c.n_layers):
        theirs, ours = f"layers.{layer}", f"blocks.{layer}"
        found |= hub.norm(tensors, f"{theirs}.input_layernorm", f"{ours}.ln1", d, bias=False)
        found |= hub.norm(tensors, f"{theirs}.post_attention_layernorm", f"{ours}.ln2", d, bias=False)
        found |= _attention(tensors, c, f"{theirs}.self_attn", f"{ours}.attn")
        found |= hub.linear(tensors, f"{theirs}.self_attn.o_proj", f"{ours}.attn.out", heads, d, c.out_bias)
        inward = {f"{theirs}.mlp.gate_proj": c.d_mlp, f"{theirs}.mlp.up_proj": c.d_mlp}
        found |= _stacked(tensors, inward, f"{ours}.mlp.inward", d, c.mlp_bias)
        found |= hub.linear(tensors, f"{theirs}.mlp.down_proj", f"{ours}.mlp.outward", c.d_mlp, d, c.mlp_bias)
    return found


def _attention(tensors: Tensors, c: TransformerConfig, theirs: str, ours: str) -> dict[str, Tensor]:
    outputs = {
        f"{theirs}.q_proj": c.n_heads * c.d_head,
        f"{theirs}.k_proj": c.kv_heads * c.d_head,
        f"{theirs}.v_proj": c.kv_heads * c.d_head,
    }
    found = _stacked(tensors, outputs, f"{ours}.qkv", c.d_model, c.qkv_bias)
    if c.qk_norm:
        for which in ("q_norm", "k_norm"):
            found |= hub.norm(tensors, f"{theirs}.{which}", f"{ours}.{which}", c.d_head, bias=False)
    return found


def _stacked(tensors: Tensors, outputs: Mapping[str, int], ours: str, inputs: int, bias: bool) -> dict[str, Tensor]:
    """Several linear maps of the same input as one; `outputs` gives their names and sizes."""
    parts = [hub.linear(tensors, name, "part", inputs, size, bias) for name, size in outputs.items()]
    return {f"{ours}.{kind}": torch.cat([part[f"part.{kind}"] for part in parts]) for kind in _kinds(bias)}


def _kinds(bias: bool) -> tuple[str, ...]:
    return ("weight", "bias") if bias else ("weight",)
