"""The task `greater-than`: a span of years ends later than it began (Hanna et al. 2023).

"The war lasted from the year 1732 to the year 17" goes on with any of 33 … 99. Years must be two tokens, the century
and the rest. In the counterfactual the span begins in 01, after which nearly every year comes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headwork.engine.metrics import ProbabilityDifference
from headwork.errors import UserError
from headwork.model.tokenizer import Tokenizer
from headwork.model.transformer import Transformer
from headwork.tasks.task_prompts import Split, TaskPrompts, generator
from headwork.tasks.text_prompts import Draft, drafted, listed, prompts_of, random_choice, single_tokens, tokenizer_for

TASK = "greater-than"
FROM_01 = "01"
METRIC = "probability of the years after − probability of the years up to the start"

TEMPLATES: Mapping[Split, tuple[str, ...]] = {
    "discovery": (
        "The {noun} lasted from the year {century}{year} to the year {century}",
        "The {noun} ran from the year {century}{year} until the year {century}",
        "The {noun} continued from the year {century}{year} to the year {century}",
        "The {noun} stretched from the year {century}{year} to the year {century}",
    ),
    "held-out": (
        "The {noun} began in the year {century}{year} and ended in {century}",
        "The {noun} started in the year {century}{year} and stopped in {century}",
        "The {noun} arose in the year {century}{year} and vanished in {century}",
        "The {noun} opened in the year {century}{year} and closed in {century}",
    ),
}
NOUNS = listed(
    "war plan trial siege trade project contract campaign marriage voyage journey treaty reign strike debate study "
    "famine drought expedition festival tour struggle conflict lease custom crisis dispute alliance truce fashion ban "
    "search hunt mission"
)
CENTURIES = tuple(range(11, 18))


def greater_than(
    model: Transformer, n: int, seed: int, split: Split, counterfactual: str = FROM_01, bos: bool = False
) -> TaskPrompts:
    """`n` prompts of years from 1102 to 1798; the metric is the probability of all later years minus that of the rest.

    Raises `UserError` for a network without a tokenizer, or one that does not split years into century and rest.
    """
    tokenizer = tokenizer_for(TASK, model)
    nouns = [*single_tokens(TASK, "nouns", NOUNS, tokenizer, 2)]
    endings = two_digit_tokens(tokenizer)
    random = generator(seed, split)
    years = [c * 100 + y for c in CENTURIES for y in range(2, 99) if _splits(tokenizer, c, y)]
    if not years or not all(_splits(tokenizer, c, 1) for c in {year // 100 for year in years}):
        raise UserError(
            f"The task {TASK} does not fit this network's vocabulary: a year such as 1732 must be two tokens in it, 17 "
            f"and 32, and is {tokenizer.pieces(tokenizer.to_tokens('in 1732'))[1:]}."
        )

    def draft(template: str, attempt: int) -> Draft:
        year = years[int(torch.randint(len(years), (), generator=random))]
        clean = {"noun": random_choice(nouns, random)[0], "century": f"{year // 100}", "year": f"{year % 100:02d}"}
        return Draft(template, template, clean, clean | {"year": "01"}, year % 100, 1)

    texts, notes = drafted(TASK, tokenizer, TEMPLATES[split], n, draft, bos)
    prompts = prompts_of(TASK, split, counterfactual, texts, notes, METRIC)
    assert prompts.answers is not None  # noqa: S101 – of every task of texts
    metric = years_after(prompts.answers, prompts.positions, endings)
    # The drafts' answers are starting years here, not tokens.
    return dataclasses.replace(prompts, metric=metric, answers=None, wrong=None)


def years_after(
    starts: Int[Tensor, " batch"], positions: Int[Tensor, " batch"], endings: Int[Tensor, " 100"]
) -> ProbabilityDifference:
    """P(two digits above the start) − P(the start or below); `endings` are the tokens of 00 … 99."""
    later = torch.arange(100) > starts[:, None]
    weights: Float[Tensor, "batch 100"] = later.float() * 2 - 1
    return ProbabilityDifference(positions, endings.expand(len(starts), -1).contiguous(), weights)


def two_digit_tokens(tokenizer: Tokenizer) -> Int[Tensor, " 100"]:
    """The tokens of 00 … 99 as they continue a number. Raises `UserError` where one is split."""
    found = []
    for year in range(100):
        try:
            found.append(tokenizer.single_token(f"{year:02d}"))
        except UserError as error:
            raise UserError(f"The task {TASK} does not fit this network's vocabulary: {error}") from None
    return torch.tensor(found)


def _splits(tokenizer: Tokenizer, century: int, year: int) -> bool:
    """Whether the year, after a space, is the century's token and the rest's."""
    before = tokenizer.to_tokens("in")
    ids = tokenizer.to_tokens(f"in {century}{year:02d}")[len(before) :]
    return tokenizer.pieces(ids) == [f" {century}", f"{year:02d}"]
