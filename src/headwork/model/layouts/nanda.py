"""Nanda's layout: his networks for modular addition and for repeated sequences (Nanda et al. 2023).

The weights stand under the key `model`: `embed.W_E [d_model, d_vocab]`, `W_Q`, `W_K`, `W_V [head, d_head, d_model]`,
`W_O [d_model, head·d_head]`, `mlp.W_in [d_mlp, d_model]`, `unembed.W_U [d_model, d_vocab]`. Blocks are called `blocks`,
or `attn_blocks` where there are no MLPs. There is no norm, no bias but the MLPs'; positions are learned, attention is
causal and scaled by 1/√d_head. The training settings stand beside the weights under `config`, or under `model_config`,
`data_config` and `optim_config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from headwork.errors import UserError
from headwork.model.config import TransformerConfig
from headwork.model.layouts.converted import Converted, Settings, Tensors, fuse

_ACTIVATIONS = {"ReLU": "relu", "GeLU": "gelu"}
_BESIDE = ("config", "model_config", "data_config", "optim_config")
_SIZES = {"num_layers": "n_layers", "d_model": "d_model", "num_heads": "n_heads", "d_head": "d_head"}
_RESULTS = {"train_loss": "loss", "test_loss": "test_loss", "train_losses": "loss", "test_losses": "test_loss"}


def convert(state: Mapping[str, Any], config: Mapping[str, Any]) -> Converted:
    """Read such a checkpoint, or its bare state dict; `config` adds to the settings in the file and overrules them.

    Raises `UserError` for tensors that are missing, unknown or of the wrong shape, or contradict the settings.
    """
    bare = state.get("model", state)
    if not isinstance(bare, Mapping):
        raise UserError(f"The Nanda checkpoint has a {type(bare).__name__} under 'model'; a state dict is expected.")
    beside = [state[key] for key in _BESIDE if isinstance(state.get(key), Mapping)]
    stated = {key: value for part in (*beside, config) for key, value in part.items()}
    prefix = "attn_blocks" if any(name.startswith("attn_blocks.") for name in bare) else "blocks"
    tensors = Tensors(bare, "Nanda", rf"{prefix}\.\d+\.attn\.mask")
    settings = Settings(stated)
    architecture = _architecture(tensors, settings, prefix)
    weights = _weights(tensors, architecture, prefix)
    tensors.finish()
    return Converted(
        architecture, weights, _training(state, settings), _data(stated, architecture), tuple(settings.inferred)
    )


def _architecture(tensors: Tensors, settings: Settings, prefix: str) -> TransformerConfig:
    d_model, d_vocab = tensors.shape("embed.W_E", 2)
    n_heads, d_head, _ = tensors.shape(f"{prefix}.0.attn.W_Q", 3)
    outputs = tensors.shape("unembed.W_U", 2)[1]
    inward = f"{prefix}.0.mlp.W_in"
    d_mlp = tensors.shape(inward, 2)[0] if inward in tensors else 0
    sizes: dict[str, Any] = {"n_layers": tensors.layers(rf"{prefix}\.(\d+)\."), "d_model": d_model, "n_heads": n_heads}
    sizes |= {"d_head": d_head, "d_vocab": d_vocab, "n_ctx": tensors.shape("pos_embed.W_pos", 2)[0]}
    settings.agree(**{theirs: sizes[ours] for theirs, ours in _SIZES.items()}, d_vocab=d_vocab, n_ctx=sizes["n_ctx"])
    why = "the file does not say, this is the layout's default"
    activation = settings.choose("activation", "relu", why if d_mlp else "", "act_type", _ACTIVATIONS)
    return TransformerConfig(
        **sizes,
        d_mlp=d_mlp,
        d_vocab_out=None if outputs == d_vocab else outputs,
        **({"activation": activation, "mlp_bias": True} if d_mlp else {}),
        causal=settings.raw("causal", True),
        attention_scale=settings.raw("attention_scale"),
        attention_mix=settings.raw("attention_mix", 1.0),
    )


def _weights(tensors: Tensors, c: TransformerConfig, prefix: str) -> dict[str, Tensor]:
    found = {
        "embed.weight": tensors.take("embed.W_E", c.d_model, c.d_vocab).T,
        "pos_embed.weight": tensors.take("pos_embed.W_pos", c.n_ctx, c.d_model),
        "unembed.weight": tensors.take("unembed.W_U", c.d_model, c.outputs).T,
    }
    for layer in range(c.n_layers):
        theirs, ours = f"{prefix}.{layer}", f"blocks.{layer}"
        found[f"{ours}.attn.qkv.weight"] = fuse(
            tensors.take(f"{theirs}.attn.W_{which}", c.n_heads, c.d_head, c.d_model) for which in "QKV"
        )
        found[f"{ours}.attn.out.weight"] = tensors.take(f"{theirs}.attn.W_O", c.d_model, c.n_heads * c.d_head)
        if not c.attention_only:
            found[f"{ours}.mlp.inward.weight"] = tensors.take(f"{theirs}.mlp.W_in", c.d_mlp, c.d_model)
            found[f"{ours}.mlp.inward.bias"] = tensors.take(f"{theirs}.mlp.b_in", c.d_mlp)
            found[f"{ours}.mlp.outward.weight"] = tensors.take(f"{theirs}.mlp.W_out", c.d_model, c.d_mlp)
            found[f"{ours}.mlp.outward.bias"] = tensors.take(f"{theirs}.mlp.b_out", c.d_model)
    return found


def _training(state: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """The settings that the forward pass does not need, how many steps were taken, and the last losses recorded."""
    found: dict[str, Any] = {k: v for k, v in settings.rest().items() if isinstance(v, str | int | float | None)}
    for key, name in _RESULTS.items():
        value = state.get(key)
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        if isinstance(value, list) and value:
            if name == "loss":
                found["steps"] = len(value)
            value = value[-1]
        if isinstance(value, int | float):
            found.setdefault(name, float(value))
    return found


def _data(stated: Mapping[str, Any], c: TransformerConfig) -> dict[str, Any] | None:
    """What the network was trained on, in the words of `headwork.tasks`; None where the settings do not tell."""
    if {"seq_len", "subseq_len", "num_repeats", "vocab_size"} <= stated.keys():
        return {
            "generator": "repeated-sequences",
            "vocab": stated["vocab_size"],
            "length": stated["seq_len"],
            "segment": [stated["subseq_len"], stated["subseq_len"]],
            "copies": stated["num_repeats"],
            "placement": "scattered",
        }
    if stated.get("fn_name") == "add" and isinstance(stated.get("p"), int):
        return {"generator": "modular-addition", "modulus": stated["p"], "equals": c.d_vocab - 1}
    return None
