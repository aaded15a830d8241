"""What a one-layer, one-head network for the largest of k numbers computes, as tables over numbers (Gross et al. 2024).

With the last number q as query, the scores are a table over q, the number that is read and its position; each position
adds its row of the table of values to the logits, weighted with the pattern; the query adds a row of its own. Before a
final norm's scale all of this is exact. The scale is one positive factor for all logits, so the largest logit depends
on it only through the biases behind the norm; it is kept between bounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headwork.errors import UserError
from headwork.methods.rounding import WIDER, Bounded, Precision, centred, normed, plus, products, rounded, stored, times
from headwork.model.transformer import Norm, Transformer
from headwork.tasks.max_of_k import MaxOfK

if TYPE_CHECKING:
    import xarray

# Softmax: the exponential is right to some units in the last place in every kernel; sums and quotients count apart.
_EXPONENTIAL = 16
# The scale's own square root, quotient and products, in the coarser precision.
_ROUNDED = 1 + 2.0**-20
_NARROW = 2.0**-40


@dataclass(frozen=True)
class MaxTables:
    """logit[w] · scale = direct[q, w] + Σ_p pattern_p value[t_p, p, w] + scale · bias[w], pattern = softmax(score[q]).

    All in logits (scores: nats), up to a constant over outputs where there is a final norm. `scale()` gives its bounds
    for each query. The errors cover the network's own rounding.
    """

    score: Bounded
    """[query, number, position]"""
    value: Bounded
    """[number, position, output]"""
    direct: Bounded
    """[query, output]"""
    bias: Bounded
    """[output]"""
    own: Bounded
    """[query, d_model]: the final stream less what the head writes, centred where the final norm does."""
    written: Bounded
    """[number, position, d_model]: what reading writes, likewise."""
    norm: Norm | None
    variance_error: Float[Tensor, " query"]
    """How far the final norm's variance, as the network computes it, may be off."""
    multiplications: int
    """How many the tables took, without those for the errors."""

    def scale(self) -> tuple[Float[Tensor, " query"], Float[Tensor, " query"]]:
        """Between which the final norm's scale lies for each query, whatever is read; 1 without a norm."""
        # What is read is an average: no longer than the longest, and no shorter than all have in common.
        high, furthest = _length(self.own, 1), _length(self.written, 1).max()
        least = (_least_of_averages(self.written) - high).maximum(_length(self.own, -1) - furthest)
        return self._scale(torch.arange(len(high)), least, high + furthest)

    def scale_of(self, lists: Int[Tensor, "list k"]) -> tuple[Float[Tensor, " list"], Float[Tensor, " list"]]:
        """The same for given lists: nearly exact."""
        if self.norm is None:
            return self._scale(lists[:, -1], torch.zeros(1), torch.zeros(1))
        query, places = lists[:, -1], torch.arange(lists.shape[1])
        score, written = self.score[query[:, None], lists, places], self.written[lists, places]
        pattern = score.value.softmax(-1)
        middle = self.own.value[query] + torch.einsum("bp,bpd->bd", pattern, written.value)
        # Scores off by e change every weight by a factor of exp(2e) at most.
        factor = (2 * score.error.amax(1)).exp() * WIDER - 1
        sizes = (pattern * _length(written, 1)).sum(1)
        away = self.own.error[query].square().sum(1).sqrt() + factor * sizes
        away = away + _NARROW * (sizes + _length(self.own, 1)[query])
        away = away + (1 + factor) * (pattern * written.error.square().sum(-1).sqrt()).sum(1)
        length = middle.square().sum(1).sqrt()
        return self._scale(query, length / WIDER - away * WIDER, (length + away) * WIDER)

    def _scale(
        self, query: Int[Tensor, " rows"], least: Float[Tensor, "#rows"], most: Float[Tensor, "#rows"]
    ) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]:
        if self.norm is None:
            ones = torch.ones(len(query), dtype=torch.float64)
            return ones, ones
        width, eps, off = self.own.value.shape[1], self.norm.eps, self.variance_error[query]
        low = (least.clamp(min=0).square() / width + eps - off).clamp(min=eps / 2).sqrt()
        high = (most.square() / width + eps + off).sqrt()
        return low / _ROUNDED, high * _ROUNDED


def max_tables(model: Transformer, task: MaxOfK) -> MaxTables:
    """The tables of a network on lists of `task.k` numbers. Raises `UserError` for a network of another kind."""
    check_network(model, task)
    n, k, config, attn = task.vocab, task.k, model.config, model.layers[0].attn
    precision = Precision.of(model.dtype)
    x = stored(model.W_E[:n, None].expand(-1, k, -1))
    if config.positions == "learned":
        x = plus(precision, x, stored(model.W_pos[None, :k].expand(n, -1, -1)))
    read = normed(precision, x, model.layers[0].ln1)
    q, key, v = (
        times(precision, rows, stored(weight[0]).value, stored(bias[0]).value)
        for rows, weight, bias in (
            (read[:, -1], attn.W_Q, attn.b_Q),
            (read, attn.W_K, attn.b_K),
            (read, attn.W_V, attn.b_V),
        )
    )
    q = rounded(precision, Bounded(q.value * config.scale, q.error * config.scale * WIDER), 4)
    # Mixing: the quotient of the softmax, a sum over k positions, and weights so small that they are flushed to zero.
    mixed = rounded(precision, v, 2 * k + 8)
    mixed = Bounded(mixed.value, mixed.error + k * precision.tiny * mixed.size.max())
    written = times(precision, mixed, stored(attn.W_O[0]).value)
    last = x[:, -1]
    if attn.out.bias is not None:
        last = plus(precision, last, stored(attn.out.bias.expand(n, -1)))
    # The sum of stream, head and bias is rounded a few times more; each part answers for its own share.
    final = _Final(model, precision, rounded(precision, last, config.d_head + 4), rounded(precision, written, 3))
    return MaxTables(
        _with_softmax(precision, products(precision, q, key)),
        final.logits(final.written),
        final.logits(final.last),
        final.bias(),
        final.middle(final.last),
        final.middle(final.written),
        model.ln_final if isinstance(model.ln_final, Norm) else None,
        final.variance_error(),
        multiplications=_multiplications(model, task),
    )


def _with_softmax(precision: Precision, score: Bounded) -> Bounded:
    """Scores whose errors include what the exponential, and the shift before it, get wrong."""
    shift = precision.gamma(2) * score.size.amax((1, 2), keepdim=True)
    return Bounded(score.value, (score.error + shift + precision.gamma(_EXPONENTIAL)) * WIDER)


@dataclass(frozen=True)
class _Final:
    """The final norm without its scale, and the unembedding."""

    model: Transformer
    precision: Precision
    last: Bounded
    written: Bounded

    def middle(self, part: Bounded) -> Bounded:
        """A part of the final stream as the norm's gain meets it, but for the scale."""
        norm = self.model.ln_final
        return centred(self.precision, part) if isinstance(norm, Norm) and norm.centred else part

    def logits(self, part: Bounded) -> Bounded:
        """What a part of the stream adds to logits times scale."""
        weight = stored(self.model.W_U).value
        if isinstance(self.model.ln_final, Norm):
            weight = stored(self.model.ln_final.w).value[:, None] * weight
        return times(self.precision, self.middle(part), weight, extra=6)

    def bias(self) -> Bounded:
        """What is added behind the norm."""
        model, precision, weight = self.model, self.precision, stored(self.model.W_U).value
        found = stored(model.W_U.new_zeros(weight.shape[1]))
        if isinstance(model.ln_final, Norm) and model.ln_final.b is not None:
            found = times(precision, stored(model.ln_final.b), weight, extra=6)
        if model.unembed.bias is not None:
            found = plus(precision, found, stored(model.unembed.bias))
        return rounded(precision, found, len(weight) + 6)

    def variance_error(self) -> Float[Tensor, " query"]:
        """Rounding when the norm sums squares, in one pass or in two (see `headwork.methods.rounding.normed`)."""
        width = self.last.value.shape[-1]
        sizes = self.last.size.square().sum(-1).sqrt() + self.written.size.square().sum(-1).sqrt().max()
        eps = getattr(self.model.ln_final, "eps", 0.0)
        return 2 * self.precision.gamma(2 * width + 8) * (sizes.square() / width + eps) * WIDER


def _length(a: Bounded, side: int) -> Float[Tensor, "*rows"]:
    """At least (−1) or at most (1) the Euclidean length of the vectors on the last axis."""
    away = a.error.square().sum(-1).sqrt()
    length = a.value.square().sum(-1).sqrt()
    return ((length + away) * WIDER) if side > 0 else (length / WIDER - away * WIDER).clamp(min=0)


def _least_of_averages(a: Bounded) -> float:
    """At most the length of any average of the vectors: what they all have along their mean's direction."""
    mean = a.value.flatten(0, -2).mean(0)
    along = a.value @ mean / mean.norm().clamp(min=1e-300)
    return max(0.0, float((along - 2**-40 * a.size.sum(-1) - a.error.square().sum(-1).sqrt() * WIDER).min()))


def check_network(model: Transformer, task: MaxOfK) -> None:
    """`UserError` unless the network is one attention layer of one head that reads these lists."""
    c = model.config
    needed = {
        "n_layers": (c.n_layers, c.n_layers == 1, "1"),
        "n_heads": (c.n_heads, c.n_heads == 1, "1"),
        "d_mlp": (c.d_mlp, c.attention_only, "0: attention only"),
        "positions": (c.positions, c.positions in ("learned", "none"), "learned or none"),
        "attention_mix": (c.attention_mix, c.attention_mix == 1, "1: a plain softmax"),
        "qk_norm": (c.qk_norm, not c.qk_norm, "false"),
        "local_layers": (c.local_layers, not c.local_layers, "empty"),
        "pad_token": (c.pad_token, c.pad_token is None, "left out"),
        "d_vocab": (c.d_vocab, c.d_vocab >= task.vocab, f"{task.vocab} or more, one for each number"),
        "outputs": (c.outputs, c.outputs >= task.vocab, f"{task.vocab} or more, one for each number"),
        "n_ctx": (c.n_ctx, c.n_ctx >= task.k, f"{task.k} or more, the length of the lists"),
    }
    for name, (value, holds, accepted) in needed.items():
        if not holds:
            raise UserError(
                f"The tables of a network for the largest of {task.k} numbers are those of one attention head; "
                f"this one has {name} = {value!r}, which must be {accepted}."
            )


def _multiplications(model: Transformer, task: MaxOfK) -> int:
    c, rows = model.config, task.vocab * task.k
    projections = (2 * rows + task.vocab) * c.d_model * c.d_head
    scores = task.vocab * rows * c.d_head
    return projections + scores + rows * c.d_head * c.d_model + (rows + task.vocab) * c.d_model * c.outputs


def max_picture(model: Transformer, task: MaxOfK) -> xarray.Dataset:
    """QK and OV of the network as a reader of Gross et al. 2024 expects them.

    - `score` [query, number, position]: the attention score (nats), less its mean over numbers and positions;
    - `score_by_number` [number, position]: its mean over queries: how attention grows with the number;
    - `size_direction` [number]: the first right singular vector of the scores (their mean over positions), turned to
      rise with the number; `query_weight` [query]: what each query gives it;
    - `value` [number, position, output], `direct` [query, output]: in logits (times the final norm's scale, where there
      is a norm), less their mean over outputs;
    - `copying` [number, position]: by how much reading a number raises its own logit more than any other.

    Attributes: `size_share`, the part of the scores' sum of squares that the size direction holds; `size_correlation`
    with the number (Pearson); `score_slope`, nats per unit of number; `copied`, the share of numbers and positions with
    `copying` > 0. Raises `UserError` as `max_tables` does.
    """
    import xarray

    tables, n = max_tables(model, task), task.vocab
    score = tables.score.value - tables.score.value.mean((1, 2), keepdim=True)
    left, strength, right = torch.linalg.svd(score.mean(2) - score.mean((1, 2))[:, None])
    number = torch.arange(n, dtype=torch.float64) - (n - 1) / 2
    turn = torch.sign(right[0] @ number)
    direction, weight = right[0] * turn, left[:, 0] * strength[0] * turn
    by_number = score.mean(0)
    value = tables.value.value - tables.value.value.mean(-1, keepdim=True)
    copying = leads(tables.value.value, tables.value.value)[torch.arange(n), :, torch.arange(n)]
    spread = direction - direction.mean()
    attrs = {
        "size_share": float(strength[0] ** 2 / strength.square().sum().clamp(min=1e-300)),
        "size_correlation": float(spread @ number / (spread.norm() * number.norm()).clamp(min=1e-300)),
        "score_slope": float(by_number.mean(1) @ number / number.square().sum()),
        "copied": float((copying > 0).double().mean()),
        "norm": model.config.norm,
    }
    direct = tables.direct.value - tables.direct.value.mean(-1, keepdim=True)
    return xarray.Dataset(
        {
            "score": (("query", "number", "position"), score.numpy(), {"units": "nats"}),
            "score_by_number": (("number", "position"), by_number.numpy(), {"units": "nats"}),
            "size_direction": ("number", direction.numpy(), {"units": "1"}),
            "query_weight": ("query", weight.numpy(), {"units": "nats"}),
            "value": (("number", "position", "output"), value.numpy(), {"units": "logits"}),
            "direct": (("query", "output"), direct.numpy(), {"units": "logits"}),
            "copying": (("number", "position"), copying.numpy(), {"units": "logits"}),
        },
        coords={
            "query": range(n),
            "number": range(n),
            "position": range(task.k),
            "output": range(model.config.outputs),
        },
        attrs={"method": "QK and OV tables over numbers", **attrs},
    )


def leads(low: Float[Tensor, "*rows output"], high: Float[Tensor, "*rows output"]) -> Float[Tensor, "*rows output"]:
    """By how much each output is at least ahead of every other one: low[m] − max over w ≠ m of high[w]."""
    best, where = high.topk(2, -1)[0], high.argmax(-1, keepdim=True)
    others = torch.where(torch.arange(high.shape[-1]) == where, best[..., 1:2], best[..., :1])
    return low - others
