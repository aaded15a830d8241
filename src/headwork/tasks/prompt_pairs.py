"""Clean and corrupt prompts, pair by pair, and a metric on them that is checked wherever it is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headwork.engine.metrics import LogitContrast, LogitDifference, Metric, ProbabilityDifference
from headwork.engine.run import as_tokens
from headwork.errors import UserError
from headwork.model.config import TransformerConfig
from headwork.model.transformer import Transformer


@dataclass(frozen=True, eq=False)
class PromptPairs:
    """Prompts and their counterfactuals: row b of `corrupt` belongs to row b of `clean` and is as long.

    `labels` name the pairs and default to 0, 1, …. Raises `UserError` where the shapes differ, a pair is twice the same
    prompt, or the labels do not name each pair once.
    """

    clean: Int[Tensor, "batch pos"]
    corrupt: Int[Tensor, "batch pos"]
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.clean.shape != self.corrupt.shape or self.clean.dim() != 2 or not self.clean.numel():
            raise UserError(
                f"The clean prompts have shape {list(self.clean.shape)}, the corrupt ones {list(self.corrupt.shape)}; "
                "both must be the same [batch, pos]."
            )
        object.__setattr__(self, "labels", prompt_labels(self.labels, len(self.clean)))
        identical = (self.clean == self.corrupt).all(1).nonzero()[:, 0].tolist()
        if identical:
            shown = ", ".join(self.labels[i] for i in identical[:5]) + (", …" if len(identical) > 5 else "")
            raise UserError(
                f"Clean and corrupt are the same prompt in {len(identical)} of {len(self.labels)} pairs "
                f"({shown}); each pair must differ in at least one token."
            )

    @property
    def first_difference(self) -> Int[Tensor, " batch"]:
        """The first position of each pair at which the two prompts have different tokens."""
        return (self.clean != self.corrupt).int().argmax(1)

    def start(self, config: TransformerConfig) -> int:
        """The first position at which activations of any pair can differ: 0 where attention looks ahead."""
        return int(self.first_difference.min()) if config.causal else 0

    def on(self, model: Transformer) -> PromptPairs:
        """The same pairs on the network's device; `UserError` for tokens, lengths or padding that it cannot compare."""
        clean, corrupt, pad = as_tokens(model, self.clean), as_tokens(model, self.corrupt), model.config.pad_token
        wrong = [] if pad is None else ((clean == pad) != (corrupt == pad)).any(1).nonzero()[:, 0].tolist()
        if wrong:
            raise UserError(
                f"Clean and corrupt prompt of pair {self.labels[wrong[0]]} have padding (token {pad}) at different "
                "positions; it must be at the same ones."
            )
        return dataclasses.replace(self, clean=clean, corrupt=corrupt)

    def part(self, rows: slice) -> PromptPairs:
        """Some of the pairs."""
        return PromptPairs(self.clean[rows], self.corrupt[rows], self.labels[rows])


def prompt_labels(labels: Sequence[str], batch: int) -> tuple[str, ...]:
    """The prompts' names, 0, 1, … where none are given; `UserError` unless each prompt has one of its own."""
    found = tuple(labels) or tuple(str(i) for i in range(batch))
    if len(found) != batch or len(set(found)) != batch:
        raise UserError(
            f"{len(set(found))} different labels were given for {batch} prompts; each needs one of its own."
        )
    return found


@dataclass(frozen=True, eq=False)
class CheckedMetric:
    """A metric that gives one finite number for each prompt, or a plain error that names the prompt."""

    metric: Metric
    labels: tuple[str, ...]

    def __call__(
        self, model: Transformer, resid: Float[Tensor, "batch pos d_model"], start: int
    ) -> Float[Tensor, " batch"]:
        values = self.metric(model, resid, start)
        shape = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
        if shape != [len(self.labels)]:
            raise UserError(f"The metric gave {shape} for {len(self.labels)} prompts; one number each is needed.")
        wrong = (~values.isfinite()).nonzero()[:, 0].tolist()
        if wrong:
            raise UserError(
                f"The metric gave {values[wrong[0]].item()} for prompt {self.labels[wrong[0]]}; it must give a finite "
                "number for each prompt."
            )
        return values

    def reads(self, length: int) -> int:
        """The first position that the metric reads."""
        return self.metric.reads(length)


def checked_metric(model: Transformer, metric: Metric, labels: tuple[str, ...], length: int) -> CheckedMetric:
    """The metric, checked; `UserError` where it is for other prompts than these, or for tokens the network lacks."""
    metric.reads(length)
    read = _tokens_read(metric)
    if read is not None:
        name, tokens = read
        if len(tokens) != len(labels):
            raise UserError(
                f"The {name} is for {len(tokens)} prompts, but there are {len(labels)}; it needs one position and its "
                "tokens for each."
            )
        highest = int(tokens.max())
        if highest >= model.config.outputs:
            raise UserError(
                f"The {name} reads token {highest}; this network has logits for tokens 0–{model.config.outputs - 1}."
            )
    return CheckedMetric(metric, labels)


def _tokens_read(metric: Metric) -> tuple[str, Int[Tensor, "batch n"]] | None:
    """The name of a metric on named tokens, and the tokens that it reads for each prompt."""
    if isinstance(metric, LogitDifference):
        return "logit difference", torch.stack([metric.correct, metric.wrong], 1)
    if isinstance(metric, LogitContrast | ProbabilityDifference):
        return "logit contrast" if isinstance(metric, LogitContrast) else "probability difference", metric.tokens
    return None


def of_rows(metric: Metric, rows: slice, batch: int) -> Metric:
    """The metric of some of `batch` prompts: its tensors with one row per prompt, cut; `UserError` if it has no fields.

    Works on frozen dataclasses such as those of `headwork.engine.metrics`.
    """
    if rows == slice(0, batch):
        return metric
    if not dataclasses.is_dataclass(metric) or isinstance(metric, type):
        raise UserError(
            f"The {batch} prompts do not fit the memory at once, and the metric {type(metric).__name__} is no "
            "dataclass that could be cut to fewer; give more memory or a metric of headwork.engine.metrics."
        )
    values = {f.name: getattr(metric, f.name) for f in dataclasses.fields(metric) if f.init}
    cut = {name: v[rows] for name, v in values.items() if isinstance(v, Tensor) and v.dim() and len(v) == batch}
    return dataclasses.replace(metric, **cut)
