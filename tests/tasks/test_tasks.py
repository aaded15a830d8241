"""Tasks are what they say: the answer is right on the clean prompt, and the counterfactual takes away what told it."""

from __future__ import annotations

import pytest
import torch
from tests.architectures import network
from tests.tasks.words import reading_network, word_tokenizer

from headwork.engine.resume import trace
from headwork.errors import UserError
from headwork.model.sources import load
from headwork.model.transformer import Transformer
from headwork.tasks import greater_than, ioi, subject_verb
from headwork.tasks.registry import build, task, tasks
from headwork.tasks.task_prompts import Split, TaskPrompts, common_axis

EVERY = [(name, counterfactual) for name, found in tasks().items() for counterfactual in found.counterfactuals]


@pytest.fixture(scope="module")
def zoo() -> Transformer:
    return load("zoo:attn-only-1l")


def words(prompts: TaskPrompts, row: int, clean: bool = True) -> list[str]:
    assert prompts.texts is not None
    return prompts.texts[row][0 if clean else 1].replace(",", "").split()


@pytest.mark.parametrize("name, counterfactual", EVERY)
def test_prompts_are_different_equally_long_and_read_by_the_metric(name: str, counterfactual: str) -> None:
    model = reading_network()
    found = {
        split: build(name, model, 9, seed=3, split=split, counterfactual=counterfactual)
        for split in ("discovery", "held-out")
    }
    for split, prompts in found.items():
        assert (len(prompts), prompts.split, prompts.counterfactual) == (9, split, counterfactual)
        clean, corrupt = prompts.pairs.clean, prompts.pairs.corrupt
        assert clean.shape == corrupt.shape == (9, len(prompts.axis))
        assert len({tuple(row) for row in clean.tolist()}) == 9
        values = prompts.metric(model, trace(model, clean).resid_final, 0)
        assert values.shape == (9,)
        assert values.isfinite().all()
        assert (prompts.positions == clean.shape[1] - 1).all()
        if prompts.texts is not None:
            assert clean.tolist() == [model.tokenizer.to_tokens(text) for text, _ in prompts.texts]
            assert corrupt.tolist() == [model.tokenizer.to_tokens(text) for _, text in prompts.texts]
    discovery, held_out = found.values()
    if discovery.texts is not None:
        assert not set(discovery.templates) & set(held_out.templates)
    assert not {tuple(row) for row in discovery.pairs.clean.tolist()} & {
        tuple(row) for row in held_out.pairs.clean.tolist()
    }


@pytest.mark.parametrize("name", tasks())
def test_the_seed_decides_the_prompts(name: str) -> None:
    one, same, other = (build(name, reading_network(), 6, seed=seed).pairs for seed in (5, 5, 6))
    assert torch.equal(one.clean, same.clean)
    assert torch.equal(one.corrupt, same.corrupt)
    assert not torch.equal(one.clean, other.clean)


@pytest.mark.parametrize("split", ["discovery", "held-out"])
def test_the_last_copy_goes_on_as_the_copies_before_it(zoo: Transformer, split: Split) -> None:
    replaced = build("repeated-sequences", zoo, 20, split=split)
    other = build("repeated-sequences", zoo, 20, split=split, counterfactual="other-answer")
    assert torch.equal(replaced.pairs.clean, other.pairs.clean)
    assert other.answers is not None
    assert other.wrong is not None
    for i in range(20):
        clean, answer, wrong = other.pairs.clean[i].tolist(), int(other.answers[i]), int(other.wrong[i])

        def after(row: list[int]) -> list[int]:
            """What follows earlier places of the last two tokens."""
            return [row[p + 1] for p in range(1, len(row) - 1) if row[p - 1 : p + 1] == row[-2:]]

        assert answer in after(clean)
        assert wrong in after(other.pairs.corrupt[i].tolist())
        assert answer not in after(other.pairs.corrupt[i].tolist())
        assert not after(replaced.pairs.corrupt[i].tolist())
        assert other.pairs.corrupt[i].tolist()[-1] == clean[-1]


def test_ioi_asks_for_the_name_that_stands_once() -> None:
    found = {c: build("ioi", reading_network(), 12, counterfactual=c) for c in task("ioi").counterfactuals}
    pieces = word_tokenizer().pieces
    for name, prompts in found.items():
        assert prompts.answers is not None
        assert prompts.wrong is not None
        for i in range(12):
            answer, wrong = (pieces([int(t[i])])[0].strip() for t in (prompts.answers, prompts.wrong))
            clean, corrupt = words(prompts, i), words(prompts, i, clean=False)
            assert (clean.count(answer), clean.count(wrong)) == (1, 2)
            changed = [at for at in range(len(clean)) if clean[at] != corrupt[at]]
            assert len(changed) == {"abc": 3, "third-name": 1, "swapped": 1}[name]
            giver = corrupt[changed[-1]]
            if name == "swapped":
                assert giver == answer
            else:
                assert giver not in clean
            if name == "abc":
                assert len({corrupt[at] for at in changed}) == 3
                assert not {answer, wrong} & set(corrupt)
    # Both orders come, of the same templates: they are no templates of their own, over which an interval might go.
    abc = found["abc"]
    assert abc.answers is not None
    first = [words(abc, i)[1] == pieces([int(abc.answers[i])])[0].strip() for i in range(12)]
    assert {*first} == {True, False}
    assert {*abc.templates} == {*ioi.TEMPLATES["discovery"]}


def test_the_verb_agrees_with_the_subject_and_not_with_the_noun_beside_it() -> None:
    prompts = build("subject-verb", reading_network(), 20)
    assert prompts.answers is not None
    assert prompts.wrong is not None
    other_number = 0
    for i in range(20):
        _, subject, _, _, noun = words(prompts, i)
        pair = [word_tokenizer().pieces([int(t[i])])[0].strip() for t in (prompts.answers, prompts.wrong)]
        plural = subject.endswith("s")
        assert tuple(pair if not plural else reversed(pair)) in subject_verb.VERBS
        assert words(prompts, i, clean=False)[1] == (subject[:-1] if plural else f"{subject}s")
        assert words(prompts, i, clean=False)[2:] == words(prompts, i)[2:]
        other_number += plural != noun.endswith("s")
    assert 0 < other_number < 20


def test_the_metric_of_years_is_the_probability_of_those_after_less_that_of_the_rest() -> None:
    model = reading_network()
    prompts = build("greater-than", model, 7, split="held-out")
    endings = greater_than.two_digit_tokens(word_tokenizer())
    logits = model(prompts.pairs.clean)[:, -1]
    found = prompts.metric(model, trace(model, prompts.pairs.clean).resid_final, 0)
    for i in range(7):
        text = " ".join(words(prompts, i))
        century = words(prompts, i)[-1]
        start = int(text.split(century, 1)[1][:2])
        odds = [logits[i, endings[year]].exp().item() for year in range(100)]
        total = logits[i].exp().sum().item()
        assert found[i].item() == pytest.approx((sum(odds[start + 1 :]) - sum(odds[: start + 1])) / total, abs=1e-12)
        assert " ".join(words(prompts, i, clean=False)) == text.replace(f"{century}{start:02d}", f"{century}01")


def test_positions_are_named_by_what_all_prompts_share() -> None:
    ioi = build("ioi", reading_network(), 12)
    assert ioi.axis[1:4] == ("first name", "␣and", "second name")
    assert ioi.axis[-1] == "␣to"
    assert ioi.axis[0] == "0"
    assert common_axis([["a", " b"], ["a", " c"]]) == ("a", "1")
    started = build("ioi", reading_network(), 4, bos=True)
    assert started.axis[0] == "<|endoftext|>"
    assert started.axis[2] == "first name"


def test_the_first_prompts_keep_their_metric() -> None:
    model = reading_network()
    for name in tasks():
        prompts = build(name, model, 5)
        some = prompts.first(2)
        whole = prompts.metric(model, trace(model, prompts.pairs.clean).resid_final, 0)
        part = some.metric(model, trace(model, some.pairs.clean).resid_final, 0)
        torch.testing.assert_close(part, whole[:2])
        assert len(some) == len(some.templates) == 2


@pytest.mark.usefixtures("unchecked")
def test_what_a_task_cannot_do_is_refused() -> None:
    model = reading_network()
    for arguments, said in [
        (("iio", model), "Unknown task 'iio': the nearest valid one is ioi"),
        (("ioi", model, 0), "0 prompts were asked for"),
        (("ioi", model, 3, -1), "The seed is -1"),
        (("ioi", model, 3, 0, "heldout"), "held-out"),
        (("ioi", model, 3, 0, "discovery", "swap"), "swapped"),
        (("ioi", network("gpt2")), "The task ioi is English text and this network has no tokenizer"),
        (("ioi", network("gpt2"), 3, 0, "discovery", None, True), "no tokenizer"),
        (("greater-than", reading_network(50)), "needs a network that predicts its tokenizer's"),
        (("repeated-sequences", network("bidirectional-pad")), "is bidirectional"),
        (("repeated-sequences", network("classifier")), "answers with 3 classes"),
        (("repeated-sequences", network("gpt2")), "at least 15 tokens over 3 symbols; this network reads 7 over 11"),
    ]:
        with pytest.raises(UserError, match=said):
            build(*arguments)


def test_a_vocabulary_without_the_words_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from headwork.tasks import ioi

    monkeypatch.setattr(ioi, "NAMES", ("Wolfgang", "Mary", "Grimhild", "Anna"))
    with pytest.raises(UserError, match="does not fit this network's vocabulary: 2 of its 4 names are one token"):
        build("ioi", reading_network(), 3)


def test_more_prompts_than_there_are_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject_verb, "NOUNS", ("dog", "cat"))
    with pytest.raises(UserError, match=r"about \d+ different prompts in this split; 90 were asked for"):
        build("subject-verb", reading_network(), 90)
    assert len(build("subject-verb", reading_network(), 8)) == 8


def test_templates_of_another_length_are_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    longer = "The {subject} near the table near the {noun}"
    kept = dict(subject_verb.TEMPLATES)
    monkeypatch.setattr(subject_verb, "TEMPLATES", {**kept, "discovery": (longer, *kept["discovery"])})
    prompts = build("subject-verb", reading_network(), 8)
    assert longer not in prompts.templates
    assert prompts.notes == ("1 of 5 templates have another length in this network's tokens and are left out.",)
