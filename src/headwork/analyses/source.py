"""Which prompts an analysis runs on: a task's, a file's, or one pair that the user gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from headwork.errors import UserError
from headwork.model.transformer import Transformer
from headwork.tasks.given_pair import given_pair
from headwork.tasks.pairs_file import pairs_file
from headwork.tasks.registry import DEFAULT, build, task
from headwork.tasks.task_prompts import Split, TaskPrompts, check_count, generator

_MOST_PROMPTS = 100_000
_MOST_SEED = 2**62


@dataclass(frozen=True, kw_only=True)
class Source:
    """At most one of `task`, `pairs` and `clean` with `corrupt`; none of them is the default task.

    Raises `UserError`, without a network, for what contradicts itself or does not exist.
    """

    task: str | None = None
    pairs: Path | None = None
    clean: str | None = None
    corrupt: str | None = None
    answer: str | None = None
    wrong: str | None = None
    counterfactual: str | None = None
    bos: bool = False
    prompts: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        given = {"--task": self.task, "--pairs": self.pairs, "--clean": self.clean}
        named = [name for name, value in given.items() if value is not None]
        if len(named) > 1:
            raise UserError(f"{' and '.join(named)} were given; prompts come from one of them.")
        if (self.clean is None) != (self.corrupt is None):
            raise UserError("A pair needs both --clean and --corrupt; one of them is missing.")
        lonely = [f"--{name}" for name in ("answer", "wrong") if getattr(self, name) is not None]
        if lonely and self.clean is None:
            raise UserError(f"{lonely[0]} belongs to a pair given with --clean and --corrupt.")
        if self.counterfactual is not None and self.clean is not None:
            raise UserError("--counterfactual belongs to a task or a file; a pair has the one that --corrupt gives.")
        check_count(self.prompts)
        if self.prompts > _MOST_PROMPTS:
            raise UserError(f"--prompts is {self.prompts}; at most {_MOST_PROMPTS:,} can be drawn.")
        if self.seed >= _MOST_SEED:
            raise UserError(f"--seed is {self.seed}; it must be below 2^62.")
        generator(self.seed, "discovery")
        if self.name is not None:
            task(self.name)
        if self.pairs is not None and not self.pairs.is_file():
            raise UserError(f"There is no file {self.pairs}.")

    @property
    def name(self) -> str | None:
        """The task's name; None for a file or a pair."""
        return None if self.pairs is not None or self.clean is not None else self.task or DEFAULT

    @property
    def splits(self) -> bool:
        """Whether there are held-out prompts: a single pair has none."""
        return self.clean is None

    def build(self, model: Transformer, split: Split = "discovery") -> TaskPrompts:
        """The prompts of a split for this network. Raises `UserError` where they do not fit it."""
        if self.clean is not None and self.corrupt is not None:
            return given_pair(model, self.clean, self.corrupt, self.answer, self.wrong, self.bos)
        n, seed = self.prompts, self.seed
        if self.pairs is not None:
            found = pairs_file(self.pairs, model, n, seed, split, self.counterfactual, self.bos)
        else:
            found = build(self.name or DEFAULT, model, n, seed, split, self.counterfactual, self.bos)
        found.pairs.on(model)
        return found

    def options(self) -> dict[str, object]:
        """What was given, as options of the command line."""
        values = {
            "task": self.task,
            "pairs": self.pairs,
            "clean": self.clean,
            "corrupt": self.corrupt,
            "answer": self.answer,
            "wrong": self.wrong,
            "counterfactual": self.counterfactual,
            "bos": self.bos or None,
            "prompts": None if self.prompts == 32 else self.prompts,
            "seed": self.seed or None,
        }
        return {name: value for name, value in values.items() if value is not None}
