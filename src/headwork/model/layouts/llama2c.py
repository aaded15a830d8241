"""The layout of karpathy/llama2.c: its `.bin` export, first version, and the `.pt` checkpoint that its training writes.

The `.bin` file is seven 32-bit integers (dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len; a
negative vocab_size says that the unembedding is not the embedding), then all weights in float32, kind by kind, and
among them two tables of rotary angles that nobody needs. Rotation turns neighbours; the norms' ε is 1e-5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headwork.errors import UserError
from headwork.model.config import TransformerConfig
from headwork.model.layouts import hub
from headwork.model.layouts.converted import Converted, Settings, Tensors

_HEADER = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len")
_HEADER_BYTES = 4 * len(_HEADER)
_LATER_VERSIONS = 0x616B3432  # "ak42" at the start
_COMPILED = "_orig_mod."
_DEFAULT = "the file does not say, this is llama2.c's"


def read(path: Path) -> dict[str, Any]:
    """A `.bin` file in the form of the `.pt` checkpoint: the tensors under `model`, the header under `model_args`.

    Raises `UserError` where the header makes no sense or the file has not the size that it implies.
    """
    size = path.stat().st_size
    header = np.fromfile(path, "<i4", len(_HEADER))
    if len(header) and header[0] == _LATER_VERSIONS:
        raise UserError(f"{path} is of a later version of llama2.c's format; export it with --version 0.")
    args: dict[str, int] = dict(zip(_HEADER, header.tolist()))
    tied = args.get("vocab_size", 0) > 0
    args["vocab_size"] = abs(args.get("vocab_size", 0))
    sensible = len(args) == len(_HEADER) and min(args.values()) > 0 and args["dim"] % args["n_heads"] == 0
    parts = _parts(args, tied) if sensible else {}
    if not sensible or size != _HEADER_BYTES + 4 * sum(math.prod(shape) for shape in parts.values()):
        raise UserError(f"{path} is not a llama2.c model: its {size} bytes do not fit its header {header.tolist()}.")
    numbers = torch.from_numpy(np.fromfile(path, "<f4", offset=_HEADER_BYTES))
    model: dict[str, Tensor] = {}
    for name, flat in zip(parts, numbers.split([math.prod(shape) for shape in parts.values()])):
        tensor = flat.reshape(parts[name])
        if "{}" in name:
            model |= {name.format(layer): one for layer, one in enumerate(tensor)}
        else:
            model[name] = tensor
    return {"model": model, "model_args": args}


def convert(state: Mapping[str, Any], config: Mapping[str, Any]) -> Converted:
    """Read what `read` gives, or llama2.c's `.pt` checkpoint; `config` overrules the settings in it.

    Raises `UserError` for tensors that are missing, unknown or of the wrong shape, or contradict the settings.
    """
    bare, args = state.get("model"), state.get("model_args")
    if not isinstance(bare, Mapping) or not isinstance(args, Mapping):
        raise UserError("The llama2.c checkpoint lacks 'model' or 'model_args'; both are expected.")
    tensors = Tensors(hub.unprefixed(bare, _COMPILED), "llama2.c", "freqs_cos|freqs_sin")
    settings = Settings({**args, **config})
    architecture = _architecture(tensors, settings)
    weights = _weights(tensors, architecture)
    tensors.finish()
    return Converted(architecture, weights, inferred=tuple(settings.inferred))


def _architecture(tensors: Tensors, settings: Settings) -> TransformerConfig:
    d_vocab, d_model = tensors.shape("tok_embeddings.weight", 2)
    n_layers = tensors.layers(r"layers\.(\d+)\.")
    n_heads = hub.n_heads(settings, "n_heads", d_model, "dim")
    d_head = d_model // n_heads
    n_kv_heads = tensors.shape("layers.0.attention.wk.weight", 2)[0] // d_head
    settings.agree(dim=d_model, n_layers=n_layers, n_kv_heads=n_kv_heads, vocab_size=d_vocab)
    return TransformerConfig(
        n_layers=n_layers,
        d_model=d_model,
        n_heads=n_heads,
        d_head=d_head,
        d_vocab=d_vocab,
        n_ctx=settings.choose("n_ctx", 2048, _DEFAULT, "max_seq_len"),
        d_mlp=tensors.shape("layers.0.feed_forward.w1.weight", 2)[0],
        n_kv_heads=None if n_kv_heads == n_heads else n_kv_heads,
        positions="rotary",
        rotary_style="adjacent",
        norm="rmsnorm",
        norm_eps=settings.choose("norm_eps", 1e-5, "", "norm_eps"),
        activation="silu",
        gated_mlp=True,
        tied="output.weight" not in tensors or _same(tensors, "output.weight", "tok_embeddings.weight"),
    )


def _weights(tensors: Tensors, c: TransformerConfig) -> dict[str, Tensor]:
    d, kv = c.d_model, c.kv_heads * c.d_head
    found = {
        "embed.weight": tensors.take("tok_embeddings.weight", c.d_vocab, d),
        **hub.norm(tensors, "norm", "ln_final", d, bias=False),
        **hub.unembedding(tensors, "output.weight", c.tied, c.d_vocab, d),
    }
    for layer in range(c.n_layers):
        theirs, ours = f"layers.{layer}", f"blocks.{layer}"
        found |= hub.norm(tensors, f"{theirs}.attention_norm", f"{ours}.ln1", d, bias=False)
        found |= hub.norm(tensors, f"{theirs}.ffn_norm", f"{ours}.ln2", d, bias=False)
        found[f"{ours}.attn.qkv.weight"] = torch.cat(
            [tensors.take(f"{theirs}.attention.w{which}.weight", n, d) for which, n in (("q", d), ("k", kv), ("v", kv))]
        )
        found |= hub.linear(tensors, f"{theirs}.attention.wo", f"{ours}.attn.out", d, d, bias=False)
        found[f"{ours}.mlp.inward.weight"] = torch.cat(
            [tensors.take(f"{theirs}.feed_forward.{which}.weight", c.d_mlp, d) for which in ("w1", "w3")]
        )
        found |= hub.linear(tensors, f"{theirs}.feed_forward.w2", f"{ours}.mlp.outward", c.d_mlp, d, bias=False)
    return found


def _parts(args: Mapping[str, int], tied: bool) -> dict[str, tuple[int, ...]]:
    """The parts of a `.bin` file in order; those with `{}` hold all layers."""
    d, wide, layers, vocab = args["dim"], args["hidden_dim"], args["n_layers"], args["vocab_size"]
    d_head = d // args["n_heads"]
    kv, angles = args["n_kv_heads"] * d_head, (args["max_seq_len"], d_head // 2)
    parts: dict[str, tuple[int, ...]] = {
        "tok_embeddings.weight": (vocab, d),
        "layers.{}.attention_norm.weight": (layers, d),
        "layers.{}.attention.wq.weight": (layers, d, d),
        "layers.{}.attention.wk.weight": (layers, kv, d),
        "layers.{}.attention.wv.weight": (layers, kv, d),
        "layers.{}.attention.wo.weight": (layers, d, d),
        "layers.{}.ffn_norm.weight": (layers, d),
        "layers.{}.feed_forward.w1.weight": (layers, wide, d),
        "layers.{}.feed_forward.w2.weight": (layers, d, wide),
        "layers.{}.feed_forward.w3.weight": (layers, wide, d),
        "norm.weight": (d,),
        "freqs_cos": angles,
        "freqs_sin": angles,
    }
    return parts if tied else parts | {"output.weight": (vocab, d)}


def _same(tensors: Tensors, one: str, other: str) -> bool:
    """Whether two tensors are equal: the `.pt` checkpoint holds a shared matrix under both names."""
    first, second = tensors.peek(one), tensors.peek(other)
    return first is not None and second is not None and torch.equal(first, second)
