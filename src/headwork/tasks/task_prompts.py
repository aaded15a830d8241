"""What a task hands to a method: prompt pairs, the metric to read on them, and what a reader must know of both."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from headwork.engine.metrics import Metric
from headwork.errors import UserError
from headwork.tasks.prompt_pairs import PromptPairs, of_rows

Split = Literal["discovery", "held-out"]
SPLITS: tuple[Split, ...] = ("discovery", "held-out")


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskPrompts:
    """Clean and corrupt prompts of one task and split, with a metric that has a row for each.

    `positions` is where each prompt's answer is read; `answers` and `wrong` are the token that is right on the clean
    prompt and the one that it is measured against, where the metric is about two. `templates` names what each prompt
    was made from: prompts of one template are not independent. `axis` names the positions, where they mean the same in
    every prompt. `texts` are the clean and corrupt texts, where the network reads text. `notes` are sentences.
    """

    task: str
    split: Split
    counterfactual: str
    pairs: PromptPairs
    metric: Metric
    metric_words: str
    positions: Int[Tensor, " batch"]
    templates: tuple[str, ...]
    axis: tuple[str, ...]
    answers: Int[Tensor, " batch"] | None = None
    wrong: Int[Tensor, " batch"] | None = None
    texts: tuple[tuple[str, str], ...] | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pairs.clean)

    def first(self, count: int) -> TaskPrompts:
        """The first `count` prompts."""
        rows = slice(0, min(count, len(self)))
        return dataclasses.replace(
            self,
            pairs=self.pairs.part(rows),
            metric=of_rows(self.metric, rows, len(self)),
            positions=self.positions[rows],
            templates=self.templates[rows],
            answers=None if self.answers is None else self.answers[rows],
            wrong=None if self.wrong is None else self.wrong[rows],
            texts=None if self.texts is None else self.texts[rows],
        )


def generator(seed: int, split: Split) -> torch.Generator:
    """All randomness of a task's prompts: another stream for each seed and split."""
    if seed < 0:
        raise UserError(f"The seed is {seed}; it must be 0 or more.")
    return torch.Generator().manual_seed(2 * seed + SPLITS.index(split))


def check_count(n: int) -> None:
    """Raise `UserError` unless at least one prompt is asked for."""
    if n < 1:
        raise UserError(f"{n} prompts were asked for; at least one is needed.")


def common_axis(pieces: Sequence[Sequence[str]], names: Sequence[Sequence[str]] | None = None) -> tuple[str, ...]:
    """Names for the positions: the token's text where all prompts share it, else its place's name, else its number.

    Spaces of tokens are written ␣, so that they can be told from those of names.
    """
    found = []
    for position, texts in enumerate(zip(*pieces)):
        places = {row[position] for row in names} if names else set()
        place = places.pop() if len(places) == 1 else ""
        found.append(texts[0].replace(" ", "␣") if len(set(texts)) == 1 else place or str(position))
    return tuple(found)
