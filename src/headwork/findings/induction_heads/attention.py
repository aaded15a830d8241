"""Scores of every head on discovery and held-out sequences, and the heads that the rule chooses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from headwork.findings.induction_heads.prompts import Prompts, decoys, induction, random_place
from headwork.methods.head_scores import Looking, attention_to, previous_token
from headwork.model.sites import Head
from headwork.model.transformer import Transformer
from headwork.tasks.repeated_sequences import RepeatedBatch, duplicates

Scores = Float[Tensor, "layer head batch"]

# The null averages over this many other sequences' places, so that few sequences lack one in common.
_DECOYS = 8


@dataclass(frozen=True)
class HeadScores:
    """Per head and sequence: the three scores and the nulls of two of them, on one set of sequences."""

    induction: Scores
    induction_null: Scores
    previous: Scores
    previous_null: Scores
    duplicate: Scores


@dataclass(frozen=True)
class Chosen:
    """Heads chosen on discovery sequences. `found` says whether the best one passed its null; where none did, the best
    head stands in, so that there is something to measure."""

    heads: tuple[Head, ...]
    best: Head | None
    null: Head | None
    found: bool


def head_scores(model: Transformer, batch: RepeatedBatch, generator: torch.Generator) -> HeadScores:
    """All scores of all heads on these sequences, from one pass over them."""
    looks = {f"decoy{i}": decoys(batch, i) for i in range(1, min(_DECOYS, len(batch.tokens) - 1) + 1)}
    scores = attention_to(
        model,
        batch.tokens,
        {
            "induction": induction(batch),
            "previous": previous_token(batch.tokens),
            "previous_null": random_place(batch, generator),
            "duplicate": Looking(duplicates(batch.tokens), batch.predictable),
            **looks,
        },
    )
    null = torch.stack([scores[name] for name in looks]).nanmean(0)
    return HeadScores(scores["induction"], null, scores["previous"], scores["previous_null"], scores["duplicate"])


def choose(score: Scores, null: Scores, below: int | None = None) -> Chosen:
    """Heads whose mean score is above the best head's null and at least half of the best score.

    `below` restricts the choice to lower layers. The null is the best of as many heads, chosen by the same rule.
    """
    means, nulls = score.nanmean(-1), null.nanmean(-1)
    layers = means.shape[0] if below is None else below
    if layers == 0:
        return Chosen((), None, None, False)
    candidates = [Head(layer, h) for layer in range(layers) for h in range(means.shape[1])]
    best = max(candidates, key=lambda h: float(means[h.layer, h.head]))
    best_null = max(candidates, key=lambda h: float(nulls[h.layer, h.head]))
    top, bar = float(means[best.layer, best.head]), float(nulls[best_null.layer, best_null.head])
    if top <= bar:
        return Chosen((best,), best, best_null, False)
    passed = tuple(h for h in candidates if float(means[h.layer, h.head]) >= max(bar, top / 2))
    return Chosen(passed, best, best_null, True)


def attention_when_replaced(
    model: Transformer, prompts: Prompts, heads: tuple[Head, ...]
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """The heads' mean attention from the last copy to where the followers stand, before and after the earlier copies
    are replaced; places are the same in both."""
    look = {"look": induction(prompts.held_out, prompts.held_out.last_copy())}
    both = [attention_to(model, batch.tokens, look)["look"] for batch in (prompts.held_out, prompts.replaced)]
    before, after = (torch.stack([one[h.layer, h.head] for h in heads]).mean(0) for one in both)
    return before, after
