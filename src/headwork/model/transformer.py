"""A transformer whose every named activation can be read, replaced, or taken as given.

Weights are stored fused where that is fast and exposed under the field's names and shapes (`W_Q [head, d_model,
d_head]`) as views. The forward pass registers nothing on the module: whoever wants to look inside hands it a `Tap`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from headwork.errors import UserError
from headwork.model.card import ModelCard
from headwork.model.config import TransformerConfig
from headwork.model.rotary import rotary_table, rotate

if TYPE_CHECKING:
    from headwork.model.tokenizer import Tokenizer

Stream = Float[Tensor, "batch pos d_model"]
PerHead = Float[Tensor, "batch pos head d_head"]
PerKeyHead = Float[Tensor, "batch keys kv_head d_head"]


@runtime_checkable
class Tap(Protocol):
    """What a forward pass meets at every site.

    `given` may return a value known beforehand, which spares the pass the work of computing it; `wants` says whether a
    site that costs extra must be computed; calling it with the value returns what the pass goes on with.
    """

    def given(self, site: str) -> Tensor | None: ...

    def wants(self, site: str) -> bool: ...

    def __call__(self, site: str, value: Tensor) -> Tensor: ...


class NoTap:
    """Looks at nothing and changes nothing."""

    def given(self, site: str) -> Tensor | None:
        return None

    def wants(self, site: str) -> bool:
        return False

    def __call__(self, site: str, value: Tensor) -> Tensor:
        return value


NO_TAP = NoTap()


@dataclass(frozen=True)
class Frame:
    """What all layers of one pass share: which positions are computed, who may look where, and earlier keys and values.

    `visible[b, query, key]` (b may be 1) covers all keys, those of `past` first; `local` is the same for layers that
    see a window only. `past[layer]` holds the keys, as the queries meet them, and the values of the positions before
    the first one computed. `key_positions` is what shortformer adds to the normed input of queries and keys.
    """

    visible: Bool[Tensor, "#batch query key"] | None
    rotation: tuple[Tensor, Tensor] | None
    key_positions: Stream | None
    past: Mapping[int, tuple[PerKeyHead, PerKeyHead]] | None
    local: Bool[Tensor, "#batch query key"] | None = None


class Norm(nn.Module):
    """LayerNorm (`centred`) or RMSNorm with the scale exposed as a site: x ↦ (x − mean) / √(variance + ε) · w + b."""

    def __init__(self, width: int, eps: float, centred: bool) -> None:
        super().__init__()
        self.centred, self.eps = centred, eps
        self.w = nn.Parameter(torch.ones(width))
        self.b = nn.Parameter(torch.zeros(width)) if centred else None

    def forward(self, x: Float[Tensor, "batch pos *axes"], tap: Tap, here: str) -> Float[Tensor, "batch pos *axes"]:
        if tap.wants(f"{here}.scale"):
            if self.centred:
                x = x - x.mean(-1, keepdim=True)
            x = x / tap(f"{here}.scale", (x.square().mean(-1, keepdim=True) + self.eps).sqrt()) * self.w
            x = x if self.b is None else x + self.b
        elif self.centred:
            x = functional.layer_norm(x, self.w.shape, self.w, self.b, self.eps)
        else:
            x = functional.rms_norm(x, self.w.shape, self.w, self.eps)
        return tap(f"{here}.normalized", x)


class NoNorm(nn.Module):
    """Stands where an architecture has no norm."""

    def forward(self, x: Stream, tap: Tap, here: str) -> Stream:
        return x


def norm(config: TransformerConfig) -> Norm | NoNorm:
    """The norm of the residual stream that a configuration asks for."""
    return NoNorm() if config.norm == "none" else Norm(config.d_model, config.norm_eps, config.norm == "layernorm")


class Attention(nn.Module):
    """Multi-head attention; queries, keys and values come from one fused matrix."""

    def __init__(self, config: TransformerConfig, local: bool = False) -> None:
        """`local`: queries see only the keys in the configuration's window."""
        super().__init__()
        self.config, self.local = config, local
        fused = (config.n_heads + 2 * config.kv_heads) * config.d_head
        self.qkv = nn.Linear(config.d_model, fused, bias=config.qkv_bias)
        self.out = nn.Linear(config.n_heads * config.d_head, config.d_model, bias=config.out_bias)
        if config.qk_norm:
            self.q_norm = Norm(config.d_head, config.norm_eps, centred=False)
            self.k_norm = Norm(config.d_head, config.norm_eps, centred=False)

    def _part(self, which: str) -> tuple[slice, int]:
        """The rows of the fused matrix that are queries, keys or values, and how many heads they are."""
        q, k = self.config.n_heads * self.config.d_head, self.config.kv_heads * self.config.d_head
        rows = {"q": slice(0, q), "k": slice(q, q + k), "v": slice(q + k, q + 2 * k)}[which]
        return rows, self.config.n_heads if which == "q" else self.config.kv_heads

    def _weight(self, which: str) -> Float[Tensor, "head d_model d_head"]:
        rows, heads = self._part(which)
        return self.qkv.weight[rows].unflatten(0, (heads, self.config.d_head)).transpose(1, 2)

    def _bias(self, which: str) -> Float[Tensor, "head d_head"]:
        rows, heads = self._part(which)
        bias = self.qkv.weight.new_zeros(self.qkv.weight.shape[0]) if self.qkv.bias is None else self.qkv.bias
        return bias[rows].unflatten(0, (heads, self.config.d_head))

    @property
    def W_Q(self) -> Float[Tensor, "head d_model d_head"]:
        return self._weight("q")

    @property
    def W_K(self) -> Float[Tensor, "kv_head d_model d_head"]:
        return self._weight("k")

    @property
    def W_V(self) -> Float[Tensor, "kv_head d_model d_head"]:
        return self._weight("v")

    @property
    def W_O(self) -> Float[Tensor, "head d_head d_model"]:
        return self.out.weight.T.unflatten(0, (self.config.n_heads, self.config.d_head))

    @property
    def b_Q(self) -> Float[Tensor, "head d_head"]:
        return self._bias("q")

    @property
    def b_K(self) -> Float[Tensor, "kv_head d_head"]:
        return self._bias("k")

    @property
    def b_V(self) -> Float[Tensor, "kv_head d_head"]:
        return self._bias("v")

    def project(
        self, normed: Stream, query_key_input: Stream, frame: Frame, tap: Tap, here: str
    ) -> tuple[PerHead, PerKeyHead, PerKeyHead]:
        """Queries, keys (both normed and rotated where the architecture does) and values at the computed positions."""
        d_head = self.config.d_head
        rows_v, _ = self._part("v")
        if query_key_input is normed:
            fused = self.qkv(normed)
        else:
            weight, bias = self.qkv.weight, self.qkv.bias
            split = rows_v.start
            fused = torch.cat(
                [
                    functional.linear(query_key_input, weight[:split], None if bias is None else bias[:split]),
                    functional.linear(normed, weight[split:], None if bias is None else bias[split:]),
                ],
                -1,
            )
        q, k, v = (
            tap(f"{here}.{which}", fused[..., rows].unflatten(-1, (heads, d_head)))
            for which, (rows, heads) in ((which, self._part(which)) for which in "qkv")
        )
        if self.config.qk_norm:
            q, k = self.q_norm(q, tap, f"{here}.q_norm"), self.k_norm(k, tap, f"{here}.k_norm")
        if frame.rotation is not None:
            q = tap(f"{here}.rot_q", rotate(q, *frame.rotation, self.config))
            k = tap(f"{here}.rot_k", rotate(k, *frame.rotation, self.config))
        return q, k, v

    def mix(self, q: PerHead, k: PerKeyHead, v: PerKeyHead, frame: Frame, tap: Tap, here: str) -> PerHead:
        """z: each head's values, averaged with its pattern."""
        groups = self.config.n_heads // self.config.kv_heads
        k, v = (x.transpose(1, 2).repeat_interleave(groups, 1) if groups > 1 else x.transpose(1, 2) for x in (k, v))
        scores = (q.transpose(1, 2) * self.config.scale) @ k.transpose(2, 3)
        visible = frame.local if self.local else frame.visible
        if visible is not None:
            scores = scores.masked_fill(~visible[:, None], -torch.inf)
        pattern = tap(f"{here}.attn_scores", scores).softmax(-1)
        if self.config.attention_mix != 1:
            constant = torch.full_like(pattern, 1 - self.config.attention_mix)
            if visible is not None:
                constant = constant.masked_fill(~visible[:, None], 0)
            pattern = self.config.attention_mix * pattern + constant
        if self.config.pad_token is not None and visible is not None:
            # A query that sees no key (padding on the left) mixes nothing; NaN there would reach the others as 0 · NaN.
            pattern = pattern.masked_fill(~visible.any(-1, keepdim=True)[:, None], 0)
        return (tap(f"{here}.pattern", pattern) @ v).transpose(1, 2)

    def write(self, z: PerHead, tap: Tap, here: str) -> Stream:
        """The heads' joint output; per head only where someone looks, since that is `head` times as large."""
        if not tap.wants(f"{here}.result"):
            return self.out(z.flatten(-2))
        result = tap(f"{here}.result", torch.einsum("bphd,hdm->bphm", z, self.W_O)).sum(2)
        return result if self.out.bias is None else result + self.out.bias


def solu(x: Float[Tensor, "batch pos d_mlp"]) -> Float[Tensor, "batch pos d_mlp"]:
    """x · softmax(x) over the neurons (Elhage et al. 2022)."""
    return x * x.softmax(-1)


_ACTIVATIONS = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "silu": functional.silu,
    "solu": solu,
    "solu_ln": solu,
}


class MLP(nn.Module):
    """Two linear maps around an activation; gated where configured (Shazeer 2020): activation(gate) · linear.

    SoLU may be followed by a LayerNorm over the neurons.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.inward = nn.Linear(config.d_model, config.d_mlp * (2 if config.gated_mlp else 1), bias=config.mlp_bias)
        self.outward = nn.Linear(config.d_mlp, config.d_model, bias=config.mlp_bias)
        if config.neuron_norm:
            self.ln = Norm(config.d_mlp, config.norm_eps, centred=True)

    @property
    def W_in(self) -> Float[Tensor, "d_model d_mlp"]:
        return self.inward.weight[: self.config.d_mlp].T

    @property
    def W_out(self) -> Float[Tensor, "d_mlp d_model"]:
        return self.outward.weight.T

    def forward(self, normed: Stream, tap: Tap, here: str) -> Stream:
        pre = self.inward(normed)
        if self.config.gated_mlp:
            pre, linear = pre.split(self.config.d_mlp, -1)
            post = _ACTIVATIONS[self.config.activation](tap(f"{here}.pre", pre)) * tap(f"{here}.pre_linear", linear)
        else:
            post = _ACTIVATIONS[self.config.activation](tap(f"{here}.pre", pre))
        if self.config.neuron_norm:
            post = self.ln(tap(f"{here}.mid", post), tap, f"{here}.ln")
        return self.outward(tap(f"{here}.post", post))


class Block(nn.Module):
    """Attention and MLP around the residual stream: one after the other, or side by side (GPT-J, NeoX)."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.ln1 = norm(config)
        self.attn = Attention(config, local=layer in config.local_layers)
        if not config.attention_only:
            self.ln2 = norm(config)
            self.mlp = MLP(config)

    def forward(self, resid: Stream, frame: Frame, tap: Tap) -> Stream:
        here = f"blocks.{self.layer}"
        resid = tap(f"{here}.resid_pre", resid)
        if self.config.attention_only:
            return tap(f"{here}.resid_post", resid + self.attend(resid, frame, tap))
        middle = None if self.config.parallel else tap.given(f"{here}.resid_mid")
        if middle is None:
            attn_out = self.attend(resid, frame, tap)
            middle = resid if self.config.parallel else resid + attn_out
        else:
            attn_out = None
        if not self.config.parallel:
            middle = tap(f"{here}.resid_mid", middle)
        mlp_out = tap.given(f"{here}.mlp_out")
        if mlp_out is None:
            mlp_out = self.mlp(self.ln2(middle, tap, f"{here}.ln2"), tap, f"{here}.mlp")
        after = middle + tap(f"{here}.mlp_out", mlp_out)
        if self.config.parallel and attn_out is not None:
            after = after + attn_out
        return tap(f"{here}.resid_post", after)

    def attend(self, resid: Stream, frame: Frame, tap: Tap) -> Stream:
        """What attention adds to the residual stream."""
        here = f"blocks.{self.layer}.attn"
        z = tap.given(f"{here}.z")
        if z is None:
            normed = self.ln1(resid, tap, f"blocks.{self.layer}.ln1")
            query_key_input = normed if frame.key_positions is None else normed + frame.key_positions
            q, k, v = self.attn.project(normed, query_key_input, frame, tap, here)
            if frame.past is not None:
                k, v = (torch.cat([past, new], 1) for past, new in zip(frame.past[self.layer], (k, v)))
            z = self.attn.mix(q, k, v, frame, tap, here)
        return tap(f"blocks.{self.layer}.attn_out", self.attn.write(tap(f"{here}.z", z), tap, here))


class Transformer(nn.Module):
    """A decoder or encoder of the GPT family as `config` describes it.

    Weights are uninitialised until `headwork.model.initialise` or a checkpoint fills them. `card` says where they come
    from, where that is known; `tokenizer_source` gives its tokenizer, if it has one.
    """

    card: ModelCard | None = None
    tokenizer_source: Callable[[], Tokenizer] | None = None

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.d_vocab, config.d_model)
        if config.positions in ("learned", "shortformer"):
            self.pos_embed = nn.Embedding(config.n_ctx, config.d_model)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.ln_final = norm(config)
        self.unembed = nn.Linear(config.d_model, config.outputs, bias=config.unembed_bias)
        if config.tied:
            self.unembed.weight = self.embed.weight

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer, read when it is first asked for. Raises `UserError` where there is none or it is damaged."""
        if self.tokenizer_source is None:
            raise UserError("This network has no tokenizer; give it token ids instead of text.")
        return self.tokenizer_source()

    @property
    def layers(self) -> list[Block]:
        """The blocks, as what they are."""
        return [block for block in self.blocks if isinstance(block, Block)]

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        return self.embed.weight

    @property
    def W_pos(self) -> Float[Tensor, "n_ctx d_model"]:
        return self.pos_embed.weight

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab_out"]:
        return self.unembed.weight.T

    @property
    def device(self) -> torch.device:
        return self.embed.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embed.weight.dtype

    def forward(self, tokens: Int[Tensor, "batch pos"], tap: Tap = NO_TAP) -> Float[Tensor, "batch pos d_vocab_out"]:
        """Logits at every position."""
        resid = self.embedded(tokens, tap)
        frame = self.frame(tokens, tap=tap)
        for block in self.blocks:
            resid = block(resid, frame, tap)
        return self.logits(resid, tap)

    def embedded(self, tokens: Int[Tensor, "batch all"], tap: Tap = NO_TAP, start: int = 0) -> Stream:
        """The residual stream before the first block, at the positions from `start` on."""
        resid = tap("embed", self.embed(tokens[:, start:]))
        return resid + self._position_table(tokens, tap, start) if self.config.positions == "learned" else resid

    def _position_table(self, tokens: Int[Tensor, "batch all"], tap: Tap, start: int) -> Stream:
        rows = self.pos_embed(torch.arange(start, tokens.shape[1], device=tokens.device))
        return tap("pos_embed", rows.expand(len(tokens), -1, -1))

    def frame(
        self,
        tokens: Int[Tensor, "batch all"],
        start: int = 0,
        past: Mapping[int, tuple[PerKeyHead, PerKeyHead]] | None = None,
        tap: Tap = NO_TAP,
    ) -> Frame:
        """What the layers share when positions from `start` on are computed and those before are in `past`."""
        length, device = tokens.shape[1], tokens.device
        visible = None
        if self.config.causal:
            visible = torch.ones(length - start, length, dtype=torch.bool, device=device).tril(start)[None]
        if self.config.pad_token is not None:
            seen = (tokens != self.config.pad_token)[:, None, :].expand(-1, length - start, -1)
            visible = seen if visible is None else visible & seen
        local = None
        if self.config.local_layers and self.config.window is not None:
            places = torch.arange(length, device=device)
            local = (places[start:, None] - places).abs()[None] < self.config.window
            local = local if visible is None else local & visible
        rotation = None
        if self.config.turned:
            rotation = rotary_table(self.config, torch.arange(start, length, device=device), self.dtype)
        key_positions = self._position_table(tokens, tap, start) if self.config.positions == "shortformer" else None
        return Frame(visible, rotation, key_positions, past if start else None, local)

    def logits(self, resid: Stream, tap: Tap = NO_TAP) -> Float[Tensor, "batch pos d_vocab_out"]:
        """The final norm and the unembedding."""
        return tap("logits", self.unembed(self.ln_final(resid, tap, "ln_final")))
