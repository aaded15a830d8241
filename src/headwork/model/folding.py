"""Weight folding: the same function with norms' gains inside the weights that read them, and without idle directions.

Each function leaves its network as it is and returns another, whose card says what was folded. Nothing is folded unless
one of them is called. The simplifications are those of Elhage et al. 2021, as TransformerLens makes them when it loads.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from headwork.errors import UserError
from headwork.model.card import ModelCard
from headwork.model.checkpoints import assemble
from headwork.model.config import TransformerConfig
from headwork.model.outline import outline
from headwork.model.transformer import Transformer

State = dict[str, Tensor]


def fold_norms(model: Transformer) -> Transformer:
    """Gains and biases of all norms inside the weights that read them: norms only centre and scale from then on.

    The residual stream, attention and logits stay; `normalized` sites lose gain and bias. Biases and an unembedding of
    its own are added where they are needed. The norms of queries and keys stay, since rotation follows them. Raises
    `UserError` for a network without norms, and under shortformer, where positions come between norm and weights.
    """
    config = model.config
    if config.norm == "none" and not config.neuron_norm:
        raise UserError("This network has no norms whose gains could be folded.")
    if config.norm != "none" and config.positions == "shortformer":
        raise UserError(
            "Shortformer adds positions after the norm, so its gains cannot be folded into queries and keys."
        )
    state = _untied(model)
    for norm, reader in _readers(config):
        gain, bias = state[f"{norm}.w"], state.get(f"{norm}.b")
        weight = state[f"{reader}.weight"]
        if bias is not None:
            before = state.get(f"{reader}.bias", weight.new_zeros(len(weight)))
            state[f"{reader}.bias"] = before + weight @ bias
            state[f"{norm}.b"] = torch.zeros_like(bias)
        state[f"{reader}.weight"] = weight * gain
        state[f"{norm}.w"] = torch.ones_like(gain)
    centred = config.norm == "layernorm"
    folded = dataclasses.replace(
        config,
        tied=False,
        qkv_bias=config.qkv_bias or centred,
        mlp_bias=config.mlp_bias or centred or config.neuron_norm,
        unembed_bias=config.unembed_bias or centred,
    )
    return _rebuilt(model, folded, state, "the norms' gains and biases are in the weights that read them")


def centre_writing_weights(model: Transformer) -> Transformer:
    """Everything that writes to the residual stream without its mean over `d_model`, which a LayerNorm removes anyway.

    Logits stay; the residual stream loses its mean. Raises `UserError` where the stream is not read through LayerNorm
    alone.
    """
    if model.config.norm != "layernorm":
        raise UserError(
            f"Only LayerNorm ignores the mean of the residual stream; this network's norm is {model.config.norm}."
        )
    state = _untied(model)
    tables = ["embed.weight", *(["pos_embed.weight"] if model.config.positions == "learned" else [])]
    for name in tables:
        state[name] = state[name] - state[name].mean(-1, keepdim=True)
    for name in [name for name in state if name.endswith((".attn.out.weight", ".mlp.outward.weight"))]:
        state[name] = state[name] - state[name].mean(0)
    for name in [name for name in state if name.endswith((".attn.out.bias", ".mlp.outward.bias"))]:
        state[name] = state[name] - state[name].mean()
    untied = dataclasses.replace(model.config, tied=False)
    return _rebuilt(model, untied, state, "what writes to the residual stream has mean 0 over d_model")


def centre_unembedding(model: Transformer) -> Transformer:
    """The unembedding without its mean over the vocabulary, and its bias too: probabilities stay, logits shift by one
    number a position.
    """
    state = _untied(model)
    for name in [name for name in ("unembed.weight", "unembed.bias") if name in state]:
        state[name] = state[name] - state[name].mean(0)
    untied = dataclasses.replace(model.config, tied=False)
    return _rebuilt(model, untied, state, "the unembedding has mean 0 over the vocabulary")


def _readers(config: TransformerConfig) -> list[tuple[str, str]]:
    """Each norm's name and that of the linear map that reads it."""
    layers = [f"blocks.{layer}" for layer in range(config.n_layers)]
    pairs = []
    if config.norm != "none":
        pairs = [(f"{block}.ln1", f"{block}.attn.qkv") for block in layers] + [("ln_final", "unembed")]
        pairs += [] if config.attention_only else [(f"{block}.ln2", f"{block}.mlp.inward") for block in layers]
    return pairs + ([(f"{block}.mlp.ln", f"{block}.mlp.outward") for block in layers] if config.neuron_norm else [])


def _untied(model: Transformer) -> State:
    """A copy of all weights, the unembedding apart from the embedding."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _rebuilt(model: Transformer, config: TransformerConfig, state: State, what: str) -> Transformer:
    """The network of these weights; biases that the configuration has and the weights lack are 0."""
    expected = outline(config).state_dict()
    zeros = {name: model.W_E.new_zeros(like.shape) for name, like in expected.items() if name not in state}
    card = model.card or ModelCard(name="unnamed")
    card = dataclasses.replace(card, sha256="", folded=(*card.folded, what))
    found = assemble(config, state | zeros, card, model.dtype)
    found.tokenizer_source = model.tokenizer_source
    return found
