"""The task that a network was trained on, from what its card says about its training data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headwork.errors import UserError, unknown
from headwork.tasks.brackets import BalancedBrackets
from headwork.tasks.digit_sums import DigitSums
from headwork.tasks.examples import Described
from headwork.tasks.first_unique import FirstUnique
from headwork.tasks.group_composition import GroupComposition
from headwork.tasks.majority import Majority
from headwork.tasks.max_of_k import MaxOfK
from headwork.tasks.minimum import Minimum
from headwork.tasks.modular_addition import ModularAddition
from headwork.tasks.palindromes import Palindromes
from headwork.tasks.sorting import Sorting

TASKS: Mapping[str, type[Described]] = {
    task.GENERATOR: task
    for task in (
        BalancedBrackets,
        DigitSums,
        FirstUnique,
        GroupComposition,
        Majority,
        MaxOfK,
        Minimum,
        ModularAddition,
        Palindromes,
        Sorting,
    )
}
"""Tasks with examples and right answers, by the name under which a card describes them."""


def task_of(data: Mapping[str, Any] | None) -> Any:
    """The task that a card's `data` describes. Raises `UserError` where it describes none with right answers."""
    if not data or "generator" not in data:
        raise UserError("The network's card does not say which task it was trained on.")
    name = str(data["generator"])
    if name not in TASKS:
        raise unknown("task on the network's card:", name, TASKS)
    return TASKS[name].from_dict(data)
