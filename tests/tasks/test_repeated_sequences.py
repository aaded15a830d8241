"""The generator keeps its word for every distribution that it accepts, and refuses the others in one sentence."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from headwork.errors import UserError
from headwork.tasks.repeated_sequences import Placement, RepeatedBatch, RepeatedSequences, duplicates, followers

DEFAULT = RepeatedSequences(vocab=128, length=64, segment=(8, 20), copies=(3, 3))


@st.composite
def distributions(draw: st.DrawFn) -> RepeatedSequences:
    """Any small distribution, filled to the last token or with room between the copies, with a BOS or without."""
    shortest = draw(st.integers(2, 4))
    longest = draw(st.integers(shortest, 6))
    fewest = draw(st.integers(2, 3))
    most = draw(st.integers(fewest, 4))
    first = draw(st.integers(0, 5))
    vocab = first + draw(st.integers(3, 40))
    bos = draw(st.none() | st.integers(0, vocab + 2))
    length = longest * most + draw(st.integers(0, 9)) + (bos is not None)
    placement: Placement = draw(st.sampled_from(get_args(Placement)))
    return RepeatedSequences(vocab, length, (shortest, longest), (fewest, most), placement, first, bos)


SEEDS = st.integers(0, 2**31)


def sample(distribution: RepeatedSequences, seed: int, batch: int = 5) -> RepeatedBatch:
    return distribution.sample(batch, torch.Generator().manual_seed(seed))


def copies_of(batch: RepeatedBatch, row: int) -> list[list[int]]:
    """The positions of each copy in one sequence, copy by copy."""
    numbers = batch.copy[row].tolist()
    return [[p for p, number in enumerate(numbers) if number == copy] for copy in range(max(numbers) + 1)]


@settings(deadline=None, max_examples=150)
@given(distributions(), SEEDS)
def test_copies_are_whole_alike_and_apart(distribution: RepeatedSequences, seed: int) -> None:
    batch = sample(distribution, seed)
    for row in range(len(batch.tokens)):
        places = copies_of(batch, row)
        assert distribution.copies[0] <= len(places) <= distribution.copies[1]
        length = len(places[0])
        assert distribution.segment[0] <= length <= distribution.segment[1]
        content = batch.tokens[row, places[0]].tolist()
        for i, place in enumerate(places):
            assert place == list(range(place[0], place[0] + length))
            assert batch.index[row, place].tolist() == list(range(length))
            assert batch.tokens[row, place].tolist() == content
            assert i == 0 or places[i - 1][-1] < place[0]
        assert ((batch.copy[row] < 0) == (batch.index[row] < 0)).all()


@settings(deadline=None, max_examples=100)
@given(distributions(), SEEDS)
def test_tokens_come_from_the_alphabet_and_the_bos_stands_first(distribution: RepeatedSequences, seed: int) -> None:
    batch = sample(distribution, seed)
    drawn = batch.tokens
    if distribution.bos is not None:
        assert (drawn[:, 0] == distribution.bos).all()
        assert (batch.copy[:, 0] == -1).all()
        drawn = drawn[:, 1:]
    assert drawn.min() >= distribution.first_token
    assert drawn.max() < distribution.vocab
    assert batch.tokens.shape == (5, distribution.length)


@settings(deadline=None, max_examples=100)
@given(distributions(), SEEDS)
def test_predictable_and_unpredictable_are_what_the_copies_say(distribution: RepeatedSequences, seed: int) -> None:
    batch = sample(distribution, seed)
    for row in range(len(batch.tokens)):
        places = copies_of(batch, row)
        known = {p for place in places[1:] for p in place[:-1]}
        told = {p for place in places[1:] for p in place}
        fresh = {p for p in range(distribution.length - 1) if p + 1 not in told}
        assert set(batch.predictable[row].nonzero()[:, 0].tolist()) == known
        assert set(batch.unpredictable[row].nonzero()[:, 0].tolist()) == fresh
        assert set(batch.last_copy()[row].nonzero()[:, 0].tolist()) == set(places[-1][:-1])
        # What makes a position predictable: the first copy, at the same place in it, goes on with the same token.
        for p in known:
            earlier = places[0][int(batch.index[row, p])]
            assert batch.tokens[row, p] == batch.tokens[row, earlier]
            assert batch.targets[row, p] == batch.tokens[row, p + 1] == batch.tokens[row, earlier + 1]
    assert not (batch.predictable & batch.unpredictable).any()
    assert not (batch.predictable | batch.unpredictable)[:, -1].any()


@settings(deadline=None, max_examples=50)
@given(distributions(), SEEDS)
def test_the_generator_alone_decides(distribution: RepeatedSequences, seed: int) -> None:
    before = torch.random.get_rng_state()
    one, two, other = sample(distribution, seed), sample(distribution, seed), sample(distribution, seed + 1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(getattr(one, part), getattr(two, part)) for part in ("tokens", "copy", "index"))
    assert not torch.equal(one.tokens, other.tokens)


@settings(deadline=None, max_examples=100)
@given(distributions(), SEEDS)
def test_replacing_changes_every_token_of_the_earlier_copies_and_nothing_else(
    distribution: RepeatedSequences, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    batch = distribution.sample(5, generator)
    replaced = batch.with_earlier_copies_replaced(generator, distribution.alphabet)
    changed = replaced.tokens != batch.tokens
    for row in range(len(batch.tokens)):
        earlier = {p for place in copies_of(batch, row)[:-1] for p in place}
        assert set(changed[row].nonzero()[:, 0].tolist()) == earlier
    assert replaced.tokens[changed].min() >= distribution.first_token
    assert replaced.tokens[changed].max() < distribution.vocab
    assert torch.equal(replaced.copy, batch.copy)


def test_replaced_copies_agree_with_the_last_one_no_more_than_chance_has_it() -> None:
    generator = torch.Generator().manual_seed(0)
    batch = DEFAULT.sample(300, generator)
    replaced = batch.with_earlier_copies_replaced(generator, DEFAULT.alphabet)
    alike: list[bool] = []
    for row, tokens in zip(range(300), replaced.tokens):
        first, second, last = copies_of(replaced, row)
        alike += (tokens[first] == tokens[second]).tolist() + (tokens[second] == tokens[last]).tolist()
    assert sum(alike) / len(alike) < 0.02


def distances(batch: RepeatedBatch) -> list[tuple[int, ...]]:
    starts = [[place[0] for place in copies_of(batch, row)] for row in range(len(batch.tokens))]
    return [tuple(b - a for a, b in itertools.pairwise(one)) for one in starts]


@settings(deadline=None, max_examples=100)
@given(distributions(), SEEDS)
def test_distances_vary_exactly_where_the_distribution_says_so(distribution: RepeatedSequences, seed: int) -> None:
    found = {gap for gaps in distances(sample(distribution, seed, 200)) for gap in gaps}
    assert (len(found) > 1) == distribution.varies


@settings(deadline=None, max_examples=100)
@given(distributions(), SEEDS)
def test_with_varied_distance_varies_and_keeps_the_rest(distribution: RepeatedSequences, seed: int) -> None:
    if distribution.segment == (2, 2) and not distribution.varies and distribution.room == 2 * distribution.copies[0]:
        with pytest.raises(UserError, match="for the distance between copies to vary they need"):
            distribution.with_varied_distance()
        return
    varied = distribution.with_varied_distance()
    assert varied.varies
    assert (varied == distribution) == distribution.varies
    assert varied.segment[1] == distribution.segment[1]
    same = dataclasses.replace(varied, segment=distribution.segment, placement=distribution.placement)
    assert same == distribution
    assert len({gap for gaps in distances(sample(varied, seed, 200)) for gap in gaps}) > 1


def test_copies_that_fill_the_sequence_are_not_scattered() -> None:
    packed = RepeatedSequences(vocab=50, length=24, segment=(12, 12), copies=(2, 2), placement="scattered")
    assert not packed.varies
    assert set(distances(sample(packed, 0, 100))) == {(12,)}


def test_scattered_copies_stand_anywhere() -> None:
    batch = sample(DEFAULT, 0, 2000)
    begins = (batch.copy == 0) & (batch.index == 0)
    ends = torch.stack([batch.copy[row] == 2 for row in range(2000)])[:, -1]
    assert begins[:, 0].any()
    assert ends.any()
    assert len({gaps[0] for gaps in distances(batch)}) > 30


def slow_followers(tokens: Tensor) -> tuple[Tensor, Tensor]:
    batch, length = tokens.shape
    follows = torch.zeros(batch, length, length, dtype=torch.bool)
    doubles = torch.zeros_like(follows)
    for b in range(batch):
        for query in range(length):
            for earlier in range(query):
                if tokens[b, earlier] == tokens[b, query]:
                    doubles[b, query, earlier] = True
                    follows[b, query, earlier + 1] = True
    return follows, doubles


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.integers(0, 3), min_size=9, max_size=9), min_size=1, max_size=3))
def test_followers_and_duplicates_are_the_loops(rows: list[list[int]]) -> None:
    tokens = torch.tensor(rows)
    follows, doubles = slow_followers(tokens)
    assert torch.equal(followers(tokens), follows)
    assert torch.equal(duplicates(tokens), doubles)


@settings(deadline=None, max_examples=50)
@given(distributions())
def test_a_card_gives_back_the_distribution(distribution: RepeatedSequences) -> None:
    assert RepeatedSequences.from_dict(distribution.to_dict()) == distribution


def test_a_single_number_stands_for_a_range_of_one() -> None:
    stated: dict[str, Any] = {"vocab": 9, "length": 20, "segment": 4, "copies": 3}
    found = RepeatedSequences.from_dict(stated)
    assert (found.segment, found.copies) == ((4, 4), (3, 3))


GOOD = {"vocab": 9, "length": 20, "segment": [4, 5], "copies": [2, 3]}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"segment": [1, 4]}, r"segment = \[1, 4\] must be a range that starts at 2 or more"),
        ({"segment": [5, 4]}, r"segment = \[5, 4\] must be a range"),
        ({"copies": 1}, r"copies = \[1, 1\] must be a range that starts at 2 or more"),
        ({"copies": [2, 5]}, "5 copies of 5 tokens do not fit into sequences of 20 tokens"),
        ({"bos": 0, "copies": [4, 4]}, "4 copies of 5 tokens do not fit into sequences of 19 tokens"),
        ({"first_token": 7}, "A vocabulary of 2 tokens is too small"),
        ({"first_token": -1}, "first_token = -1; it must be a whole number, 0 or more"),
        ({"bos": -3}, "bos = -3; it must be a whole number"),
        ({"placement": "fixd"}, "the nearest valid one is fixed"),
        ({"placement": None}, "Unknown placement of repeats 'None'"),
        ({"segmnt": 3}, "Unknown key in the training distribution: 'segmnt': the nearest valid ones are segment,"),
        ({"segment": [2, 3, 4]}, r"segment = \[2, 3, 4\]; it must be one number or two"),
        ({"segment": "4"}, "segment = '4'; it must be a whole number"),
        ({"copies": [2, 2.5]}, "copies = 2.5; it must be a whole number"),
        ({"vocab": "many"}, "vocab = 'many'; it must be a whole number"),
        ({"length": None}, "length = None; it must be a whole number"),
        ({"length": True}, "length = True; it must be a whole number"),
    ],
)
def test_what_cannot_be_drawn_is_refused(change: dict[str, Any], sentence: str) -> None:
    assert RepeatedSequences.from_dict(GOOD).vocab == 9
    with pytest.raises(UserError, match=sentence):
        RepeatedSequences.from_dict(GOOD | change)


@pytest.mark.parametrize("key", ["vocab", "length", "segment"])
def test_what_a_card_must_state_is_named(key: str) -> None:
    with pytest.raises(UserError, match=f"The training distribution lacks {key}."):
        RepeatedSequences.from_dict({k: v for k, v in GOOD.items() if k != key})
