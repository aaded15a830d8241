"""Prompts that a user gives, as a pair or in a file of one of the published forms."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.architectures import network
from tests.tasks.words import reading_network, word_tokenizer

from headwork.engine.metrics import LogitContrast, LogitDifference, ProbabilityDifference
from headwork.engine.resume import trace
from headwork.errors import UserError
from headwork.model.config import TransformerConfig
from headwork.model.initialise import initialise
from headwork.model.tokenizer import read_tokenizer
from headwork.model.transformer import Transformer
from headwork.tasks.given_pair import given_pair
from headwork.tasks.pairs_file import pairs_file
from headwork.tasks.task_prompts import TaskPrompts

TEXTS = (
    "When Mary and John went to the park, John gave a book to",
    "When Mary and John went to the park, Mary gave a book to",
)


def token(text: str) -> int:
    return word_tokenizer().single_token(text)


def value(model: Transformer, prompts: TaskPrompts) -> torch.Tensor:
    return prompts.metric(model, trace(model, prompts.pairs.clean).resid_final, 0)


# --- one pair ---------------------------------------------------------------------------------------------------------


def test_a_pair_of_texts_is_read_where_it_ends() -> None:
    model = reading_network()
    prompts = given_pair(model, *TEXTS, " Mary", " John")
    logits = model(torch.tensor([word_tokenizer().to_tokens(TEXTS[0])]))[0, -1]
    assert value(model, prompts).item() == pytest.approx((logits[token(" Mary")] - logits[token(" John")]).item())
    assert prompts.axis[:3] == ("When", "␣Mary", "␣and")
    assert prompts.texts == (TEXTS,)
    assert len(given_pair(model, *TEXTS, " Mary", " John", bos=True).axis) == len(prompts.axis) + 1


@pytest.mark.parametrize("given", [(None, None), ("7", None), (None, "7"), ("7", "3")])
def test_a_pair_of_ids_takes_the_networks_own_answers(given: tuple[str | None, str | None]) -> None:
    model = network("neox")

    def said_after(last: int) -> int:
        return int(model(torch.tensor([[5, 3, 9, last]]))[0, -1].argmax())

    other = next(last for last in range(11) if said_after(last) != said_after(5))
    own = [said_after(5), said_after(other)]
    answer, wrong = given
    prompts = given_pair(model, "5 3 9 5", f"5, 3, 9, {other}", answer, wrong)
    expected = [int(text) if text else own[i] for i, text in enumerate(given)]
    assert prompts.answers is not None
    assert prompts.wrong is not None
    assert [int(prompts.answers), int(prompts.wrong)] == expected
    assert bool(prompts.notes) == (None in given)
    assert prompts.axis == ("5", "3", "9", "5")


@pytest.mark.parametrize(
    "clean, corrupt, answer, wrong, said",
    [
        (*TEXTS, " Mary", " Johnson", r"An answer must be one token: ' Johnson' is \d tokens here"),
        (*TEXTS, " Mary", " Mary", "Answer and wrong answer are both ' Mary'"),
        (TEXTS[0], "When Mary", None, None, r"has 14 tokens \(When\| Mary\|.*\) and the corrupt one 2 tokens"),
        (TEXTS[0], TEXTS[0], None, None, "are the same prompt"),
        (TEXTS[0], "", None, None, "A prompt is empty"),
    ],
)
def test_a_pair_that_says_nothing_is_refused(
    clean: str, corrupt: str, answer: str | None, wrong: str | None, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        given_pair(reading_network(), clean, corrupt, answer, wrong)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("5 x 9", "5 4 9"), "prompts are token ids such as 5 3 9; 'x' is no whole number"),
        (("5 3 9", "5 4 9", "Mary"), "answers are token ids such as 5 3 9; 'Mary' is no whole number"),
        (("5 3 9", "5 4 9", "11"), "The answer is token 11; this network has logits for 0–10"),
        (("5 3 9", "5 4 99999999999999999999"), "The token 99999999999999999999 is outside any network's vocabulary"),
        (("5 3 11", "5 4 11"), "Token 11 is outside this model's vocabulary 0–10"),
    ],
)
def test_ids_that_the_network_lacks_are_refused(arguments: tuple[str, ...], said: str) -> None:
    clean, corrupt, *answer = arguments
    with pytest.raises(UserError, match=said):
        given_pair(network("gpt2"), clean, corrupt, answer[0] if answer else None)


# --- files ------------------------------------------------------------------------------------------------------------


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
        return path
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def pair(name: str = "Mary", place: str = "park", **answers: Any) -> dict[str, Any]:
    clean = f"When {name} and John went to the {place}, John gave a book to"
    return {"clean": clean, "corrupted": clean.replace(", John", ", Anna"), **answers}


IDS = {"Mary": " Mary", "Emma": " Emma", "Lucy": " Lucy"}


@pytest.mark.parametrize("suffix", ["csv", "json"])
@pytest.mark.parametrize(
    "right, wrong",
    [("correct_idx", "incorrect_idx"), ("clean_answer_idx", "corrupted_answer_idx"), ("answer", "wrong")],
)
def test_two_answers_make_a_logit_difference(tmp_path: Path, suffix: str, right: str, wrong: str) -> None:
    model = reading_network()
    rows = []
    for name, text in IDS.items():
        answers: dict[str, Any] = {right: text, wrong: " John"}
        if right != "answer":
            answers = {column: token(said) for column, said in answers.items()}
        rows.append(pair(name, **answers))
    prompts = pairs_file(written(tmp_path / f"pairs.{suffix}", rows), model, split="discovery")
    rest = pairs_file(tmp_path / f"pairs.{suffix}", model, split="held-out")
    assert isinstance(prompts.metric, LogitDifference)
    assert {*prompts.pairs.labels} | {*rest.pairs.labels} == {"1", "2", "3"}
    assert not {*prompts.pairs.labels} & {*rest.pairs.labels}
    for some in (prompts, rest):
        for i, label in enumerate(some.pairs.labels):
            row = rows[int(label) - 1]
            logits = model(torch.tensor([word_tokenizer().to_tokens(row["clean"])]))[0, -1]
            name = list(IDS.values())[int(label) - 1]
            assert value(model, some)[i].item() == pytest.approx((logits[token(name)] - logits[token(" John")]).item())


def test_lists_of_answers_make_a_contrast_of_means(tmp_path: Path) -> None:
    model = reading_network()
    rows = [
        pair(answers=[" Mary"], wrong_answers=[" John", " Anna"]),
        pair("Emma", answers=[" Emma", " Lucy"], wrong_answers=[" John"]),
    ]
    (tmp_path / "pairs.json").write_text(json.dumps({"seq_labels": [], "prompts": [{**r, "group": "g"} for r in rows]}))
    prompts = pairs_file(tmp_path / "pairs.json", model)
    assert isinstance(prompts.metric, LogitContrast)
    assert prompts.notes == ("The file has one template only, so discovery and held-out prompts are the same.",)
    for i, row in enumerate(rows):
        logits = model(torch.tensor([word_tokenizer().to_tokens(row["clean"])]))[0, -1]
        means = [torch.stack([logits[token(t)] for t in row[k]]).mean() for k in ("answers", "wrong_answers")]
        assert value(model, prompts)[i].item() == pytest.approx((means[0] - means[1]).item())


def test_choices_as_in_mib_with_the_counterfactual_that_is_named(tmp_path: Path) -> None:
    row = pair()
    choices = {"choices": ["Mary", "John"], "answerKey": 0}
    other = {"prompt": row["clean"].replace(", John", ", Mary"), **choices}
    given = {"prompt": row["clean"], **choices, "abc": {"prompt": row["corrupted"], **choices}, "swap": other}
    path = written(tmp_path / "mib.json", [given])
    prompts = pairs_file(path, reading_network(), counterfactual="swap")
    assert isinstance(prompts.metric, LogitDifference)
    assert (int(prompts.metric.correct), int(prompts.metric.wrong)) == (token(" Mary"), token(" John"))
    assert prompts.texts == ((row["clean"], other["prompt"]),)
    with pytest.raises(UserError, match=r"has no column 'corrupted' or 'corrupt'; it has .*'abc', 'swap'"):
        pairs_file(path, reading_network())
    with pytest.raises(UserError, match="answerKey = 2; it must be the place of one of its choices"):
        pairs_file(written(tmp_path / "no.json", [{**given, "answerKey": 2}]), reading_network())


def test_the_number_of_the_verb_and_the_year_after(tmp_path: Path) -> None:
    model = reading_network()
    rows = [{"clean": "The dogs near the car", "corrupted": "The dog near the car", "plural": "1"}]
    prompts = pairs_file(written(tmp_path / "sva.csv", rows), model)
    assert isinstance(prompts.metric, LogitContrast)
    logits = model(prompts.pairs.clean)[0, -1]
    many, one = ([logits[token(f" {v}")] for v in words] for words in (("are", "were", "have"), ("is", "was", "has")))
    assert value(model, prompts).item() == pytest.approx(((sum(many) - sum(one)) / 3).item())  # type: ignore[union-attr]
    rows = [{"clean": "The war lasted from the year 1732 to the year 17", "correct_idx": "32"}]
    rows = [{**row, "corrupted": row["clean"].replace("1732", "1701")} for row in rows]
    prompts = pairs_file(written(tmp_path / "years.csv", rows), model)
    assert isinstance(prompts.metric, ProbabilityDifference)
    odds = model(prompts.pairs.clean)[0, -1].softmax(-1)
    slow = torch.stack([odds[token(f"{y:02d}")] * (1 if y > 32 else -1) for y in range(100)]).sum()
    assert value(model, prompts).item() == pytest.approx(float(slow.detach()))


def test_pairs_of_other_lengths_are_left_out_and_said(tmp_path: Path) -> None:
    ids = {"correct_idx": 1, "incorrect_idx": 2}
    rows = [{"clean": [1, 2, 3 + i], "corrupt": [1, 3, 3 + i], **ids} for i in range(6)]
    rows += [{"clean": [1, 2], "corrupt": [2, 2], **ids}, {"clean": [1, 2, 3], "corrupt": [2, 2], **ids}]
    rows = [{**row, "group": "all"} for row in rows]
    prompts = pairs_file(written(tmp_path / "pairs.json", rows), network("gpt2"))
    assert prompts.pairs.labels == ("1", "2", "3", "4", "5", "6")
    assert prompts.notes[0] == (
        "Of 8 pairs in this split 1 are unequally long and 1 are of other lengths; the 6 of 3 tokens can be drawn."
    )
    assert prompts.texts is None
    few = [pairs_file(tmp_path / "pairs.json", network("gpt2"), 2, seed=seed).pairs.labels for seed in range(5)]
    assert all(len(labels) == 2 for labels in few)
    assert len(set(few)) > 1


def test_splits_keep_templates_together(tmp_path: Path) -> None:
    rows = [
        {"clean": [1, 2, i], "corrupt": [1, 3, i], "template": f"t{i % 4}", "correct_idx": 1, "incorrect_idx": 2}
        for i in range(4, 11)
    ]
    path = written(tmp_path / "pairs.json", rows)
    one, other = (set(pairs_file(path, network("gpt2"), split=s).templates) for s in ("discovery", "held-out"))
    assert len(one) == len(other) == 2
    assert not one & other


def seen(path: Path, **options: Any) -> tuple[TaskPrompts, TaskPrompts]:
    model = reading_network() if "Mary" in path.read_text() else network("gpt2")
    one, other = (pairs_file(path, model, split=split, **options) for split in ("discovery", "held-out"))
    return one, other


def test_a_template_may_be_the_number_0(tmp_path: Path) -> None:
    rows = [
        {"clean": [1, 2, i], "corrupt": [1, 3, i], "template": i % 3, "correct_idx": 1, "incorrect_idx": 2}
        for i in range(9)
    ]
    one, other = (found.templates for found in seen(written(tmp_path / "pairs.json", rows)))
    assert {*one} | {*other} == {"0", "1", "2"}
    assert not {*one} & {*other}


def test_templates_of_choices_as_in_mib_are_kept(tmp_path: Path) -> None:
    choices = {"choices": ["Mary", "John"], "answerKey": 0}
    rows = []
    for i, (name, place) in enumerate((n, p) for n in IDS for p in ("park", "house", "school", "office")):
        row = pair(name, place)
        rows.append({"prompt": row["clean"], **choices, "template": i % 4, "abc": {"prompt": row["corrupted"]}})
    one, other = (found.templates for found in seen(written(tmp_path / "mib.json", rows)))
    assert {*one} | {*other} == {"0", "1", "2", "3"}
    assert not {*one} & {*other}


def test_a_prompt_that_a_file_has_twice_is_in_one_split(tmp_path: Path) -> None:
    rows = [{"clean": [1, 2, i % 5], "corrupt": [1, 3, i], "correct_idx": 1, "incorrect_idx": 2} for i in range(10)]
    one, other = seen(written(tmp_path / "pairs.json", rows))
    assert len(one) + len(other) == 10
    assert not {*one.pairs.clean[:, 2].tolist()} & {*other.pairs.clean[:, 2].tolist()}
    assert len({*one.templates}) == 3


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("no.csv", None, "Cannot read"),
        ("empty.csv", "clean,corrupted\n", "has no rows"),
        ("x.json", "{", "is not JSON"),
        ("x.json", '{"pairs": []}', "must be a JSON list of objects"),
        ("x.json", "[1]", "must be a JSON list of objects"),
        ("x.json", "[]", "has no rows"),
        ("x.csv", b"\xff\xfe", "is not text in UTF-8"),
        ("x.csv", "corrupted\nThe\n", "has no column 'clean'; it has 'corrupted'"),
        ("x.csv", "clean\nThe\n", "has no column 'corrupted' or 'corrupt'; it has 'clean'"),
        ("x.csv", "clean,corrupted\nThe,When\n", "has no columns of answers"),
        ("x.csv", "clean,corrupted\nThe,\n", "Row 1 of .*x.csv has corrupted = ''; it must be text"),
        ("x.csv", "clean,corrupted\nThe,The war\n", "None of the 1 pairs of .* equally many tokens"),
        ("x.csv", "clean,corrupted,answer,wrong\nThe,When, Johnson, Mary\n", "Row 1 of .*, answer: An answer must be"),
        ("x.csv", "clean,corrupted,answer,wrong\nThe,When,, Mary\n", "'' is no token"),
        ("x.csv", "clean,corrupted,correct_idx,incorrect_idx\nThe,When,x,1\n", "correct_idx: .*'x'"),
        ("x.csv", "clean,corrupted,correct_idx,incorrect_idx\nThe,When,99999,1\n", "99999 is no token with a logit"),
        ("x.csv", "clean,corrupted,plural\nThe,When,many\n", "plural = 'many'; it must be 0 or 1"),
        ("x.csv", "clean,corrupted,correct_idx\nThe,When,5\n", "correct_idx = '5' and no incorrect_idx; alone it must"),
        ("x.json", '[{"clean": [true], "corrupt": [1]}]', r"clean = \[True\]; it must be text or a list"),
        (
            "x.json",
            '[{"clean": [1], "corrupt": [2], "answers": [[1]], "wrong_answers": [[2]]}]',
            "answers for several positions",
        ),
        ("x.json", '[{"clean": [1], "corrupt": [2], "answers": [], "wrong_answers": [2]}]', "has no answers"),
        (
            "x.json",
            '[{"clean": [1], "corrupt": [2], "answer": 1, "wrong": 2}, {"clean": [1], "corrupt": [3]}]',
            "Row 2 of .*, answer: None is no token",
        ),
        ("x.json", '[{"clean": [1], "corrupt": [2], "plural": 1}, {"clean": [1], "corrupt": [3]}]', "plural = 'none'"),
        ("x.json", '[{"clean": [1e0], "corrupt": [2]}]', r"clean = \[1.0\]; it must be text or a list"),
        ("x.json", '[{"clean": [99999999999999999999], "corrupt": [2]}]', "it must be text or a list of token ids"),
        ("x.json", "[" * 100_000, "is nested too deeply"),
        ("x.csv", "clean,corrupted\n" + "a" * 200_000 + ",b\n", "is not CSV: field larger"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(
    tmp_path: Path, name: str, content: str | bytes | None, said: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=said) as error:
        pairs_file(path, reading_network())
    assert "\n" not in str(error.value)


def test_text_for_a_network_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "pairs.csv", [pair(correct_idx=1, incorrect_idx=2)])
    with pytest.raises(UserError, match=r"Row 1 of .*: This network has no tokenizer, so prompts are token ids"):
        pairs_file(path, network("gpt2"))
    with pytest.raises(UserError, match=r"column of corrupt prompts in .* 'corupted': the nearest valid one"):
        pairs_file(path, reading_network(), counterfactual="corupted")


# --- the published files ----------------------------------------------------------------------------------------------


@pytest.mark.artifacts
@pytest.mark.parametrize(
    "name, kind, length",
    [
        ("ioi-gpt2.csv", LogitDifference, 15),
        ("gender-bias-gpt2.csv", LogitDifference, 4),
        ("greater-than-gpt2.csv", ProbabilityDifference, 12),
        ("sva-gpt2.csv", LogitContrast, 6),
        ("docstring.json", LogitContrast, 52),
    ],
)
def test_the_published_prompts_are_read(artifacts: Path, name: str, kind: type, length: int) -> None:
    tokenizer = read_tokenizer(artifacts / "gpt2")
    config = TransformerConfig(n_layers=1, d_model=4, n_heads=1, d_head=4, d_vocab=50257, n_ctx=64, norm="layernorm")
    model = initialise(config, 0)
    model.tokenizer_source = lambda: tokenizer
    for split in ("discovery", "held-out"):
        prompts = pairs_file(artifacts / "prompts" / name, model, 20, split=split)
        assert (len(prompts), len(prompts.axis)) == (20, length)
        assert isinstance(prompts.metric, kind)
        assert value(model, prompts).isfinite().all()


@pytest.mark.artifacts
def test_gpt2s_own_tokenizer_reads_every_task(artifacts: Path) -> None:
    from headwork.tasks.registry import build, tasks

    tokenizer = read_tokenizer(artifacts / "gpt2")
    config = TransformerConfig(n_layers=1, d_model=4, n_heads=1, d_head=4, d_vocab=50257, n_ctx=64)
    model = initialise(config, 0)
    model.tokenizer_source = lambda: tokenizer
    lengths = {"repeated-sequences": 64, "ioi": 14, "greater-than": 12, "subject-verb": 5}
    for name in tasks():
        for split in ("discovery", "held-out"):
            prompts = build(name, model, 40, split=split)
            assert len(prompts.axis) == lengths[name]
            assert "left out" not in " ".join(prompts.notes)
