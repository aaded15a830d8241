"""Prompts from templates of plain English, for networks that read text.

A task gives templates and words; here they become tokens. Words that the network's tokenizer splits are left out, and
so are templates whose prompts would be longer or shorter than the others': all prompts of a batch are equally long
without padding, and each template's slots stand at fixed positions.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from headwork.engine.metrics import LogitDifference
from headwork.errors import UserError
from headwork.model.tokenizer import Tokenizer
from headwork.model.transformer import Transformer
from headwork.tasks.prompt_pairs import PromptPairs
from headwork.tasks.task_prompts import Split, TaskPrompts, check_count, common_axis

_MISSES = 200


@dataclass(frozen=True)
class Draft:
    """One pair before it is tokens: the words for its template's slots, clean and corrupt, and the answers' tokens."""

    template: str
    label: str
    clean: Mapping[str, str]
    corrupt: Mapping[str, str]
    answer: int
    wrong: int


@dataclass(frozen=True)
class Texts:
    """Pairs as text and tokens, with what each was drafted from; `slots` names each token's slot, empty outside."""

    drafts: tuple[Draft, ...]
    texts: tuple[tuple[str, str], ...]
    clean: tuple[tuple[int, ...], ...]
    corrupt: tuple[tuple[int, ...], ...]
    slots: tuple[tuple[str, ...], ...]
    pieces: tuple[tuple[str, ...], ...]


def tokenizer_for(task: str, model: Transformer) -> Tokenizer:
    """The network's tokenizer; `UserError` that names the task where it has none or does not predict its tokens."""
    if model.tokenizer_source is None:
        raise UserError(
            f"The task {task} is English text and this network has no tokenizer; take the task repeated-sequences, or "
            "prompts of token ids."
        )
    if model.config.outputs != model.config.d_vocab or model.tokenizer.d_vocab > model.config.d_vocab:
        raise UserError(
            f"The task {task} needs a network that predicts its tokenizer's {model.tokenizer.d_vocab} tokens; this one "
            f"reads {model.config.d_vocab} and predicts {model.config.outputs}."
        )
    return model.tokenizer


def single_tokens(task: str, what: str, words: Sequence[str], tokenizer: Tokenizer, least: int) -> dict[str, int]:
    """Those words that, after a space, are one token, with that token. `UserError` where fewer than `least` are."""
    found = {}
    for word in words:
        try:
            found[word] = tokenizer.single_token(f" {word}")
        except UserError:
            continue
    if len(found) < least:
        raise UserError(
            f"The task {task} does not fit this network's vocabulary: {len(found)} of its {len(words)} {what} are one "
            f"token in it, and at least {least} must be."
        )
    return found


def random_choice(words: Sequence[str], random: torch.Generator, count: int = 1) -> list[str]:
    """Different words, drawn at random."""
    return [words[int(i)] for i in torch.randperm(len(words), generator=random)[:count]]


def listed(words: str) -> tuple[str, ...]:
    """Words between spaces, one by one."""
    return tuple(words.split())


def drafted(
    task: str,
    tokenizer: Tokenizer,
    templates: Sequence[str],
    n: int,
    draft: Callable[[str, int], Draft],
    bos: bool = False,
) -> tuple[Texts, tuple[str, ...]]:
    """`n` different prompts, the templates taking turns, with a note on what was left out.

    `draft` makes one from a template and the number of the attempt. Kept are templates of the most common length in
    tokens; drafts of any other length are drawn again. Raises `UserError` where there are fewer than `n` prompts.
    """
    check_count(n)
    length_of = {t: len(_tokens(tokenizer, _filled(t, draft(t, 0).clean), bos)) for t in templates}
    length = Counter(length_of.values()).most_common(1)[0][0]
    kept = [t for t in templates if length_of[t] == length]
    found: dict[tuple[str, str], tuple[Draft, list[int], list[int]]] = {}
    misses, attempt = 0, 0
    while len(found) < n:
        # The template changes only with success, so that all have equally many prompts.
        drawn = draft(kept[len(found) % len(kept)], attempt)
        attempt += 1
        clean, corrupt = _filled(drawn.template, drawn.clean), _filled(drawn.template, drawn.corrupt)
        tokens, others = _tokens(tokenizer, clean, bos), _tokens(tokenizer, corrupt, bos)
        if (clean, corrupt) in found or not len(tokens) == len(others) == length:
            misses += 1
            if misses > _MISSES + 10 * n:
                raise UserError(
                    f"The task {task} has about {len(found)} different prompts in this split; {n} were asked for."
                )
            continue
        found[clean, corrupt] = drawn, tokens, others
    rows = list(found.values())
    drafts = tuple(row[0] for row in rows)
    left = [t for t in templates if t not in kept]
    note = f"{len(left)} of {len(templates)} templates have another length in this network's tokens and are left out."
    return Texts(
        drafts,
        tuple(found),
        tuple(tuple(row[1]) for row in rows),
        tuple(tuple(row[2]) for row in rows),
        tuple(slots_of(tokenizer, d.template, d.clean, bos) for d in drafts),
        tuple(tuple(tokenizer.pieces(row[1])) for row in rows),
    ), (note,) if left else ()


def prompts_of(
    task: str, split: Split, counterfactual: str, texts: Texts, notes: tuple[str, ...], metric_words: str
) -> TaskPrompts:
    """The prompts, with the answers read at the last position; the metric is logit(answer) − logit(wrong)."""
    answers = torch.tensor([d.answer for d in texts.drafts])
    wrong = torch.tensor([d.wrong for d in texts.drafts])
    last = torch.full((len(texts.clean),), len(texts.clean[0]) - 1)
    return TaskPrompts(
        task=task,
        split=split,
        counterfactual=counterfactual,
        pairs=PromptPairs(torch.tensor(texts.clean), torch.tensor(texts.corrupt)),
        metric=LogitDifference(last, answers, wrong),
        metric_words=metric_words,
        positions=last,
        templates=tuple(d.label for d in texts.drafts),
        axis=common_axis(texts.pieces, texts.slots),
        answers=answers,
        wrong=wrong,
        texts=texts.texts,
        notes=notes,
    )


def slots_of(tokenizer: Tokenizer, template: str, words: Mapping[str, str], bos: bool = False) -> tuple[str, ...]:
    """The slot that each token of the filled template belongs to, empty where it is the template's own text."""
    text, spans = "", []
    for literal, slot, _, _ in string.Formatter().parse(template):
        text += literal
        if slot is not None:
            spans.append((len(text), len(text) + len(words[slot]), slot))
            text += words[slot]
    offsets = tokenizer.backend.encode(text, add_special_tokens=False).offsets
    inside = [next((slot for low, high, slot in spans if a < high and b > low), "") for a, b in offsets]
    return ("",) * bos + tuple(_words(slot) for slot in inside)


def _words(slot: str) -> str:
    """`second_name` as people say it."""
    return re.sub("_", " ", slot)


def _filled(template: str, words: Mapping[str, str]) -> str:
    return template.format(**words)


def _tokens(tokenizer: Tokenizer, text: str, bos: bool) -> list[int]:
    return tokenizer.to_tokens(text, bos)
