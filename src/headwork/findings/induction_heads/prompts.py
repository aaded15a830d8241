"""The sequences that the finding is measured on: the network's own distribution, at places that vary."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Bool
from torch import Tensor

from headwork.errors import UserError
from headwork.findings.measurement import Status
from headwork.methods.distance_copying import DistanceCopying, fit_distance_copying
from headwork.methods.head_scores import Looking
from headwork.model.transformer import Transformer
from headwork.tasks.repeated_sequences import (
    RepeatedBatch,
    RepeatedSequences,
    default_distribution,
    followers,
    stated_distribution,
)

# With as few as the discovery sequences the baseline overfits, and a network beats it too easily.
_BASELINE_SEQUENCES = 512


@dataclass(frozen=True)
class Prompts:
    """Discovery sequences choose heads; held-out ones score them. `replaced` has the earlier copies overwritten.

    `baseline` is the best log-linear predictor that copies by distance alone, fitted to sequences of its own.
    """

    distribution: RepeatedSequences
    discovery: RepeatedBatch
    held_out: RepeatedBatch
    replaced: RepeatedBatch
    baseline: DistanceCopying


@lru_cache(maxsize=4)
def draw(distribution: RepeatedSequences, discovery: int, held_out: int, seed: int) -> Prompts:
    """Sequences of this distribution, all randomness from `seed`; networks of one distribution share them."""
    generator = torch.Generator().manual_seed(seed)
    chosen = distribution.sample(discovery, generator)
    scored = distribution.sample(held_out, generator)
    replaced = scored.with_earlier_copies_replaced(generator, distribution.alphabet)
    fitted_to = distribution.sample(_BASELINE_SEQUENCES, generator)
    baseline = fit_distance_copying(fitted_to.tokens, fitted_to.predictable, distribution.alphabet)
    return Prompts(distribution, chosen, scored, replaced, baseline)


def distribution_for(model: Transformer) -> tuple[RepeatedSequences, str, Status]:
    """The distribution that the model's card states, with varied distances; a default one where it states none.

    With it, what a reader must know of where it comes from. Raises `UserError` for a network that cannot be asked this.
    """
    config = model.config
    if not config.causal or config.outputs != config.d_vocab:
        raise UserError(
            "This finding needs a causal network that predicts the next token; "
            f"this one {'is bidirectional' if not config.causal else f'answers with {config.outputs} classes'}."
        )
    if config.n_layers < 1:
        raise UserError("This finding needs a network with attention heads; this one has no layers.")
    own = stated_distribution(model)
    if own is None:
        note = "The network's card states no distribution of repeated sequences; a default one was used."
        return default_distribution(config.d_vocab, config.n_ctx), note, "inferred"
    if own.vocab > config.d_vocab or own.length > config.n_ctx:
        raise UserError(
            f"The card's training distribution ({own.vocab} tokens, length {own.length}) does not fit the network "
            f"({config.d_vocab} tokens, length {config.n_ctx})."
        )
    varied = own.with_varied_distance()
    if varied == own:
        return own, "The network's own training distribution, as its card states it.", "as stated"
    note = (
        "The network's training distribution has one fixed distance between copies, which a head can exploit by place "
        "alone; segments and places were varied."
    )
    return varied, note, "changed"


def induction(batch: RepeatedBatch, queries: Bool[Tensor, "batch pos"] | None = None) -> Looking:
    """Attention from predictable positions to the tokens that followed earlier copies of the current one."""
    return Looking(followers(batch.tokens), batch.predictable if queries is None else queries)


def decoys(batch: RepeatedBatch, shift: int) -> Looking:
    """The same places, taken from the sequence `shift` further on in the batch: right by distance, wrong by content."""
    keys = followers(batch.tokens).roll(shift, 0)
    return Looking(keys, batch.predictable & batch.predictable.roll(shift, 0))


def random_place(batch: RepeatedBatch, generator: torch.Generator) -> Looking:
    """One random earlier key per query, other than the previous token: the null of the previous-token score."""
    size, length = batch.tokens.shape
    keys = torch.zeros(size, length, length, dtype=torch.bool)
    query = torch.arange(2, length).expand(size, -1)
    place = (torch.rand(size, length - 2, generator=generator) * (query - 1)).long()
    keys[torch.arange(size)[:, None], query, place] = True
    queries = torch.ones(size, length, dtype=torch.bool)
    queries[:, :2] = False
    return Looking(keys, queries)
