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
from headwork.model.products import fused_linear, fuses, linear
from headwork.model.rotary import rotary_table, rotate

if TYPE_CHECKING:
    from headwork.model.tokenizer import Tokenizer

Stream = Float[Tensor, "batch pos d_model"]
# The rows that a block goes on with behind its keys: all of them, unless nobody reads the others.
Onward = Float[Tensor, "batch onward d_model"]
Asking = Float[Tensor, "batch onward head d_head"]
PerHead = Float[Tensor, "batch pos head d_head"]
PerKeyHead = Float[Tensor, "batch keys kv_head d_head"]
Earlier = Float[Tensor, "shared earlier kv_head d_head"]


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
class Masks:
    """Who may look where: `everywhere[b, query, key]` (b may be 1), and the same for layers that see a window only.

    Keys are those of every position up to the end, earlier ones first; None where every query sees every key.
    """

    everywhere: Bool[Tensor, "#batch query key"] | None
    local: Bool[Tensor, "#batch query key"] | None = None

    def of(self, attention: Attention) -> Bool[Tensor, "#batch query key"] | None:
        """The mask of this layer."""
        return self.local if attention.local else self.everywhere


@dataclass(frozen=True)
class Frame:
    """What all layers of one pass share: which positions are computed, who may look where, and earlier keys and values.

    `past[layer]` holds the keys, as the queries meet them, and the values of the positions before the first one
    computed. `key_positions` is what shortformer adds to the normed input of queries and keys.
    """

    masks: Masks
    rotation: tuple[Tensor, Tensor] | None
    key_positions: Stream | None
    past: Mapping[int, tuple[Earlier, Earlier]] | None = None

    def onward(self, x: Stream) -> Onward:
        """The rows that a block goes on with behind its keys and values."""
        return x

    def query_rotation(self) -> tuple[Tensor, Tensor] | None:
        """The turns of the rows that go on."""
        return self.rotation

    def mixed(
        self, attention: Attention, layer: int, q: Asking, k: PerKeyHead, v: PerKeyHead, tap: Tap, here: str
    ) -> Asking:
        """Each head's values, averaged with its pattern."""
        past = None if self.past is None else self.past[layer]
        return attention.mix(q, k, v, self.masks.of(attention), tap, here, past)


class Norm(nn.Module):
    """LayerNorm (`centred`) or RMSNorm with the scale exposed as a site: x ↦ (x − mean) / √(variance + ε) · w + b."""

    def __init__(self, width: int, eps: float, centred: bool) -> None:
        super().__init__()
        self.centred, self.eps = centred, eps
        self.w = nn.Parameter(torch.ones(width))
        self.b = nn.Parameter(torch.zeros(width)) if centred else None

    def forward(self, x: Float[Tensor, "batch pos *axes"], tap: Tap, here: str) -> Float[Tensor, "batch pos *axes"]:
        if not tap.wants(f"{here}.scale"):
            x = self._at_once(x)
        elif self.b is not None and not torch.is_grad_enabled():
            # The kernel's own scale; only where it was edited must the norm be made again from it.
            normalised, mean, inverse = torch.native_layer_norm(x, self.w.shape, self.w, self.b, self.eps)
            scale = inverse.reciprocal()
            edited = tap(f"{here}.scale", scale)
            if edited is not scale:
                normalised = torch.addcmul(self.b, (x - mean) / edited, self.w)
            x = normalised
        else:
            if self.centred:
                x = x - x.mean(-1, keepdim=True)
            x = x / tap(f"{here}.scale", (x.square().mean(-1, keepdim=True) + self.eps).sqrt()) * self.w
            x = x if self.b is None else x + self.b
        return tap(f"{here}.normalized", x)

    def _at_once(self, x: Float[Tensor, "batch pos *axes"]) -> Float[Tensor, "batch pos *axes"]:
        if self.centred:
            return functional.layer_norm(x, self.w.shape, self.w, self.b, self.eps)
        return functional.rms_norm(x, self.w.shape, self.w, self.eps)


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
    ) -> tuple[Asking, PerKeyHead, PerKeyHead]:
        """Queries, keys (both normed and rotated where the architecture does) and values at the computed positions.

        Queries are made only of the rows that go on.
        """
        query_input = frame.onward(query_key_input)
        inputs = {"q": query_input, "k": query_key_input, "v": normed}
        if query_input is normed:
            fused = linear(normed, self.qkv)
            parts = {which: fused[..., self._part(which)[0]] for which in "qkv"}
        else:
            parts = {which: self._one_part(inputs[which], which) for which in "qkv"}
        q, k, v = (tap(f"{here}.{which}", self._by_head(parts[which], which)) for which in "qkv")
        if self.config.qk_norm:
            q, k = self.q_norm(q, tap, f"{here}.q_norm"), self.k_norm(k, tap, f"{here}.k_norm")
        if frame.rotation is not None:
            q = tap(f"{here}.rot_q", rotate(q, *(frame.query_rotation() or frame.rotation), self.config))
            k = tap(f"{here}.rot_k", rotate(k, *frame.rotation, self.config))
        return q, k, v

    def _one_part(self, x: Stream, which: str) -> Float[Tensor, "batch pos fused"]:
        rows, _ = self._part(which)
        return linear(x, self.qkv, rows)

    def _by_head(
        self, part: Float[Tensor, "batch pos fused"], which: str
    ) -> Float[Tensor, "batch pos any_head d_head"]:
        return part.unflatten(-1, (self._part(which)[1], self.config.d_head))

    def mix(
        self,
        q: PerHead,
        k: PerKeyHead,
        v: PerKeyHead,
        visible: Bool[Tensor, "#batch query key"] | None,
        tap: Tap,
        here: str,
        past: tuple[Earlier, Earlier] | None = None,
    ) -> PerHead:
        """z: each head's values, averaged with its pattern.

        `past` are earlier keys and values; several copies of the batch, stacked along it, may share them.
        """
        groups = self.config.n_heads // self.config.kv_heads
        # Heads that share keys stand behind each other, so that neither keys nor values are repeated for them.
        grouped = (q * self.config.scale).transpose(1, 2).unflatten(1, (-1, groups)).flatten(2, 3)
        k, v = k.transpose(1, 2), v.transpose(1, 2)
        scores = grouped @ k.transpose(2, 3)
        earlier = None if past is None else past[1].transpose(1, 2)
        if past is not None:
            scores = torch.cat([_shared(grouped, past[0].permute(0, 2, 3, 1)), scores], -1)
        scores = scores.unflatten(2, (groups, -1)).flatten(1, 2)
        if visible is not None:
            scores = scores.masked_fill_(~visible[:, None], -torch.inf)
        pattern = tap(f"{here}.attn_scores", scores).softmax(-1)
        if self.config.attention_mix != 1:
            constant = torch.full_like(pattern, 1 - self.config.attention_mix)
            if visible is not None:
                constant = constant.masked_fill(~visible[:, None], 0)
            pattern = self.config.attention_mix * pattern + constant
        if self.config.pad_token is not None and visible is not None:
            # A query that sees no key (padding on the left) mixes nothing; NaN there would reach the others as 0 · NaN.
            pattern = pattern.masked_fill(~visible.any(-1, keepdim=True)[:, None], 0)
        weights = tap(f"{here}.pattern", pattern).unflatten(1, (-1, groups)).flatten(2, 3)
        if earlier is None:
            z = weights @ v
        else:
            count = earlier.shape[2]
            z = _shared(weights[..., :count], earlier) + weights[..., count:] @ v
        return z.unflatten(2, (groups, -1)).flatten(1, 2).transpose(1, 2)

    def write(self, z: PerHead, tap: Tap, here: str) -> Stream:
        """The heads' joint output; per head only where someone looks, since that is `head` times as large."""
        if not tap.wants(f"{here}.result"):
            return linear(z.flatten(-2), self.out)
        result = tap(f"{here}.result", torch.einsum("bphd,hdm->bphm", z, self.W_O)).sum(2)
        return result if self.out.bias is None else result + self.out.bias


def _shared(
    left: Float[Tensor, "copies_batch kv_head rows inner"], right: Float[Tensor, "batch kv_head inner columns"]
) -> Float[Tensor, "copies_batch kv_head rows columns"]:
    """left @ right where copies of the batch, stacked along it, share the right side, which is not repeated."""
    batch = len(right)
    if len(left) == batch:
        return left @ right
    copies = len(left) // batch
    gathered = left.unflatten(0, (copies, batch)).permute(1, 2, 0, 3, 4)
    product = gathered.flatten(2, 3) @ right
    return product.unflatten(2, (copies, -1)).permute(2, 0, 1, 3, 4).flatten(0, 1)


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
        activation = self.config.activation
        if self.config.gated_mlp:
            pre, other = linear(normed, self.inward).split(self.config.d_mlp, -1)
            post = _ACTIVATIONS[activation](tap(f"{here}.pre", pre)) * tap(f"{here}.pre_linear", other)
        elif fuses(activation) and not tap.wants(f"{here}.pre"):
            post = fused_linear(normed, self.inward, activation)
        else:
            post = _ACTIVATIONS[activation](tap(f"{here}.pre", linear(normed, self.inward)))
        if self.config.neuron_norm:
            post = self.ln(tap(f"{here}.mid", post), tap, f"{here}.ln")
        return linear(tap(f"{here}.post", post), self.outward)


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

    def forward(self, resid: Stream, frame: Frame, tap: Tap) -> Onward:
        here = f"blocks.{self.layer}"
        resid = tap(f"{here}.resid_pre", resid)
        onward = frame.onward(resid)
        if self.config.attention_only:
            return tap(f"{here}.resid_post", onward + self.attend(resid, frame, tap))
        middle = None if self.config.parallel else tap.given(f"{here}.resid_mid")
        if middle is None:
            attn_out = self.attend(resid, frame, tap)
            middle = onward if self.config.parallel else onward + attn_out
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

    def attend(self, resid: Stream, frame: Frame, tap: Tap) -> Onward:
        """What attention adds to the residual stream."""
        here = f"blocks.{self.layer}.attn"
        z = tap.given(f"{here}.z")
        if z is None:
            normed = self.ln1(resid, tap, f"blocks.{self.layer}.ln1")
            query_key_input = normed if frame.key_positions is None else normed + frame.key_positions
            q, k, v = self.attn.project(normed, query_key_input, frame, tap, here)
            z = frame.mixed(self.attn, self.layer, q, k, v, tap, here)
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
        return self.logits(self.stream(tokens, tap), tap)

    def stream(self, tokens: Int[Tensor, "batch pos"], tap: Tap = NO_TAP) -> Stream:
        """The residual stream after the last block: all but the unembedding, which large vocabularies make dear."""
        resid = self.embedded(tokens, tap)
        frame = self.frame(tokens, tap=tap)
        for block in self.blocks:
            resid = block(resid, frame, tap)
        return resid

    def embedded(self, tokens: Int[Tensor, "batch all"], tap: Tap = NO_TAP, start: int = 0) -> Stream:
        """The residual stream before the first block, at the positions from `start` on."""
        places = torch.arange(start, tokens.shape[1], device=tokens.device)
        return self.embedded_at(tokens[:, start:], places, tap)

    def embedded_at(self, tokens: Int[Tensor, "batch pos"], places: Int[Tensor, " pos"], tap: Tap = NO_TAP) -> Stream:
        """The residual stream before the first block of tokens that stand at these positions."""
        resid = tap("embed", self.embed(tokens))
        return resid + self._position_table(tokens, places, tap) if self.config.positions == "learned" else resid

    def _position_table(self, tokens: Int[Tensor, "batch pos"], places: Int[Tensor, " pos"], tap: Tap) -> Stream:
        return tap("pos_embed", self.pos_embed(places).expand(len(tokens), -1, -1))

    def key_positions(
        self, tokens: Int[Tensor, "batch pos"], places: Int[Tensor, " pos"], tap: Tap = NO_TAP
    ) -> Stream | None:
        """What shortformer adds to the normed input of queries and keys of tokens that stand at these positions."""
        return self._position_table(tokens, places, tap) if self.config.positions == "shortformer" else None

    def rotation(self, places: Int[Tensor, " pos"]) -> tuple[Tensor, Tensor] | None:
        """How queries and keys at these positions are turned."""
        return rotary_table(self.config, places, self.dtype) if self.config.turned else None

    def frame(
        self,
        tokens: Int[Tensor, "batch all"],
        start: int = 0,
        past: Mapping[int, tuple[Earlier, Earlier]] | None = None,
        tap: Tap = NO_TAP,
    ) -> Frame:
        """What the layers share when positions from `start` on are computed and those before are in `past`."""
        places = torch.arange(start, tokens.shape[1], device=tokens.device)
        key_positions = self.key_positions(tokens[:, start:], places, tap)
        return Frame(self.masks(tokens, start), self.rotation(places), key_positions, past if start else None)

    def masks(self, tokens: Int[Tensor, "batch all"], start: int = 0) -> Masks:
        """Who may look where, for the queries from `start` on."""
        length, device = tokens.shape[1], tokens.device
        visible = None
        if self.config.causal:
            visible = torch.ones(length - start, length, dtype=torch.bool, device=device).tril(start)[None]
        if self.config.pad_token is not None:
            seen = (tokens != self.config.pad_token)[:, None, :].expand(-1, length - start, -1)
            visible = seen if visible is None else visible & seen
        if not self.config.local_layers or self.config.window is None:
            return Masks(visible)
        places = torch.arange(length, device=device)
        near = (places[start:, None] - places).abs()[None] < self.config.window
        return Masks(visible, near if visible is None else near & visible)

    def logits(self, resid: Stream, tap: Tap = NO_TAP) -> Float[Tensor, "batch pos d_vocab_out"]:
        """The final norm and the unembedding."""
        return tap("logits", linear(self.ln_final(resid, tap, "ln_final"), self.unembed))
