"""TransformerLens's layout: the state dict of a `HookedTransformer`, with its configuration where there is one.

`embed.W_E [d_vocab, d_model]`, `blocks.l.attn.W_Q [head, d_model, d_head]`, `W_O [head, d_head, d_model]`,
`mlp.W_in [d_model, d_mlp]`, `unembed.W_U [d_model, d_vocab_out]`; under grouped-query attention `_W_K` and `_W_V`;
in SoLU networks `mlp.ln`, a norm of the neurons. The tensors give the sizes, and rotary tables their base and style.
The mask says nothing: it is a lower triangle in bidirectional networks too, which do not use it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from headwork.errors import UserError
from headwork.model.config import TransformerConfig
from headwork.model.layouts.converted import Converted, Settings, Tensors, fuse
from headwork.model.rotary import rotary_table

_BUFFERS = r"blocks\.\d+\.attn\.(mask|IGNORE|rotary_sin|rotary_cos)"
_ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "solu": "solu",
    "solu_ln": "solu_ln",
}
_NORMS = {"LN": "layernorm", "LNPre": "layernorm", "RMS": "rmsnorm", "RMSPre": "rmsnorm", None: "none"}
_POSITIONS = {"standard": "learned", "shortformer": "shortformer", "rotary": "rotary"}
_UNSEEN = "the file does not say, this is TransformerLens's default"
_DIRECTIONS = {"causal": True, "bidirectional": False}
# What these say of the forward pass in every network that we can represent; harmless values first.
_UNSUPPORTED = {
    "scale_attn_by_inverse_layer_idx": (False, None),
    "attn_scores_soft_cap": (-1.0, -1, 0, None),
    "output_logits_soft_cap": (-1.0, -1, 0, None),
    "num_experts": (None,),
    "post_embedding_ln": (False, None),
    "use_normalization_before_and_after": (False, None),
    "use_NTK_by_parts_rope": (False, None),
}


def convert(state: Mapping[str, Any], config: Mapping[str, Any]) -> Converted:
    """Read a HookedTransformer's state dict; `config` may use TransformerLens's keys or ours.

    What neither states is TransformerLens's default and listed as inferred. Raises `UserError` for tensors that are
    missing, unknown or of the wrong shape, and for settings that contradict the tensors or are not supported.
    """
    tensors = Tensors(state, "TransformerLens", _BUFFERS)
    settings = Settings(_renamed(config))
    architecture = _architecture(tensors, settings)
    weights = _weights(tensors, architecture, settings)
    tensors.finish()
    return Converted(architecture, weights, training=settings.rest(), inferred=tuple(settings.inferred))


def _renamed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings under the library's present names: its own toy networks state two of them under older ones."""
    found = dict(config)
    if "normalization" in found:
        found.setdefault("normalization_type", found.pop("normalization"))
    if "shortformer_pos" in found:
        found.setdefault("positional_embedding_type", "shortformer" if found.pop("shortformer_pos") else "standard")
    return found


def _architecture(tensors: Tensors, settings: Settings) -> TransformerConfig:
    settings.refuse(**_UNSUPPORTED)
    sizes = _sizes(tensors, settings)
    d_head = sizes["d_head"]
    first = "blocks.0.attn"
    positions = _positions(tensors, settings)
    norm = _norm(tensors, settings)
    settings.refuse(final_rms=(False, None, *([True] if norm == "rmsnorm" else [])))
    return TransformerConfig(
        **sizes,
        **_window(settings, sizes["n_layers"]),
        **_rotary(tensors, settings, d_head) if positions == "rotary" else {},
        positions=positions,
        norm=norm,
        norm_eps=settings.choose("norm_eps", 1e-5, _UNSEEN if norm != "none" else "", "eps"),
        **_mlp_settings(tensors, settings) if sizes["d_mlp"] else {},
        causal=settings.choose("causal", True, _UNSEEN, "attention_dir", _DIRECTIONS),
        pad_token=settings.raw("pad_token"),
        qk_norm=f"{first}.q_norm.w" in tensors,
        qkv_bias=f"{first}.b_Q" in tensors,
        out_bias=f"{first}.b_O" in tensors,
        unembed_bias="unembed.b_U" in tensors,
        attention_scale=_scale(settings, d_head),
        attention_mix=settings.raw("attention_mix", 1.0),
    )


def _mlp_settings(tensors: Tensors, settings: Settings) -> dict[str, Any]:
    usual, why = "relu", "the file does not say; TransformerLens has no default, and small networks mostly use it"
    if "blocks.0.mlp.ln.w" in tensors:
        usual, why = "solu_ln", "the file does not say, but has a norm inside the MLP, as SoLU networks do"
    return {
        "activation": settings.choose("activation", usual, why, "act_fn", _ACTIVATIONS),
        "gated_mlp": "blocks.0.mlp.W_gate" in tensors,
        "parallel": settings.choose("parallel", False, _UNSEEN, "parallel_attn_mlp"),
        "mlp_bias": "blocks.0.mlp.b_out" in tensors,
    }


def _window(settings: Settings, n_layers: int) -> dict[str, Any]:
    """Which layers see a window only, as `attn_types` lists them."""
    if not settings.raw("use_local_attn"):
        return {}
    kinds = settings.raw("attn_types")
    if not isinstance(kinds, list) or len(kinds) < n_layers or not {"global", "local"}.issuperset(map(str, kinds)):
        raise UserError(
            f"The checkpoint's configuration has attn_types = {kinds!r}; one of 'global' and 'local' for each of the "
            f"{n_layers} layers is expected."
        )
    local = tuple(layer for layer in range(n_layers) if kinds[layer] == "local")
    return {"window": settings.raw("window_size"), "local_layers": local}


def _sizes(tensors: Tensors, settings: Settings) -> dict[str, Any]:
    d_vocab, d_model = tensors.shape("embed.W_E", 2)
    outputs = tensors.shape("unembed.W_U", 2)[1]
    n_layers = tensors.layers(r"blocks\.(\d+)\.")
    n_heads, _, d_head = tensors.shape("blocks.0.attn.W_Q", 3) if n_layers else (1, 0, d_model)
    sizes: dict[str, Any] = {"n_layers": n_layers, "d_model": d_model, "n_heads": n_heads, "d_head": d_head}
    sizes["d_vocab"] = d_vocab
    settings.agree(**(sizes if n_layers else {}), d_vocab_out=outputs)
    for name in ("W_pos", "rotary_sin", "mask"):  # each has one row a position
        full = {"W_pos": "pos_embed.W_pos"}.get(name, f"blocks.0.attn.{name}")
        if full in tensors:
            sizes["n_ctx"] = tensors.shape(full, 2)[0]
            settings.agree(n_ctx=sizes["n_ctx"])
            break
    else:
        if not isinstance(settings.raw("n_ctx"), int):
            raise UserError(
                "The TransformerLens checkpoint does not say how many positions the network has; give a configuration "
                "with n_ctx."
            )
        sizes["n_ctx"] = settings.raw("n_ctx")
    sizes["d_mlp"] = tensors.shape("blocks.0.mlp.W_in", 2)[1] if "blocks.0.mlp.W_in" in tensors else 0
    if sizes["d_mlp"]:
        settings.agree(d_mlp=sizes["d_mlp"])
    if "blocks.0.attn._W_K" in tensors:
        sizes["n_kv_heads"] = tensors.shape("blocks.0.attn._W_K", 3)[0]
        settings.agree(n_key_value_heads=sizes["n_kv_heads"])
    if outputs != d_vocab:
        sizes["d_vocab_out"] = outputs
    return sizes


def _positions(tensors: Tensors, settings: Settings) -> Any:
    if "pos_embed.W_pos" in tensors:
        why = "the file does not say whether positions are added to the stream or, as shortformer, to queries and keys"
        return settings.choose("positions", "learned", why, "positional_embedding_type", _POSITIONS)
    rotary = "blocks.0.attn.rotary_sin" in tensors
    return settings.choose(
        "positions",
        "rotary" if rotary else "none",
        "" if rotary else "the file has neither position embeddings nor rotary tables",
        "positional_embedding_type",
        _POSITIONS,
    )


def _norm(tensors: Tensors, settings: Settings) -> Any:
    weights, biases = "ln_final.w" in tensors, "ln_final.b" in tensors
    if weights:
        return settings.choose("norm", "layernorm" if biases else "rmsnorm", "", "normalization_type", _NORMS)
    why = "the file has no norm weights; if they were folded away (LNPre, RMSPre), only a configuration can say so"
    return settings.choose("norm", "none", why, "normalization_type", _NORMS)


def _scale(settings: Settings, d_head: int) -> float | None:
    """The factor on query–key products; TransformerLens divides by `attn_scale`, where −1 stands for √d_head."""
    divisor = settings.number("attn_scale", -1)
    stated = None if divisor == -1 else 1 / divisor

    def by_switch(on: bool) -> float | None:
        return stated if on else 1.0

    why = f"1/√d_head; {_UNSEEN}" if stated is None else ""
    return settings.choose("attention_scale", stated, why, "use_attn_scale", by_switch)


def _rotary(tensors: Tensors, settings: Settings, d_head: int) -> dict[str, Any]:
    """Which entries are turned, how they pair, and the base: from the tables where the file has them."""
    sin = tensors.peek("blocks.0.attn.rotary_sin")
    if sin is None or len(sin) < 2:
        why = "the file has no rotary tables, this is TransformerLens's default"
        return {
            "rotary_dim": settings.choose("rotary_dim", d_head, why, "rotary_dim"),
            "rotary_base": settings.choose("rotary_base", 10_000.0, why, "rotary_base"),
            "rotary_style": settings.choose("rotary_style", "half", why, "rotary_adjacent_pairs", _style),
        }
    r = tensors.shape("blocks.0.attn.rotary_sin", 2)[1]
    angles = sin[1].double().asin()
    found: dict[str, Any] = {
        "rotary_dim": r,
        # Neighbours turn together in pairs (2i, 2i + 1); in pairs (i, i + r/2) the first two angles differ.
        "rotary_style": "adjacent" if r > 2 and torch.isclose(angles[0], angles[1]) else "half",
        # The slowest angle is base^(2/r − 1); rounded to six digits, since tables are stored in low precision.
        "rotary_base": float(f"{float(angles[-1]) ** (r / (2 - r)):.6g}") if r > 2 else 10_000.0,
    }
    settings.agree(rotary_dim=r)
    _check_table(sin, found, d_head)
    return found


def _style(adjacent: bool) -> str:
    return "adjacent" if adjacent else "half"


def _check_table(sin: Tensor, found: Mapping[str, Any], d_head: int) -> None:
    """Raise `UserError` if the file's rotary table is not the one that base and style give."""
    probe = TransformerConfig(
        n_layers=0, d_model=1, n_heads=1, d_head=d_head, d_vocab=1, n_ctx=1, positions="rotary", **found
    )
    ours = rotary_table(probe, torch.arange(sin.shape[0]), torch.float64)[1].squeeze(1)
    # Ours carries the sign of a rotation: the first entry of each pair has the negative sine.
    first = slice(0, None, 2) if found["rotary_style"] == "adjacent" else slice(0, ours.shape[-1] // 2)
    ours[:, first] *= -1
    if (ours - sin.double()).abs().max() > 1e-2:
        raise UserError("The TransformerLens checkpoint's rotary tables are not of the form base^(−2i/r).")


def _weights(tensors: Tensors, c: TransformerConfig, settings: Settings) -> dict[str, Tensor]:
    found = {"embed.weight": tensors.take("embed.W_E", c.d_vocab, c.d_model)}
    if c.positions in ("learned", "shortformer"):
        found["pos_embed.weight"] = tensors.take("pos_embed.W_pos", c.n_ctx, c.d_model)
    for layer in range(c.n_layers):
        here = f"blocks.{layer}"
        found |= _attention(tensors, c, f"{here}.attn")
        found |= _normed(tensors, c, f"{here}.ln1")
        if not c.attention_only:
            found |= _mlp(tensors, c, f"{here}.mlp")
            found |= _neuron_norm(tensors, c, f"{here}.mlp.ln")
            found |= _normed(tensors, c, f"{here}.ln2")
    found |= _normed(tensors, c, "ln_final")
    if c.norm != "none" and "ln_final.w" not in tensors:
        settings.inferred.append("the norms have gain 1 and bias 0: the file has no norm weights")
    if c.neuron_norm and "blocks.0.mlp.ln.w" not in tensors:
        settings.inferred.append("the norms inside the MLPs have gain 1 and bias 0: the file has no weights for them")
    found["unembed.weight"] = tensors.take("unembed.W_U", c.d_model, c.outputs).T
    if c.unembed_bias:
        found["unembed.bias"] = tensors.take("unembed.b_U", c.outputs)
    return found


def _attention(tensors: Tensors, c: TransformerConfig, here: str) -> dict[str, Tensor]:
    grouped = "_" if c.n_kv_heads is not None else ""
    heads = {"Q": ("", c.n_heads), "K": (grouped, c.kv_heads), "V": (grouped, c.kv_heads)}
    found = {
        f"{here}.qkv.weight": fuse(
            tensors.take(f"{here}.{mark}W_{which}", n, c.d_model, c.d_head).transpose(1, 2)
            for which, (mark, n) in heads.items()
        ),
        f"{here}.out.weight": tensors.take(f"{here}.W_O", c.n_heads, c.d_head, c.d_model).flatten(0, 1).T,
    }
    if c.qk_norm:
        found |= {f"{here}.{which}.w": tensors.take(f"{here}.{which}.w", c.d_head) for which in ("q_norm", "k_norm")}
    if c.qkv_bias:
        found[f"{here}.qkv.bias"] = fuse(
            tensors.take(f"{here}.{mark}b_{which}", n, c.d_head) for which, (mark, n) in heads.items()
        )
    if c.out_bias:
        found[f"{here}.out.bias"] = tensors.take(f"{here}.b_O", c.d_model)
    return found


def _mlp(tensors: Tensors, c: TransformerConfig, here: str) -> dict[str, Tensor]:
    inward = [tensors.take(f"{here}.W_in", c.d_model, c.d_mlp).T]
    if c.gated_mlp:
        inward.insert(0, tensors.take(f"{here}.W_gate", c.d_model, c.d_mlp).T)
    found = {
        f"{here}.inward.weight": torch.cat(inward),
        f"{here}.outward.weight": tensors.take(f"{here}.W_out", c.d_mlp, c.d_model).T,
    }
    if c.mlp_bias:
        bias = tensors.take(f"{here}.b_in", c.d_mlp)
        # TransformerLens adds b_in after the gate's product; ours is inside, so it is carried through W_out instead.
        carried = bias @ tensors.take(f"{here}.W_out", c.d_mlp, c.d_model) if c.gated_mlp else 0
        found[f"{here}.inward.bias"] = bias.new_zeros(2 * c.d_mlp) if c.gated_mlp else bias
        found[f"{here}.outward.bias"] = tensors.take(f"{here}.b_out", c.d_model) + carried
    return found


def _neuron_norm(tensors: Tensors, c: TransformerConfig, here: str) -> dict[str, Tensor]:
    if not c.neuron_norm:
        return {}
    if "blocks.0.mlp.ln.w" not in tensors:
        return {f"{here}.w": torch.ones(c.d_mlp), f"{here}.b": torch.zeros(c.d_mlp)}
    return {f"{here}.{part}": tensors.take(f"{here}.{part}", c.d_mlp) for part in "wb"}


def _normed(tensors: Tensors, c: TransformerConfig, here: str) -> dict[str, Tensor]:
    if c.norm == "none":
        return {}
    if f"{here}.w" not in tensors and "ln_final.w" not in tensors:
        found = {f"{here}.w": torch.ones(c.d_model)}
        return found | ({f"{here}.b": torch.zeros(c.d_model)} if c.norm == "layernorm" else {})
    found = {f"{here}.w": tensors.take(f"{here}.w", c.d_model)}
    return found | ({f"{here}.b": tensors.take(f"{here}.b", c.d_model)} if c.norm == "layernorm" else {})
