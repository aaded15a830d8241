"""The tasks of published networks: every answer against a slow one from the words of the task, and their shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headwork.errors import UserError
from headwork.model.artifacts import artifacts
from headwork.tasks.brackets import BalancedBrackets
from headwork.tasks.digit_sums import DigitSums
from headwork.tasks.examples import Examples
from headwork.tasks.first_unique import FirstUnique
from headwork.tasks.group_composition import GroupComposition
from headwork.tasks.majority import Majority
from headwork.tasks.max_of_k import MaxOfK
from headwork.tasks.minimum import Minimum
from headwork.tasks.modular_addition import ModularAddition
from headwork.tasks.palindromes import Palindromes
from headwork.tasks.published import TASKS, task_of
from headwork.tasks.sorting import Sorting


def first_unique(row: list[int]) -> list[int]:
    letters = row[1:]
    so_far = [letters[: end + 1] for end in range(len(letters))]
    return [next((x for x in seen if seen.count(x) == 1), row[0]) for seen in so_far]


def balanced(row: list[int]) -> list[int]:
    text = "".join("()"[token - 3] for token in row if token > 2)
    while "()" in text:
        text = text.replace("()", "")
    return [int(not text)]


def digits(row: list[int]) -> list[int]:
    text = "".join(map(str, row[:4])), "".join(map(str, row[5:9]))
    return [int(digit) for digit in f"{int(text[0]) + int(text[1]):04}"]


# The task, the answers for one row of tokens, the length of that row, and where they are read.
SLOW: dict[str, tuple[Any, Callable[[list[int]], list[int]], int, Sequence[int]]] = {
    "addition": (ModularAddition(7, equals=7), lambda r: [(r[0] + r[1]) % 7], 3, [2]),
    "addition without =": (ModularAddition(7), lambda r: [(r[0] + r[1]) % 7], 2, [1]),
    "addition, own words": (ModularAddition(7, second=9), lambda r: [(r[0] + r[1] - 9) % 7], 2, [1]),
    "subtraction": (ModularAddition(5, equals=8, subtract=True), lambda r: [(r[0] - r[1]) % 5], 3, [2]),
    "group": (GroupComposition("dihedral", 3), lambda r: [dihedral(*r)], 2, [1]),
    "group with =": (GroupComposition("cyclic", 6, equals=6), lambda r: [(r[0] + r[1]) % 6], 3, [2]),
    "maximum": (MaxOfK(9, 3), lambda r: [max(r)], 3, [2]),
    "minimum": (Minimum(9, 2, end=12), lambda r: [min(r[:2])], 3, [2]),
    "majority": (Majority(9, 5, start=10, end=9), lambda r: [max(r[1:6], key=r[1:6].count)], 7, [6]),
    "sorting": (Sorting(9, 4, start=9, middle=10), lambda r: sorted(r[1:5]), 10, [5, 6, 7, 8]),
    "sorting letters": (Sorting(3, 6), lambda r: sorted(r[:6]), 11, [5, 6, 7, 8, 9, 10]),
    "digits": (DigitSums(4), digits, 14, [9, 10, 11, 12]),
    "first unique": (FirstUnique(5, 8, none=5), first_unique, 9, [1, 2, 3, 4, 5, 6, 7, 8]),
    "palindromes": (Palindromes(4, 6, start=4, end=5), lambda r: [int(r[1:7] == r[6:0:-1])], 8, [7]),
    "brackets": (BalancedBrackets(10), balanced, 12, [0]),
}


def dihedral(x: int, y: int) -> int:
    (a, f), (b, g) = (x % 3, x // 3), (y % 3, y // 3)
    return (a - b if f else a + b) % 3 + 3 * ((f + g) % 2)


def drawn(name: str, batch: int = 64, seed: int = 0) -> Examples:
    return SLOW[name][0].sample(batch, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", SLOW)
def test_every_answer_is_right(name: str) -> None:
    _, slow, length, read = SLOW[name]
    found = drawn(name)
    assert found.tokens.shape == (64, length)
    assert found.read == tuple(read)
    assert found.labels.tolist() == [slow(row) for row in found.tokens.tolist()]


@pytest.mark.parametrize("name", [name for name, (task, *_) in SLOW.items() if hasattr(task, "every")])
def test_the_whole_domain_has_every_input_once(name: str) -> None:
    task, slow, _, _ = SLOW[name]
    found = task.every()
    assert len(found.tokens.unique(dim=0)) == len(found)
    chosen = set(map(tuple, found.tokens.tolist()))
    assert set(map(tuple, drawn(name).tokens.tolist())) <= chosen
    assert found.labels[::7].tolist() == [slow(row) for row in found.tokens[::7].tolist()]


@pytest.mark.parametrize(
    ("task", "count"),
    [
        (ModularAddition(7), 49),
        (GroupComposition("symmetric", 3), 36),
        (MaxOfK(4, 3), 64),
        (Minimum(5, 2, 5), 25),
        (Sorting(3, 6), 729),
    ],
)
def test_the_whole_domain_has_the_size_that_it_must(task: Any, count: int) -> None:
    found = task.every()
    assert len(found) == count
    assert found.tokens[1, :].tolist() != found.tokens[0].tolist()


@pytest.mark.parametrize("name", SLOW)
def test_the_generator_alone_decides_what_is_drawn(name: str) -> None:
    assert torch.equal(drawn(name).tokens, drawn(name).tokens)
    assert not torch.equal(drawn(name).tokens, drawn(name, seed=1).tokens)


@pytest.mark.parametrize("name", SLOW)
def test_a_task_comes_back_from_its_description(name: str) -> None:
    task = SLOW[name][0]
    assert task_of(task.to_dict()) == task


def test_every_published_network_with_a_task_has_one_that_is_known() -> None:
    described = [entry.data for entry in artifacts().values() if entry.data]
    assert len(described) >= 8
    assert {type(task_of(data)).GENERATOR for data in described} <= TASKS.keys()


# --- What is drawn ---------------------------------------------------------------------------------------------------


def test_a_third_of_the_brackets_are_balanced_on_purpose_and_both_ways_to_fail_occur() -> None:
    task = BalancedBrackets(10)
    found = task.sample(300, torch.Generator().manual_seed(0))
    assert found.labels[::3].all()
    below, total = task.fails(found.tokens)
    assert torch.equal(found.labels[:, 0].bool(), ~below & ~total)
    assert all(kind.any() for kind in (below & ~total, ~below & total, below & total))


def test_balanced_strings_are_drawn_uniformly() -> None:
    task = BalancedBrackets(6)
    found = task.sample(4500, torch.Generator().manual_seed(0)).tokens[::3]
    of_six = found[(found > 2).sum(1) == 6]
    counts = of_six.unique(dim=0, return_counts=True)[1].double()
    assert len(counts) == 5  # the third Catalan number
    expected = counts.sum() / 5
    assert ((counts - expected) ** 2 / expected).sum() < 18.5  # chi-squared with 4 degrees of freedom: p = 0.001


@given(st.text("()", max_size=12))
def test_elevations_are_those_of_a_walk(text: str) -> None:
    task = BalancedBrackets(12)
    heights = [text[:n].count("(") - text[:n].count(")") for n in range(len(text) + 1)]
    low, last = task.elevations(task.of([text]).tokens)
    assert (int(low), int(last)) == (min(heights), heights[-1])


def test_half_of_the_palindromes_are_some_and_there_are_near_misses() -> None:
    found = Palindromes(31, 20, 31, 32).sample(400, torch.Generator().manual_seed(0))
    assert found.labels[:200].all()
    assert found.labels[200:].double().mean() < 0.05
    numbers = found.tokens[200:, 1:-1]
    wrong = (numbers != numbers.flip(1)).sum(1) // 2
    assert {1, 2, 3} <= set(wrong.tolist())


def test_a_majority_has_just_enough_copies_at_random_places() -> None:
    found = Majority(50, 10, 51, 50).sample(500, torch.Generator().manual_seed(0))
    here = found.tokens[:, 1:-1] == found.labels
    assert (here.sum(1) >= 6).all()
    assert (here.sum(1) == 6).double().mean() > 0.8
    assert (here.double().mean(0) - 0.6).abs().max() < 0.1


# --- Reading the logits ----------------------------------------------------------------------------------------------


def test_answers_are_read_at_the_positions_and_each_counts_for_itself() -> None:
    found = Sorting(9, 4, start=9, middle=10).of(torch.tensor([[3, 1, 2, 0], [4, 4, 5, 8]]))
    logits = torch.zeros(2, 10, 9)
    for row, answers in enumerate([[0, 1, 2, 3], [4, 4, 8, 5]]):
        for position, answer in zip(found.read, answers):
            logits[row, position, answer] = 1
    assert found.answers(logits).tolist() == [[0, 1, 2, 3], [4, 4, 8, 5]]
    assert found.correct(logits).tolist() == [[True] * 4, [True, True, False, False]]
    assert found.accuracy(logits) == 0.75
    assert len(found) == 2


def test_networks_with_one_answer_for_the_whole_input_are_read_too() -> None:
    found = GroupComposition("cyclic", 3).every()
    assert found.accuracy(torch.eye(3)[found.labels[:, 0]]) == 1
    with pytest.raises(UserError, match=r"The logits have shape \[9, 3, 3\]; .* must be \[9, 2, outputs\]"):
        found.accuracy(torch.zeros(9, 3, 3))


# --- Bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ModularAddition(1), r"modular-addition: modulus = 1; it must be a whole number, 2 or more"),
        (lambda: ModularAddition(7, equals=5), r"equals = 5; it must be a whole number, 7 or more"),
        (lambda: ModularAddition(7, second=3), r"second = 3 must be 0, or 7 or more"),
        (lambda: ModularAddition(7, second=7, equals=9), r"equals = 9; it must be a whole number, 14 or more"),
        (lambda: GroupComposition("cyclic", 5, equals=4), r"equals = 4; it must be a whole number, 5 or more"),
        (lambda: GroupComposition("monster", 1), r"Unknown group 'monster'"),
        (lambda: Sorting(9, 4, start=9, middle=9), r"start = 9, middle = 9 must differ"),
        (lambda: Minimum(9, 2, end=3), r"end = 3 is one of the 9 values"),
        (lambda: Palindromes(9, 5, 9, 10), r"palindromes: length = 5; it must be even"),
        (lambda: BalancedBrackets(8, pad=2), r"must differ from each other"),
        (lambda: DigitSums(30), r"digits = 30; it must be at most 17"),
        (lambda: DigitSums(4).of(torch.tensor([[5000, 1]])), r"numbers must be from 0 to 4999"),
        (lambda: BalancedBrackets(4).of(["(((())))"]), r"'\(\(\(\(\)\)\)\)' must be brackets .* at most 4"),
        (lambda: BalancedBrackets(4).of(["(x)"]), r"'\(x\)' must be brackets"),
        (
            lambda: Majority(9, 4, 9, 10).of(torch.tensor([[1, 1, 2, 3]])),
            r"no number fills more than half of \[1, 1, 2, 3\]",
        ),
        (lambda: task_of(None), r"card does not say which task"),
        (lambda: task_of({"generator": "chess"}), r"Unknown task on the network's card: 'chess'"),
        (lambda: task_of({"generator": "sorting", "vocab": 3}), r"description of sorting lacks some of vocab, length"),
        (
            lambda: task_of({"generator": "sorting", "vocab": 3, "size": 3}),
            r"Unknown key in the description of sorting: 'size'",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_tasks_that_cannot_be_are_refused(make: Callable[[], object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        make()
