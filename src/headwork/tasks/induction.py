"""The task `repeated-sequences`: random tokens whose last copy goes on as the earlier ones did (Elhage et al. 2021).

Every prompt ends inside the last copy of its segment, so that the answer, the token that comes next in every earlier
copy, is read at the last position; the copies before lie at random places. In the counterfactual every earlier copy is
overwritten by other random tokens: positions stay, what could be copied is gone.
"""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from headwork.engine.metrics import LogitDifference
from headwork.errors import UserError
from headwork.model.transformer import Transformer
from headwork.tasks.prompt_pairs import PromptPairs
from headwork.tasks.repeated_sequences import (
    RepeatedBatch,
    RepeatedSequences,
    default_distribution,
    stated_distribution,
)
from headwork.tasks.task_prompts import Split, TaskPrompts, check_count, generator

TASK = "repeated-sequences"
REPLACED, OTHER_ANSWER = "replaced", "other-answer"
_METRIC = {
    REPLACED: "logit of the copied token − logit of the token that replaced it",
    OTHER_ANSWER: "logit of the copied token − logit of the one that is copied in the corrupt prompt",
}


def repeated_sequences(
    model: Transformer, n: int, seed: int, split: Split, counterfactual: str = REPLACED, bos: bool = False
) -> TaskPrompts:
    """`n` prompts from the network's own distribution where its card states one, otherwise from a default one.

    `counterfactual`: `replaced` overwrites every earlier copy; `other-answer` only the answer's token in each of them,
    by one other token. With `bos`, prompts start with the tokenizer's first token. Raises `UserError` for a network
    that does not predict the next token or is too small.
    """
    check_count(n)
    distribution, note = _distribution(model, bos)
    random = generator(seed, split)
    drawn = _ending_in_the_last_copy(distribution.sample(n, random), distribution, random)
    last = torch.full((n,), distribution.length - 1)
    copies = drawn.copy[:, -1]
    answer_index = drawn.index[:, -1] + 1
    # The answer's place in the copy before the last one, where a counterfactual puts another token.
    before = (drawn.copy == copies[:, None] - 1) & (drawn.index == answer_index[:, None])
    place = before.int().argmax(1, keepdim=True)
    answers = drawn.tokens.gather(1, place)[:, 0]
    if counterfactual == REPLACED:
        corrupt = drawn.with_earlier_copies_replaced(random, distribution.alphabet).tokens
        wrong = corrupt.gather(1, place)[:, 0]
    else:
        wrong = _others(answers, distribution, random)
        earlier = (drawn.copy >= 0) & (drawn.copy < copies[:, None]) & (drawn.index == answer_index[:, None])
        corrupt = torch.where(earlier, wrong[:, None], drawn.tokens)
    labels = tuple(str(i) for i in range(n))
    return TaskPrompts(
        task=TASK,
        split=split,
        counterfactual=counterfactual,
        pairs=PromptPairs(drawn.tokens, corrupt, labels),
        metric=LogitDifference(last, answers, wrong),
        metric_words=_METRIC[counterfactual],
        positions=last,
        templates=labels,
        axis=tuple(f"{i - distribution.length + 1}".replace("-", "−") for i in range(distribution.length)),
        answers=answers,
        wrong=wrong,
        notes=(note, "Positions count back from the answer's; the earlier copies lie at other places in every prompt."),
    )


def _distribution(model: Transformer, bos: bool) -> tuple[RepeatedSequences, str]:
    config = model.config
    if not config.causal or config.outputs != config.d_vocab:
        raise UserError(
            f"The task {TASK} needs a causal network that predicts the next token; "
            f"this one {'is bidirectional' if not config.causal else f'answers with {config.outputs} classes'}."
        )
    start = model.tokenizer.bos if bos else None
    if bos and start is None:
        raise UserError("This network's tokenizer has no token that starts a text; leave bos out.")
    own = stated_distribution(model)
    if own is None or own.vocab > config.d_vocab or own.length > config.n_ctx:
        note = "The network's card states no distribution of repeated sequences that fits it; a default one was used."
        return default_distribution(config.d_vocab, config.n_ctx, start), note
    if own.varies:
        return own, "Sequences are drawn as the network's card states that it was trained."
    note = "Sequences are drawn as the network was trained, but at varied distances between the copies."
    return own.with_varied_distance(), note


def _ending_in_the_last_copy(
    drawn: RepeatedBatch, distribution: RepeatedSequences, random: torch.Generator
) -> RepeatedBatch:
    """The sequences, moved right until the last but one token of their last copy stands at the end.

    What moves in from the left is fresh random tokens; `bos` keeps its place.
    """
    begin = int(distribution.bos is not None)
    length = drawn.tokens.shape[1]
    index = torch.where(drawn.last_copy(), drawn.index, -1)
    shift = length - 1 - index.argmax(1, keepdim=True)
    source = torch.arange(length) - shift
    fresh = source < begin
    source = source.clamp(min=0)
    filler = torch.randint(*distribution.alphabet, drawn.tokens.shape, generator=random)
    if begin:
        fresh[:, 0], source[:, 0] = False, 0

    def moved(values: Int[Tensor, "batch pos"], new: Int[Tensor, "batch pos"] | int) -> Int[Tensor, "batch pos"]:
        return torch.where(fresh, new, values.gather(1, source))

    return RepeatedBatch(moved(drawn.tokens, filler), moved(drawn.copy, -1), moved(drawn.index, -1))


def _others(
    tokens: Int[Tensor, " batch"], distribution: RepeatedSequences, random: torch.Generator
) -> Int[Tensor, " batch"]:
    """For each token another one of the alphabet."""
    low, high = distribution.alphabet
    return low + (tokens - low + torch.randint(1, high - low, tokens.shape, generator=random)) % (high - low)
