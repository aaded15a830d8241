"""One prompt pair that a user gives: as text, or as token ids for a network without a tokenizer."""

from __future__ import annotations

import torch

from headwork.engine.metrics import LogitDifference
from headwork.engine.run import run
from headwork.errors import UserError
from headwork.model.tokenizer import Tokenizer
from headwork.model.transformer import Transformer
from headwork.tasks.prompt_pairs import PromptPairs
from headwork.tasks.task_prompts import TaskPrompts, common_axis

TASK = "one pair"
LARGEST_ID = 2**63 - 1
"""The largest number that a tensor of tokens holds."""


def given_pair(
    model: Transformer,
    clean: str,
    corrupt: str,
    answer: str | None = None,
    wrong: str | None = None,
    bos: bool = False,
) -> TaskPrompts:
    """The pair, read at its last position; the metric is logit(answer) − logit(wrong).

    Where the network has a tokenizer all four are text (`answer=" Mary"`, its space included), otherwise ids
    (`clean="5 3 9"`, `answer="7"`). Left out, `answer` is what the network itself says after the clean prompt and
    `wrong` what it says after the corrupt one. Raises `UserError` for prompts of different lengths or the same prompt
    twice, and for answers that are not one token.
    """
    tokenizer = model.tokenizer if model.tokenizer_source is not None else None
    rows = [prompt_tokens(tokenizer, text, bos) for text in (clean, corrupt)]
    if len(rows[0]) != len(rows[1]):
        raise UserError(
            f"The clean prompt has {_counted(tokenizer, rows[0])} and the corrupt one {_counted(tokenizer, rows[1])}; "
            "both must have equally many."
        )
    pairs = PromptPairs(torch.tensor(rows[:1]), torch.tensor(rows[1:]), ("pair",)).on(model)
    own = [] if answer and wrong else [int(run(model, t).logits[0, -1].argmax()) for t in (pairs.clean, pairs.corrupt)]
    ids = [answer_token(model, text) if text else own[i] for i, text in enumerate((answer, wrong))]
    if ids[0] == ids[1]:
        said = f"{ids[0]}" if tokenizer is None else repr(tokenizer.pieces(ids[:1])[0])
        raise UserError(f"Answer and wrong answer are both {said}; give two different ones with --answer and --wrong.")
    last = torch.tensor([len(rows[0]) - 1])
    chosen = [f"--{name}" for name, text in (("answer", answer), ("wrong", wrong)) if not text]
    note = f"{' and '.join(chosen)} not given: the network's own most likely tokens are taken."
    pieces = [str(t) for t in rows[0]] if tokenizer is None else tokenizer.pieces(rows[0])
    return TaskPrompts(
        task=TASK,
        split="discovery",
        counterfactual="as given",
        pairs=pairs,
        metric=LogitDifference(last.to(model.device), *(torch.tensor([i], device=model.device) for i in ids)),
        metric_words="logit of the answer − logit of the wrong answer",
        positions=last,
        templates=("pair",),
        axis=common_axis([pieces]),
        answers=torch.tensor(ids[:1]),
        wrong=torch.tensor(ids[1:]),
        texts=None if tokenizer is None else ((clean, corrupt),),
        notes=(note,) if chosen else (),
    )


def prompt_tokens(tokenizer: Tokenizer | None, text: str, bos: bool = False) -> list[int]:
    """The tokens of a prompt; without a tokenizer the text must be ids between spaces or commas."""
    if tokenizer is not None:
        found = tokenizer.to_tokens(text, bos)
    else:
        found = [_id(word, "prompts") for word in text.replace(",", " ").split()]
    if not found:
        raise UserError("A prompt is empty; it must have at least one token.")
    return found


def answer_token(model: Transformer, text: str) -> int:
    """The one token of an answer. Raises `UserError` where it is several, or the network has no logit for it."""
    if model.tokenizer_source is not None:
        try:
            found = model.tokenizer.single_token(text)
        except UserError as error:
            raise UserError(f"An answer must be one token: {error}") from None
    else:
        found = _id(text.strip(), "answers")
    if not 0 <= found < model.config.outputs:
        raise UserError(f"The answer is token {found}; this network has logits for 0–{model.config.outputs - 1}.")
    return found


def _id(word: str, what: str) -> int:
    if not word.isdecimal():
        raise UserError(
            f"This network has no tokenizer, so {what} are token ids such as 5 3 9; {word!r} is no whole number."
        )
    if int(word) > LARGEST_ID:
        raise UserError(f"The token {word} is outside any network's vocabulary.")
    return int(word)


def _counted(tokenizer: Tokenizer | None, tokens: list[int]) -> str:
    """`5 tokens, ['a', …]`, for the error that names them."""
    pieces = "" if tokenizer is None else f" ({'|'.join(tokenizer.pieces(tokens))})"
    return f"{len(tokens)} tokens{pieces}"
