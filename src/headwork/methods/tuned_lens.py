"""The tuned lens (Belrose et al. 2023): an affine translator before the logit lens, trained for each layer.

The streams of different layers do not share a basis, so the logit lens misreads early ones. A translator, which starts
as the identity, is trained to bring the lens's distribution close to the network's own: it minimises KL(final ‖ lens).
Translators are trained with Adam, whose learning rate falls linearly to 0 over a fixed number of steps. They have
d_model² + d_model numbers a layer, and so can overfit few tokens: judge them on held-out ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headwork.engine.run import Tokens, as_tokens, bytes_kept, run
from headwork.errors import UserError, unknown
from headwork.methods.batches import BYTES_PER_CHUNK, chunks
from headwork.methods.logit_lens import lens, read_sites, stream_logits
from headwork.methods.translators import Network, Translators, translated, translated_sites
from headwork.model.transformer import Transformer

if TYPE_CHECKING:
    import xarray

Streams = list[Float[Tensor, "batch pos d_model"]]


def tuned_lens(
    model: Transformer,
    tokens: Tokens,
    translators: Translators,
    *,
    targets: Int[Tensor, "batch pos"] | None = None,
    chosen: Sequence[int] = (),
    at: Iterable[str] | str | None = None,
    labels: Sequence[str] = (),
) -> xarray.Dataset:
    """What the network would predict at each position if it stopped at each layer, read through its translator.

    The dataset is that of `logit_lens`, and so are the options, but `at` may name streams between blocks only. The
    final stream is read as it is. Raises `UserError` too for translators of another network.
    """
    names = read_sites(model.config, at)
    index = {site: i for i, site in enumerate(translators.sites)}
    index |= {f"blocks.{i - 1}.resid_post": i for i in range(1, len(translators.sites))}
    end = f"blocks.{model.config.n_layers - 1}.resid_post"
    for name in names:
        if name not in index and name != end:
            raise unknown("stream with a translator", name, [*index, end])
    translators.network.require(model)
    moved = translators.on(model.device)

    def translation(i: int, stream: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows d_model"]:
        return stream if names[i] == end else moved.apply(index[names[i]], stream)

    found = lens(model, tokens, names, translation, targets, chosen, labels, "tuned lens")
    return found.assign_attrs(translators_trained_for_steps=int(translators.training["steps"]))


def train_tuned_lens(
    model: Transformer,
    tokens: Tokens,
    *,
    steps: int = 250,
    batch: int = 16,
    learning_rate: float = 3e-3,
    seed: int = 0,
    memory: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Translators:
    """Translators for the stream before each block, trained on `tokens [batch, pos]`; the network stays as it is.

    Each of the `steps` reads `batch` prompts, in an order that `seed` fixes and that goes through all before one comes
    again; the loss is the mean KL in nats over their positions, padding left out. Streams are computed once if those of
    all prompts fit into `memory` bytes beside the weights (always, where it is None), else anew for each step: that
    changes nothing but rounding. `progress` is called with 1 after each step. Raises `UserError` for settings that make
    no sense, where not even one prompt fits, and where the loss stops being finite.
    """
    tokens = as_tokens(model, tokens)
    sites = translated_sites(model.config)
    for name, value, least in (("steps", steps, 1), ("batch", batch, 1)):
        if value < least:
            raise UserError(f"{name} = {value}; it must be {least} or more.")
    if not 0 < learning_rate < float("inf"):
        raise UserError(f"learning_rate = {learning_rate}; it must be a number above 0.")
    real = _real(model, tokens)
    plan = _plan(model, tokens, memory)
    kept = _streams(model, tokens, sites, plan) if plan.keep else None
    dtype, width = torch.promote_types(model.dtype, torch.float32), model.config.d_model
    weights = [torch.zeros(width, width, dtype=dtype, device=model.device, requires_grad=True) for _ in sites]
    biases = [torch.zeros(width, dtype=dtype, device=model.device, requires_grad=True) for _ in sites]
    parameters = [*weights, *biases]
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    losses = []
    for step, some in enumerate(_order(len(tokens), min(batch, len(tokens)), steps, seed)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (1 - step / steps)
        optimizer.zero_grad()
        total = int(real[some].sum())
        loss = torch.zeros(len(sites), dtype=dtype, device=model.device)
        for part in some.split(plan.prompts):
            streams = _streams(model, tokens[part], sites, plan) if kept is None else [stream[part] for stream in kept]
            rows = [stream[real[part]] for stream in streams]
            loss += _accumulate(model, rows, weights, biases, plan.rows, total)
        if not loss.isfinite().all():
            raise UserError(
                f"The tuned lens's loss is not finite at step {step} with learning_rate = {learning_rate}; "
                "choose a smaller one."
            )
        optimizer.step()
        losses.append(loss)
        if progress:
            progress(1)
    found = {"weight": torch.stack(weights).detach(), "bias": torch.stack(biases).detach(), "loss": torch.stack(losses)}
    settings = {"steps": steps, "batch": batch, "learning_rate": learning_rate, "optimizer": "Adam", "seed": seed}
    data = hashlib.sha256(tokens.cpu().numpy().tobytes()).hexdigest()
    settings |= {"prompts": len(tokens), "length": tokens.shape[1], "tokens_sha256": data}
    return Translators(sites=sites, network=Network.of(model), training=settings, **found)


def _accumulate(
    model: Transformer,
    streams: list[Float[Tensor, "row d_model"]],
    weights: list[Float[Tensor, "d_model d_model"]],
    biases: list[Float[Tensor, " d_model"]],
    size: int,
    total: int,
) -> Float[Tensor, " site"]:
    """The share of the loss that these rows are of `total`; its gradients are added to those of the translators.

    `streams` are those before each block and the final one. Logits are made for `size` rows at a time.
    """
    *before, end = streams
    found = torch.zeros(len(before), dtype=weights[0].dtype, device=end.device)
    for first in range(0, len(end), size):
        rows = slice(first, first + size)
        with torch.no_grad():
            final = stream_logits(model, end[rows]).to(found.dtype).log_softmax(-1)
        for i, (stream, weight, bias) in enumerate(zip(before, weights, biases)):
            logits = stream_logits(model, translated(stream[rows], weight, bias)).to(found.dtype)
            loss = (final.exp() * (final - logits.log_softmax(-1))).sum() / total
            # Of these two alone: the network's own weights must not collect gradients.
            for parameter, gradient in zip((weight, bias), torch.autograd.grad(loss, (weight, bias))):
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
            found[i] += loss.detach()
    return found


def _streams(model: Transformer, tokens: Int[Tensor, "batch pos"], sites: Sequence[str], plan: _Plan) -> Streams:
    """The streams before each block and the final one."""
    names = [*sites, f"blocks.{len(sites) - 1}.resid_post"]
    parts = [run(model, some, names).activations for some in tokens.split(plan.prompts)]
    return [torch.cat([part[name] for part in parts]) for name in names]


def _real(model: Transformer, tokens: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
    """Which positions hold a token that is no padding; `UserError` where a prompt has none."""
    pad = model.config.pad_token
    real = torch.ones_like(tokens, dtype=torch.bool) if pad is None else tokens != pad
    if not real.any(1).all():
        raise UserError(f"Prompt {int((~real.any(1)).int().argmax())} is nothing but padding.")
    return real


def _order(prompts: int, batch: int, steps: int, seed: int) -> Iterator[Int[Tensor, " batch"]]:
    """Which prompts each step reads."""
    generator = torch.Generator().manual_seed(seed)
    waiting = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        while len(waiting) < batch:
            waiting = torch.cat([waiting, torch.randperm(prompts, generator=generator)])
        yield waiting[:batch]
        waiting = waiting[batch:]


@dataclass(frozen=True)
class _Plan:
    """Whether all streams are kept, and how many prompts, and rows of logits, are computed at once."""

    keep: bool
    prompts: int
    rows: int


def _plan(model: Transformer, tokens: Int[Tensor, "batch pos"], memory: int | None) -> _Plan:
    """What fits into `memory` bytes, by an estimate from above; `UserError` where not even one prompt does."""
    config, element = model.config, model.embed.weight.element_size()
    count, length = tokens.shape
    wide = max(element, 4)
    row = 8 * config.outputs * wide
    if memory is None:
        part = next(iter(chunks(config, count, length)))
        return _Plan(True, part.stop, max(1, BYTES_PER_CHUNK // row))
    # Translators, their gradients, and the two moments of Adam; one gradient more while it is made.
    fixed = 5 * config.n_layers * config.d_model * (config.d_model + 1) * wide
    streams = bytes_kept(model, 1, length, ["blocks.*.resid_pre", "blocks.0.resid_post"])
    heads = (5 * config.n_heads + 4 * config.kv_heads) * config.d_head + 5 * config.n_heads * length
    computed = length * (6 * config.d_model + max(heads, 4 * config.d_mlp) + 2 * config.outputs) * element
    free, one = memory - fixed, 2 * streams + computed
    if free < one + row:
        raise UserError(
            f"Training on one prompt of {length} tokens needs about {(fixed + one + row) / 1e6:,.1f} MB beside the "
            f"weights; the limit is {memory / 1e6:,.1f} MB."
        )
    # Twice, since the chunks of all streams and the whole are held together for a moment.
    keep = 2 * count * streams + one + row <= free
    rest = free - (2 * count * streams if keep else 0)
    prompts = min(count, max(1, (rest - row) // (2 * one)))
    return _Plan(keep, prompts, max(1, (rest - prompts * one) // row))
