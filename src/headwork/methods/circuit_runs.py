"""Running a network in which only some edges are live; the others carry what their writer writes when ablated.

Every reader r of the graph (`headwork.methods.graph`) reads Σ over the writers w before it of mask[w, r] · live output
+ (1 − mask[w, r]) · ablated output, besides what is no writer's: attention's output biases. A live output is what the
writer computes in this very run from its own readers' inputs. So a head's queries, keys and values each come from a
mixture of their own; under grouped-query attention those of keys and values belong to key–value heads.

No stream is copied per edge: with D[w] = live − ablated output, the inputs of all readers of a layer are the wholly
ablated stream plus maskᵀ · D, one matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headwork.engine.metrics import Metric
from headwork.engine.run import Tokens, Watch, as_tokens
from headwork.errors import UserError
from headwork.methods.ablated_outputs import AblatedOutputs
from headwork.methods.graph import graph
from headwork.model.rotary import rotate
from headwork.model.sites import key_site
from headwork.model.transformer import NO_TAP, Attention, Block, Frame, Transformer
from headwork.tasks.prompt_pairs import checked_metric, prompt_labels

_DEFAULT_MEMORY = 2**28

Masks = Bool[Tensor, "variant writer reader"] | Float[Tensor, "variant writer reader"]


class CircuitRuns:
    """Runs of `model` on `tokens` under masks over edges, read by `metric`; ablated edges carry `ablated`.

    Masks are `[variant, writer, reader]` in the graph's order; true or 1 is a live edge, false or 0 an ablated one, and
    numbers between mix. What they say where there is no edge does not matter. Results are differentiable in the masks
    (use `torch.autograd.grad`, which leaves the weights' gradients alone); nothing is recorded where masks need none.

    `memory` bounds the bytes held at once, weights and the ablated values aside, by running fewer variants together;
    left out, a quarter of a gigabyte, or one variant. Where gradients are asked for, all variants are held. Positions
    at which live and ablated outputs cannot differ (before the first different token of counterfactual prompts, in a
    causal network) are computed once and not again. Raises `UserError` for tokens the network does not have, ablated
    values and metrics of other prompts, masks of another shape, and where one variant does not fit.
    """

    def __init__(
        self,
        model: Transformer,
        tokens: Tokens,
        metric: Metric,
        ablated: AblatedOutputs,
        *,
        memory: int | None = None,
    ) -> None:
        self.model, self.tokens = model, as_tokens(model, tokens)
        batch, length = self.tokens.shape
        ablated.require(model, batch, length)
        self.metric = checked_metric(model, metric, prompt_labels((), batch), length)
        self.start = first_change(model, self.tokens, ablated, metric.reads(length))
        self.memory = memory
        if memory is not None:
            self._variants_at_once(recorded=False)
        self.ablated = ablated.positions(self.start)
        self.before = _before(model, self.tokens, self.start)
        with torch.no_grad():
            self.embedded = model.embedded(self.tokens, start=self.start)

    def __call__(self, masks: Masks) -> Float[Tensor, "variant batch"]:
        """The metric of every prompt under each mask."""
        found = []
        for chunk in self._chunks(masks):
            with torch.set_grad_enabled(_recorded(chunk)):
                final = self._final(chunk)
                found.append(torch.stack([self.metric(self.model, resid, self.start) for resid in final]))
        return torch.cat(found)

    def resid(self, masks: Masks) -> Float[Tensor, "variant batch pos d_model"]:
        """What the logits read under each mask: the final stream, at every position."""
        found = []
        for chunk in self._chunks(masks):
            with torch.set_grad_enabled(_recorded(chunk)):
                before = self.before.final.expand(len(chunk), -1, -1, -1)
                found.append(torch.cat([before, self._final(chunk)], 2))
        return torch.cat(found)

    def _chunks(self, masks: Masks) -> list[Tensor]:
        edges = graph(self.model.config)
        if masks.dim() != 3 or masks.shape[1:] != edges.visible.shape or not len(masks):
            raise UserError(
                f"The masks have shape {list(masks.shape)}; this network needs [variants, {len(edges.writers)}, "
                f"{len(edges.readers)}]: its writers and readers."
            )
        if not _recorded(masks):
            masks = masks.detach()
        elif len(masks) > (fit := self._variants_at_once(recorded=True)) and self.memory is not None:
            raise UserError(f"{len(masks)} masks with gradient do not fit into the memory together; {fit} would.")
        else:
            return [masks.to(self.model.device, self.model.dtype)]
        size = self._variants_at_once(recorded=False)
        return list(masks.to(self.model.device, self.model.dtype).split(size))

    def _variants_at_once(self, recorded: bool) -> int:
        """How many fit the limit; `UserError` where not even one does."""
        length = self.tokens.shape[1]
        each = len(self.tokens) * bytes_per_prompt(self.model, length, self.start, recorded=recorded)
        fit = (_DEFAULT_MEMORY if self.memory is None else self.memory) // each
        if not fit and self.memory is not None:
            raise UserError(
                f"A run of {len(self.tokens)} prompts of {length} tokens with separate edges needs about "
                f"{each / 1e6:,.1f} MB; the limit is {self.memory / 1e6:,.1f} MB."
            )
        return max(1, fit)

    def _final(self, masks: Float[Tensor, "n writer reader"]) -> Float[Tensor, "n batch pos d_model"]:
        """The stream that the logits read, at the positions from `start` on."""
        model, config, variants = self.model, self.model.config, len(masks)
        tokens = self.tokens.expand(variants, -1, -1).flatten(0, 1)
        frame = model.frame(tokens, self.start, self.before.past(variants))
        # What every reader would read if no edge were live; and how far each live output is from the ablated one.
        ablated = self.ablated.embed.expand_as(self.embedded)
        changes = _Changes(masks, self.embedded)
        changes.add((self.embedded - ablated).expand(variants, 1, *ablated.shape))
        column = 0
        for layer, block in enumerate(model.layers):
            slots = slice(column, column + config.n_heads + 2 * config.kv_heads)
            z = _z(block, frame, ablated + changes.read(slots), layer)
            put = self.ablated.z[layer]
            heads = torch.einsum("nbphe,hed->nhbpd", z.unflatten(0, (variants, -1)) - put, block.attn.W_O)
            attn_out = block.attn.write(put, NO_TAP, "")
            column = slots.stop
            if config.attention_only:
                changes.add(heads)
                ablated = ablated + attn_out
                continue
            if not config.parallel:
                changes.add(heads)
                ablated = ablated + attn_out
            read = (ablated + changes.read(slice(column, column + 1))[:, 0]).flatten(0, 1)
            mlp_out = block.mlp(block.ln2(read, NO_TAP, ""), NO_TAP, "").unflatten(0, (variants, -1))
            if config.parallel:
                changes.add(heads)
                ablated = ablated + attn_out
            changes.add((mlp_out - self.ablated.mlp_out[layer])[:, None])
            ablated = ablated + self.ablated.mlp_out[layer]
            column += 1
        return ablated + changes.read(slice(column, column + 1))[:, 0]


def _recorded(masks: Tensor) -> bool:
    return masks.requires_grad and torch.is_grad_enabled()


class _Changes:
    """Live − ablated outputs of the writers so far, in the graph's order, and what readers read of them."""

    def __init__(self, masks: Float[Tensor, "n writer reader"], embedded: Float[Tensor, "batch pos d_model"]) -> None:
        self.masks, self.shape, self.count = masks, embedded.shape, 0
        # One block that is filled; under autograd, which forbids that, pieces that are joined where they are read.
        self.pieces: list[Tensor] = []
        self.filled = None if _recorded(masks) else embedded.new_empty(*masks.shape[:2], embedded.numel())

    def add(self, piece: Float[Tensor, "n more batch pos d_model"]) -> None:
        if self.filled is None:
            self.pieces.append(piece.flatten(2))
        else:
            self.filled[:, self.count : self.count + piece.shape[1]] = piece.flatten(2)
        self.count += piece.shape[1]

    def read(self, readers: slice) -> Float[Tensor, "n some batch pos d_model"]:
        seen = torch.cat(self.pieces, 1) if self.filled is None else self.filled[:, : self.count]
        return (self.masks[:, : self.count, readers].transpose(1, 2) @ seen).unflatten(2, self.shape)


def _z(block: Block, frame: Frame, inputs: Float[Tensor, "n slot batch pos d_model"], layer: int) -> Tensor:
    """What the heads mix when each query, key and value head reads an input of its own."""
    attn, config = block.attn, block.config
    normed = block.ln1(inputs.flatten(0, 2), NO_TAP, "").view(inputs.shape)
    queries_keys = config.n_heads + config.kv_heads
    if frame.key_positions is not None:
        moved = normed[:, :queries_keys] + frame.key_positions[:1]
        normed = torch.cat([moved, normed[:, queries_keys:]], 1)
    fused = torch.einsum("nsbpd,sed->nbpse", normed, attn.qkv.weight.unflatten(0, (-1, config.d_head)))
    if attn.qkv.bias is not None:
        fused = fused + attn.qkv.bias.unflatten(0, (-1, config.d_head))
    q, k, v = fused.flatten(0, 1).split([config.n_heads, config.kv_heads, config.kv_heads], 2)
    q, k = finished(attn, q, frame, "q"), finished(attn, k, frame, "k")
    if frame.past is not None:
        k, v = (torch.cat([past, new], 1) for past, new in zip(frame.past[layer], (k, v)))
    return attn.mix(q, k, v, frame.masks.of(attn), NO_TAP, "")


def finished(
    attn: Attention, heads: Float[Tensor, "batch pos some d_head"], frame: Frame, which: str
) -> Float[Tensor, "batch pos some d_head"]:
    """Projected queries (`q`) or keys (`k`) as attention compares them: normed and rotated where it does so."""
    if attn.config.qk_norm:
        heads = (attn.q_norm if which == "q" else attn.k_norm)(heads, NO_TAP, "")
    return heads if frame.rotation is None else rotate(heads, *frame.rotation, attn.config)


@dataclass(frozen=True, eq=False)
class _Before:
    """The positions that are the same in every run: their keys and values, and the final stream there."""

    keys_values: dict[int, tuple[Tensor, Tensor]]
    final: Float[Tensor, "batch before d_model"]

    def past(self, variants: int) -> dict[int, tuple[Tensor, Tensor]]:
        def copied(x: Tensor) -> Tensor:
            return x.expand(variants, *x.shape).flatten(0, 1)

        return {layer: (copied(k), copied(v)) for layer, (k, v) in self.keys_values.items()}


def _before(model: Transformer, tokens: Int[Tensor, "batch pos"], start: int) -> _Before:
    layers = range(model.config.n_layers)
    names = [(key_site(model.config, layer), f"blocks.{layer}.attn.v") for layer in layers]
    watch = Watch(model.config, [name for pair in names for name in pair])
    with torch.no_grad():
        resid = model.embedded(tokens[:, :start])
        if not start:
            return _Before({}, resid)
        frame = model.frame(tokens[:, :start])
        for block in model.layers:
            resid = block(resid, frame, watch)
    return _Before({layer: (watch.kept[k], watch.kept[v]) for layer, (k, v) in enumerate(names)}, resid)


def first_change(model: Transformer, tokens: Int[Tensor, "batch pos"], ablated: AblatedOutputs, read: int) -> int:
    """The first position to compute for each mask: every one before it has the same live and ablated outputs."""
    if ablated.tokens is None or not model.config.causal:
        return 0
    differ = (ablated.tokens != tokens).any(0).nonzero()
    return min(read, int(differ[0]) if len(differ) else read)


def bytes_per_prompt(model: Transformer, length: int, start: int = 0, *, recorded: bool = False) -> int:
    """What one variant holds at most for one prompt, by an estimate from above; `recorded`, with what gradients need.

    The writers' changes dominate, beside one layer's inputs (as read, normed, and once more for the projection).
    """
    c, edges, computed = model.config, graph(model.config), length - start
    slots = c.n_heads + 2 * c.kv_heads
    attention = 4 * slots * c.d_model + 6 * (slots + c.n_heads) * c.d_head + 6 * c.n_heads * length
    layer = max(attention, 6 * c.d_model + (8 if c.gated_mlp else 5) * c.d_mlp) + c.n_heads * c.d_model
    if recorded:
        layer = c.n_layers * (layer + attention) + c.n_layers * len(edges.writers) * c.d_model
    floats = computed * (len(edges.writers) * c.d_model + 4 * c.d_model + layer) + 3 * c.outputs * (
        2 if recorded else 1
    )
    floats += 2 * length * c.n_layers * c.kv_heads * c.d_head
    return floats * model.embed.weight.element_size()
