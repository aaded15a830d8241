"""Prompt pairs from a file, in the columns of published collections.

CSV or JSON: `clean` and `corrupted` (or `corrupt`) with `correct_idx` and `incorrect_idx`, or `clean_answer_idx` and
`corrupted_answer_idx` (token ids), or `answer` and `wrong` (text), as with EAP-IG (Hanna et al. 2024); `answers` and
`wrong_answers`, lists, as with AutoCircuit (Miller et al. 2024); `plural` alone asks for the number of the next verb,
`correct_idx` alone for a year after the one it gives; `prompt`, `choices` and `answerKey` with an object of the same
keys for each counterfactual, as in MIB (Mueller et al. 2025). Prompts may be lists of token ids instead of text.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from headwork.engine.metrics import LogitContrast, LogitDifference, Metric
from headwork.errors import UserError, unknown
from headwork.model.tokenizer import Tokenizer
from headwork.model.transformer import Transformer
from headwork.tasks.given_pair import LARGEST_ID, answer_token, prompt_tokens
from headwork.tasks.greater_than import METRIC as YEARS
from headwork.tasks.greater_than import two_digit_tokens, years_after
from headwork.tasks.prompt_pairs import PromptPairs
from headwork.tasks.subject_verb import VERBS
from headwork.tasks.task_prompts import SPLITS, Split, TaskPrompts, check_count, common_axis, generator

_CORRUPT = ("corrupted", "corrupt")
# Columns of the right and of the wrong answer; the first that a file has are taken.
_ANSWERS = (
    ("correct_idx", "incorrect_idx"),
    ("clean_answer_idx", "corrupted_answer_idx"),
    ("answers", "wrong_answers"),
    ("answer", "wrong"),
)
_GROUPS = ("template", "group")


@dataclass(frozen=True)
class _Row:
    """One pair of the file: `number` counts rows from 1; `values` are its columns, `group` is as `_groups` says."""

    number: int
    values: Mapping[str, Any]
    group: str
    clean: tuple[int, ...]
    corrupt: tuple[int, ...]


def _groups(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What each row shares with rows that are not independent of it.

    That is its template, where the file names one, else its clean prompt, which files have more than once.
    """
    first: dict[str, int] = {}
    found = []
    for number, row in enumerate(rows, 1):
        named = next((row[name] for name in _GROUPS if row.get(name) not in (None, "")), None)
        same = first.setdefault(repr(row.get("clean")), number)
        found.append(f"row {same}" if named is None else str(named))
    return found


def pairs_file(
    path: Path | str,
    model: Transformer,
    n: int = 32,
    seed: int = 0,
    split: Split = "discovery",
    counterfactual: str | None = None,
    bos: bool = False,
) -> TaskPrompts:
    """At most `n` pairs of the file, drawn at random, all of the most common length in tokens.

    Discovery and held-out pairs are disjoint, by `template` or `group` where the file has such a column, else by clean
    prompt.
    `counterfactual` names another column of corrupt prompts. Pairs whose two prompts are not equally long are left out,
    and the notes say how many. Raises `UserError` for a file that cannot be read or has no pair to use, and for answers
    that are not one token.
    """
    check_count(n)
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    path = Path(path)
    values = _values(path)
    column = _corrupt_column(path, values[0], counterfactual)
    tokenizer = model.tokenizer if model.tokenizer_source is not None else None
    prompts = ("clean", column)
    groups = _groups(values)
    part, shared = _of_split(groups, split)
    rows = [
        _Row(
            i,
            values[i - 1],
            groups[i - 1],
            *(tuple(_prompt(tokenizer, path, i, values[i - 1], name, bos)) for name in prompts),
        )
        for i in part
    ]
    chosen, notes = _of_one_length(path, rows)
    random = generator(seed, split)
    order = torch.randperm(len(chosen), generator=random)[:n].tolist()
    kept = [chosen[i] for i in sorted(order)]
    pairs = PromptPairs(
        torch.tensor([r.clean for r in kept]),
        torch.tensor([r.corrupt for r in kept]),
        tuple(f"{r.number}" for r in kept),
    ).on(model)
    positions = torch.full((len(kept),), len(kept[0].clean) - 1)
    metric, words, answers = _metric(model, path, kept, positions)
    if shared:
        notes += ("The file has one template only, so discovery and held-out prompts are the same.",)
    pieces = [tokenizer.pieces(r.clean) for r in kept] if tokenizer else [[str(t) for t in r.clean] for r in kept]
    texts = tuple((str(r.values["clean"]), str(r.values[column])) for r in kept)
    return TaskPrompts(
        task=path.name,
        split=split,
        counterfactual=column,
        pairs=pairs,
        metric=metric,
        metric_words=words,
        positions=positions,
        templates=tuple(r.group for r in kept),
        axis=common_axis(pieces),
        answers=None if answers is None else answers[0],
        wrong=None if answers is None else answers[1],
        texts=texts if tokenizer else None,
        notes=notes,
    )


def _values(path: Path) -> list[dict[str, Any]]:
    """The file's rows. Raises `UserError` where it is none that we read."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8: {error.reason}.") from error
    except OSError as error:
        raise UserError(f"Cannot read {path}: {(error.strerror or str(error)).lower()}.") from error
    if path.suffix.lower() == ".json":
        try:
            read = json.loads(text)
        except ValueError as error:
            raise UserError(f"{path} is not JSON: {error}.") from error
        except RecursionError:
            raise UserError(f"{path} is not JSON: it is nested too deeply.") from None
        rows = read.get("prompts") if isinstance(read, dict) else read
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise UserError(f"{path} must be a JSON list of objects, or an object with such a list under 'prompts'.")
    else:
        try:
            rows = list(csv.DictReader(io.StringIO(text)))
        except csv.Error as error:
            raise UserError(f"{path} is not CSV: {error}.") from None
    if not rows:
        raise UserError(f"{path} has no rows.")
    return [
        _of_choices(path, i, row) if {"prompt", "choices", "answerKey"} <= row.keys() else row
        for i, row in enumerate(rows, 1)
    ]


def _of_choices(path: Path, number: int, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of MIB's as one of AutoCircuit's; each counterfactual becomes a column of prompts."""
    choices, key = row["choices"], row["answerKey"]
    if not isinstance(choices, list) or not isinstance(key, int) or not 0 <= key < len(choices) or len(choices) < 2:
        raise UserError(f"Row {number} of {path} has answerKey = {key!r}; it must be the place of one of its choices.")
    # Choices are words there, which continue the prompt after a space.
    words = [c if isinstance(c, str) and c.startswith(" ") else f" {c}" for c in choices]
    others = {name: value["prompt"] for name, value in row.items() if isinstance(value, dict) and "prompt" in value}
    if len(others) == 1:
        others = {"corrupted": next(iter(others.values()))}
    wrong = [word for i, word in enumerate(words) if i != key]
    shared = {name: row[name] for name in _GROUPS if name in row}
    return shared | {"clean": row["prompt"], "answers": [words[key]], "wrong_answers": wrong} | others


def _corrupt_column(path: Path, row: Mapping[str, Any], asked: str | None) -> str:
    if "clean" not in row:
        raise UserError(f"{path} has no column 'clean'; it has {', '.join(map(repr, row))}.")
    if asked is not None:
        if asked not in row or asked == "clean":
            raise unknown(f"column of corrupt prompts in {path}:", asked, [name for name in row if name != "clean"])
        return asked
    found = next((name for name in _CORRUPT if name in row), None)
    if found is None:
        raise UserError(f"{path} has no column 'corrupted' or 'corrupt'; it has {', '.join(map(repr, row))}.")
    return found


def _prompt(
    tokenizer: Tokenizer | None, path: Path, number: int, row: Mapping[str, Any], name: str, bos: bool
) -> list[int]:
    given = row.get(name)
    if isinstance(given, list) and given and all(_is_id(t) for t in given):
        return given
    if not isinstance(given, str) or not given:
        raise UserError(f"Row {number} of {path} has {name} = {given!r}; it must be text or a list of token ids.")
    try:
        return prompt_tokens(tokenizer, given, bos)
    except UserError as error:
        raise UserError(f"Row {number} of {path}: {error}") from None


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST_ID


def _of_split(group_of: Sequence[str], split: Split) -> tuple[list[int], bool]:
    """The numbers of the split's rows, the same whatever the seed; and whether both splits are the same."""
    group = dict(enumerate(group_of, 1))
    groups = sorted(set(group.values()))
    if len(groups) < 2:
        return list(group), True
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(0)).tolist()
    half = (len(groups) + 1) // 2
    mine = {groups[i] for i in (order[:half] if split == "discovery" else order[half:])}
    return [number for number, name in group.items() if name in mine], False


def _of_one_length(path: Path, rows: Sequence[_Row]) -> tuple[list[_Row], tuple[str, ...]]:
    even = [row for row in rows if len(row.clean) == len(row.corrupt)]
    if not even:
        raise UserError(
            f"None of the {len(rows)} pairs of {path} has a clean and a corrupt prompt of equally many tokens."
        )
    length = Counter(len(row.clean) for row in even).most_common(1)[0][0]
    kept = [row for row in even if len(row.clean) == length]
    left = [(len(rows) - len(even), "are unequally long"), (len(even) - len(kept), "are of other lengths")]
    said = " and ".join(f"{count} {why}" for count, why in left if count)
    note = f"Of {len(rows)} pairs in this split {said}; the {len(kept)} of {length} tokens can be drawn."
    return kept, (note,) if said else ()


def _metric(
    model: Transformer, path: Path, rows: Sequence[_Row], positions: torch.Tensor
) -> tuple[Metric, str, tuple[torch.Tensor, torch.Tensor] | None]:
    """The metric that the file's columns ask for, in words, and the two answers where there are two."""
    columns = rows[0].values
    for right, wrong in _ANSWERS:
        if right in columns and wrong in columns:
            answers = [(_answers(model, path, row, right), _answers(model, path, row, wrong)) for row in rows]
            if all(len(a) == len(b) == 1 for a, b in answers):
                pair = torch.tensor([a for a, _ in answers])[:, 0], torch.tensor([b for _, b in answers])[:, 0]
                return LogitDifference(positions, *pair), "logit of the answer − logit of the wrong answer", pair
            return _contrast(positions, answers), "mean logit of the answers − mean logit of the wrong ones", None
    if "plural" in columns:
        verbs = [[answer_token(model, f" {pair[number]}") for pair in VERBS] for number in (0, 1)]
        plural = [_flag(path, row, "plural") for row in rows]
        words = "mean logit of the verbs that agree − mean logit of their other number"
        return _contrast(positions, [(verbs[number], verbs[1 - number]) for number in plural]), words, None
    if "correct_idx" in columns:
        starts = torch.tensor([_year(path, row) for row in rows])
        return years_after(starts, positions, two_digit_tokens(model.tokenizer)), YEARS, None
    pairs = " or ".join(f"{a} with {b}" for a, b in _ANSWERS)
    raise UserError(f"{path} has no columns of answers: {pairs}, or plural, or correct_idx alone.")


def _contrast(positions: torch.Tensor, answers: Sequence[tuple[Sequence[int], Sequence[int]]]) -> LogitContrast:
    """Mean logit of the first against mean logit of the second; rows of fewer tokens are padded with weight 0."""
    width = max(len(a) + len(b) for a, b in answers)
    tokens, weights = torch.zeros(len(answers), width, dtype=torch.long), torch.zeros(len(answers), width)
    for i, (a, b) in enumerate(answers):
        tokens[i, : len(a) + len(b)] = torch.tensor([*a, *b])
        weights[i, : len(a) + len(b)] = torch.tensor([1 / len(a)] * len(a) + [-1 / len(b)] * len(b))
    return LogitContrast(positions, tokens, weights)


def _answers(model: Transformer, path: Path, row: _Row, name: str) -> list[int]:
    """The tokens of one row's answers, given as an id, a text, or a list of either."""
    given = row.values.get(name)
    listed = given if isinstance(given, list) else [given]
    as_id = name.endswith("_idx")
    found = []
    for one in listed:
        try:
            if as_id and isinstance(one, str):
                one = int(one)
            if isinstance(one, str) and one:
                found.append(answer_token(model, one))
            elif isinstance(one, int) and not isinstance(one, bool) and 0 <= one < model.config.outputs:
                found.append(one)
            elif isinstance(one, list):
                raise UserError("it has answers for several positions; one position, the last, is read.")
            else:
                raise UserError(f"{one!r} is no token with a logit (0–{model.config.outputs - 1}) and no text.")
        except (UserError, ValueError) as error:
            raise UserError(f"Row {row.number} of {path}, {name}: {error}") from None
    if not found:
        raise UserError(f"Row {row.number} of {path} has no {name}; at least one is needed.")
    return found


def _flag(path: Path, row: _Row, name: str) -> int:
    given = str(row.values.get(name)).strip().lower()
    if given not in ("0", "1", "true", "false"):
        raise UserError(f"Row {row.number} of {path} has {name} = {given!r}; it must be 0 or 1.")
    return int(given in ("1", "true"))


def _year(path: Path, row: _Row) -> int:
    """The two digits after which years are right; they must stand in the prompt, or the column means something else."""
    given = str(row.values.get("correct_idx")).strip()
    if not given.isdecimal() or int(given) > 99 or f"{int(given):02d}" not in str(row.values["clean"]):
        raise UserError(
            f"Row {row.number} of {path} has correct_idx = {given!r} and no incorrect_idx; alone it must be the "
            "last two digits of a year in the clean prompt."
        )
    return int(given)
