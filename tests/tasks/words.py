"""A tokenizer of GPT-2's kind whose tokens are the words of the tasks, and a small network that reads with it."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from tests.model.test_tokenizer import byte_names

from headwork.model.config import TransformerConfig
from headwork.model.initialise import initialise
from headwork.model.tokenizer import Tokenizer, read_tokenizer
from headwork.model.transformer import Transformer
from headwork.tasks import greater_than, ioi, subject_verb


def words_of_the_tasks() -> list[str]:
    """Every word as it stands in a text, with the space before it where it has one."""
    templates = [t for task in (greater_than, ioi, subject_verb) for ts in task.TEMPLATES.values() for t in ts]
    listed = [*ioi.NAMES, *ioi.PLACES, *ioi.OBJECTS, *greater_than.NOUNS, *map(str, greater_than.CENTURIES)]
    listed += [*subject_verb.NOUNS, *(f"{noun}s" for noun in subject_verb.NOUNS)]
    listed += [verb for pair in subject_verb.VERBS for verb in pair]
    found = [f" {word}" for word in listed]
    for template in templates:
        found += re.findall(r" ?\w+|,", re.sub(r" ?\{\w+\}", "", template))
    return list(dict.fromkeys([*found, *(f"{year:02d}" for year in range(100))]))


@cache
def word_tokenizer() -> Tokenizer:
    """Each word is grown letter by letter; words that start with a space come first, so that no other merge cuts in."""
    space = byte_names()[ord(" ")]
    ids = {name: index for index, name in enumerate(byte_names().values())}
    merges: dict[tuple[str, str], None] = {}
    words = sorted((word.replace(" ", space) for word in words_of_the_tasks()), key=lambda word: word[0] != space)
    for word in words:
        for cut in range(1, len(word)):
            merges[word[:cut], word[cut]] = None
            ids.setdefault(word[: cut + 1], len(ids))
    ids["<|endoftext|>"] = len(ids)
    folder = Path(mkdtemp(prefix="headwork-words-"))
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "merges.txt").write_text("\n".join(" ".join(pair) for pair in merges) + "\n", encoding="utf-8")
    return read_tokenizer(folder)


@cache
def reading_network(vocab: int | None = None) -> Transformer:
    """Random weights: what it says does not matter, only that it reads and answers in words."""
    config = TransformerConfig(
        n_layers=2, d_model=16, n_heads=4, d_head=4, d_mlp=16, norm="layernorm", n_ctx=64,
        d_vocab=vocab or word_tokenizer().d_vocab, n_kv_heads=2,
    )  # fmt: skip
    model = initialise(config, 0).double()
    model.tokenizer_source = word_tokenizer
    return model
