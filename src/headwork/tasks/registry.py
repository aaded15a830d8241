"""The tasks there are, and building one's prompts for a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from headwork.errors import UserError, unknown
from headwork.model.transformer import Transformer
from headwork.tasks.task_prompts import SPLITS, Split, TaskPrompts


@dataclass(frozen=True)
class Task:
    """`needs` says in words which networks it fits; the first counterfactual is the default one.

    `build(model, n, seed, split, counterfactual, bos)` makes the prompts.
    """

    id: str
    summary: str
    needs: str
    paper: str
    counterfactuals: tuple[str, ...]
    build: Callable[[Transformer, int, int, Split, str, bool], TaskPrompts]


DEFAULT = "repeated-sequences"
_TEXT = "a tokenizer whose tokens are whole words, such as GPT-2's"


@cache
def tasks() -> dict[str, Task]:
    """All tasks by id."""
    from headwork.tasks import greater_than, induction, ioi, subject_verb

    found = (
        Task(
            induction.TASK,
            "a random segment occurs again: what came after it before?",
            "any causal network that predicts the next token",
            "Elhage et al. 2021; Olsson et al. 2022",
            (induction.REPLACED, induction.OTHER_ANSWER),
            induction.repeated_sequences,
        ),
        Task(
            ioi.TASK,
            "Mary and John went to the park, John gave a book to → Mary, not John",
            _TEXT,
            "Wang et al. 2022",
            (ioi.ABC, ioi.THIRD_NAME, ioi.SWAPPED),
            ioi.ioi,
        ),
        Task(
            greater_than.TASK,
            "The war lasted from the year 1732 to the year 17 → 33 … 99",
            "a tokenizer that splits 1732 into 17 and 32, as GPT-2's",
            "Hanna et al. 2023",
            (greater_than.FROM_01,),
            greater_than.greater_than,
        ),
        Task(
            subject_verb.TASK,
            "The dogs near the car → are, not is",
            _TEXT,
            "Finlayson et al. 2021",
            (subject_verb.OTHER_NUMBER,),
            subject_verb.subject_verb,
        ),
    )
    return {task.id: task for task in found}


def task(name: str) -> Task:
    """One task. Raises `UserError` naming the nearest ids."""
    if name not in tasks():
        raise unknown("task", name, tasks())
    return tasks()[name]


def build(
    name: str,
    model: Transformer,
    n: int = 32,
    seed: int = 0,
    split: Split = "discovery",
    counterfactual: str | None = None,
    bos: bool = False,
) -> TaskPrompts:
    """`n` prompt pairs of a task for this network, with their metric; held-out prompts have other templates.

    `bos` puts the tokenizer's first token before every prompt. Raises `UserError` for an unknown task, split or
    counterfactual, and where the network's vocabulary does not fit.
    """
    chosen = task(name)
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    named = counterfactual or chosen.counterfactuals[0]
    if named not in chosen.counterfactuals:
        raise unknown(f"counterfactual of {name}", named, chosen.counterfactuals)
    if bos and model.tokenizer_source is None:
        raise UserError("This network has no tokenizer, so there is no token that starts a text; leave bos out.")
    return chosen.build(model, n, seed, split, named, bos)
