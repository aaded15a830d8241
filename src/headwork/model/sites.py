"""Sites: the named activations of a transformer, each declared once.

Names follow TransformerLens without its `hook_` prefix; the prefixed names are accepted as aliases.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

from headwork.errors import UserError, unknown
from headwork.model.config import TransformerConfig


@dataclass(frozen=True)
class Site:
    """One kind of activation: `name` has `{l}` for the layer, `axes` name its dimensions in order.

    `stage` orders the sites of a block: an edit at one stage changes only that stage and the later ones.
    """

    name: str
    axes: tuple[str, ...]
    formula: str
    stage: int
    exists: Callable[[TransformerConfig], bool] = lambda c: True

    @property
    def per_layer(self) -> bool:
        return "{l}" in self.name


def _normed(c: TransformerConfig) -> bool:
    return c.norm != "none"


def _mlp(c: TransformerConfig) -> bool:
    return not c.attention_only


def _qk_norm(c: TransformerConfig) -> bool:
    return c.qk_norm


def _neuron_norm(c: TransformerConfig) -> bool:
    return c.neuron_norm


_STREAM = ("batch", "pos", "d_model")
_SCALE = ("batch", "pos", "one")
_HEAD = ("batch", "pos", "head", "d_head")
_HEAD_SCALE = ("batch", "pos", "head", "one")
_KV = ("batch", "pos", "kv_head", "d_head")
_KV_SCALE = ("batch", "pos", "kv_head", "one")
_MAP = ("batch", "head", "query", "key")
_NEURON = ("batch", "pos", "d_mlp")

# Stages of a block at which a resumed pass can start (see headwork.engine.resume).
(
    BLOCK_INPUT,
    ATTENTION_NORM,
    PROJECTED,
    HEAD_NORM,
    ROTATED,
    SCORED,
    MIXED,
    ATTENTION_OUT,
    BETWEEN,
    MLP_IN,
    MLP_OUT,
    BLOCK_OUTPUT,
) = range(12)

SITES: tuple[Site, ...] = (
    Site("embed", _STREAM, "W_E[token]", 0),
    Site(
        "pos_embed",
        _STREAM,
        "W_pos[position]; shortformer adds it, after the norm, to what queries and keys read only",
        0,
        lambda c: c.positions in ("learned", "shortformer"),
    ),
    Site("blocks.{l}.resid_pre", _STREAM, "the residual stream before the block", BLOCK_INPUT),
    Site("blocks.{l}.ln1.scale", _SCALE, "what the first norm divides by: √(variance + ε)", ATTENTION_NORM, _normed),
    Site(
        "blocks.{l}.ln1.normalized", _STREAM, "the first norm's output, gain and bias included", ATTENTION_NORM, _normed
    ),
    Site(
        "blocks.{l}.attn.q",
        _HEAD,
        "normalized (shortformer: + pos_embed) · W_Q + b_Q, before norm and rotation",
        PROJECTED,
    ),
    Site(
        "blocks.{l}.attn.k",
        _KV,
        "normalized (shortformer: + pos_embed) · W_K + b_K, before norm and rotation",
        PROJECTED,
    ),
    Site("blocks.{l}.attn.v", _KV, "normalized · W_V + b_V", PROJECTED),
    Site("blocks.{l}.attn.q_norm.scale", _HEAD_SCALE, "what the queries' norm divides by", HEAD_NORM, _qk_norm),
    Site("blocks.{l}.attn.q_norm.normalized", _HEAD, "q after its norm, gain included", HEAD_NORM, _qk_norm),
    Site("blocks.{l}.attn.k_norm.scale", _KV_SCALE, "what the keys' norm divides by", HEAD_NORM, _qk_norm),
    Site("blocks.{l}.attn.k_norm.normalized", _KV, "k after its norm, gain included", HEAD_NORM, _qk_norm),
    Site("blocks.{l}.attn.rot_q", _HEAD, "q, turned by its position", ROTATED, lambda c: c.positions == "rotary"),
    Site("blocks.{l}.attn.rot_k", _KV, "k, turned by its position", ROTATED, lambda c: c.positions == "rotary"),
    Site("blocks.{l}.attn.attn_scores", _MAP, "q · k × scale; −∞ where the query may not look", SCORED),
    Site(
        "blocks.{l}.attn.pattern",
        _MAP,
        "softmax over keys of attn_scores (mixed with a constant if configured); 0 where a query sees no key",
        SCORED,
    ),
    Site("blocks.{l}.attn.z", _HEAD, "Σ over keys of pattern · v", MIXED),
    Site("blocks.{l}.attn.result", ("batch", "pos", "head", "d_model"), "z[head] · W_O[head]", MIXED),
    Site("blocks.{l}.attn_out", _STREAM, "Σ over heads of result + b_O", ATTENTION_OUT),
    Site("blocks.{l}.resid_mid", _STREAM, "resid_pre + attn_out", BETWEEN, lambda c: _mlp(c) and not c.parallel),
    Site("blocks.{l}.ln2.scale", _SCALE, "what the second norm divides by", BETWEEN, lambda c: _normed(c) and _mlp(c)),
    Site(
        "blocks.{l}.ln2.normalized",
        _STREAM,
        "the second norm's output, gain and bias included",
        BETWEEN,
        lambda c: _normed(c) and _mlp(c),
    ),
    Site("blocks.{l}.mlp.pre", _NEURON, "normalized · W_in + b_in (the gate's branch where gated)", MLP_IN, _mlp),
    Site(
        "blocks.{l}.mlp.pre_linear",
        _NEURON,
        "normalized · W_linear + b_linear: what the gate multiplies",
        MLP_IN,
        lambda c: _mlp(c) and c.gated_mlp,
    ),
    Site("blocks.{l}.mlp.mid", _NEURON, "activation(pre), before the neurons' norm", MLP_IN, _neuron_norm),
    Site("blocks.{l}.mlp.ln.scale", _SCALE, "what the neurons' norm divides by", MLP_IN, _neuron_norm),
    Site(
        "blocks.{l}.mlp.ln.normalized",
        _NEURON,
        "that norm's output, gain and bias included",
        MLP_IN,
        _neuron_norm,
    ),
    Site(
        "blocks.{l}.mlp.post",
        _NEURON,
        "activation(pre), times pre_linear where gated; where there is a neurons' norm, its output",
        MLP_IN,
        _mlp,
    ),
    Site("blocks.{l}.mlp_out", _STREAM, "post · W_out + b_out", MLP_OUT, _mlp),
    Site("blocks.{l}.resid_post", _STREAM, "the residual stream after the block", BLOCK_OUTPUT),
    Site("ln_final.scale", _SCALE, "what the final norm divides by", 0, _normed),
    Site("ln_final.normalized", _STREAM, "the final norm's output", 0, _normed),
    Site("logits", ("batch", "pos", "d_vocab_out"), "normalized · W_U + b_U", 0),
)


def key_site(config: TransformerConfig, layer: int) -> str:
    """The site of a layer's keys as the queries meet them: after their norm and rotation, where there are any."""
    last = "rot_k" if config.turned else "k_norm.normalized" if config.qk_norm else "k"
    return f"blocks.{layer}.attn.{last}"


@lru_cache(maxsize=64)
def sites(config: TransformerConfig) -> dict[str, Site]:
    """Every site of this architecture by full name, in the order of the forward pass."""
    before = [s for s in SITES if not s.per_layer and s.name in ("embed", "pos_embed")]
    after = [s for s in SITES if not s.per_layer and s not in before]
    found = {s.name: s for s in before if s.exists(config)}
    for layer in range(config.n_layers):
        found |= {s.name.format(l=layer): s for s in SITES if s.per_layer and s.exists(config)}
    return found | {s.name: s for s in after if s.exists(config)}


def layer_of(name: str) -> int | None:
    """The layer in a full site name; None for the sites outside the blocks."""
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "blocks" else None


def resolve(config: TransformerConfig, names: Iterable[str]) -> list[str]:
    """Full names for what a user asked for: aliases and `*` patterns (`blocks.*.attn.z`) are expanded, order kept.

    Raises `UserError` naming the nearest valid sites.
    """
    if isinstance(names, str):
        names = [names]
    valid = sites(config)
    found: dict[str, None] = {}
    for asked in names:
        plain = _without_prefix(asked)
        matches = [plain] if plain in valid else fnmatch.filter(valid, plain) if "*" in plain else []
        if not matches:
            layers = f"layers 0–{config.n_layers - 1}" if config.n_layers else "no layers"
            hint = f"`headwork sites` lists all of them; this model has {layers}."
            raise unknown("site", asked, valid, hint)
        found |= dict.fromkeys(matches)
    return list(found)


def _without_prefix(name: str) -> str:
    return ".".join(part.removeprefix("hook_") for part in name.split("."))


@dataclass(frozen=True, order=True)
class Head:
    """One attention head, written `layer.head`."""

    layer: int
    head: int

    def __str__(self) -> str:
        return f"{self.layer}.{self.head}"


def parse_head(text: str, config: TransformerConfig) -> Head:
    """Read `3.5`; raises `UserError` where the model has no such head."""
    valid = heads(config)
    layer, _, head = text.partition(".")
    found = Head(int(layer), int(head)) if layer.isdecimal() and head.isdecimal() else None
    if found is None or found not in valid:
        nearest = f"{valid[0]} to {valid[-1]}" if valid else "none, since it has no layers"
        raise UserError(
            f"Unknown head {text!r}: heads are written layer.head, and this model has "
            f"{config.n_layers} layers of {config.n_heads} heads ({nearest})."
        )
    return found


def heads(config: TransformerConfig) -> list[Head]:
    """All heads, layer by layer."""
    return [Head(layer, h) for layer in range(config.n_layers) for h in range(config.n_heads)]
