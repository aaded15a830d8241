"""Pairs for interchange interventions: a base prompt, a source prompt, and the answer that is then expected."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headwork.engine.run import as_tokens
from headwork.errors import UserError
from headwork.methods.site_vectors import Positions, as_positions
from headwork.model.transformer import Transformer
from headwork.tasks.prompt_pairs import prompt_labels

CausalModel = Callable[[Int[Tensor, "batch pos"], Int[Tensor, "batch source_pos"]], Int[Tensor, " batch"]]


@dataclass(frozen=True, eq=False)
class InterchangePairs:
    """Row b of `source` gives what is put into row b of `base`.

    - `expected`: the token that the network should answer then, one for each pair, or the causal model as a function
      (base, source) → such tokens: its output on the base once the variable has the value that it has on the source.
      May be left out where only a metric is read;
    - `answer_position`: where the answer is read, one number for all or `[batch, 1]`; negative from the end;
    - `answers`: the tokens that count as answers; all of the vocabulary where there are none;
    - `positions` and `source_positions`: where the interchange happens in the base, and where in the source the values
      come from (the same places where left out); for all pairs, or `[batch, n]`. All positions where both are left out;
    - `labels` name the pairs and default to 0, 1, ….

    Raises `UserError` for shapes that do not fit, twice the same prompt in a pair, and an expected token that is no
    answer.
    """

    base: Int[Tensor, "batch pos"]
    source: Int[Tensor, "batch source_pos"]
    expected: Int[Tensor, " batch"] | CausalModel | None = None
    answer_position: Positions = -1
    answers: Sequence[int] = ()
    positions: Positions = None
    source_positions: Positions = None
    labels: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.base.dim() != 2 or self.source.dim() != 2 or len(self.base) != len(self.source) or not len(self.base):
            raise UserError(
                f"The base prompts have shape {list(self.base.shape)}, the source prompts {list(self.source.shape)}; "
                "both must be [batch, pos] with the same batch."
            )
        object.__setattr__(self, "labels", prompt_labels(self.labels, len(self.base)))
        self._check_identical()
        here, there = self.where
        if (None if here is None else here.shape) != (None if there is None else there.shape):
            raise UserError("As many positions are needed in the source as in the base, for each pair.")
        if here is None and self.base.shape != self.source.shape:
            raise UserError(
                f"Base prompts have {self.base.shape[1]} tokens and source prompts {self.source.shape[1]}; say which "
                "positions to interchange."
            )
        if self.read.shape[1] != 1:
            raise UserError("A pair's answer is read at one position.")
        self._check_expected()

    def _check_identical(self) -> None:
        if self.base.shape != self.source.shape:
            return
        same = (self.base == self.source).all(1).nonzero()[:, 0].tolist()
        if same:
            raise UserError(
                f"Base and source are the same prompt in {len(same)} of {len(self.labels)} pairs (first: "
                f"{self.labels[same[0]]}); such a pair cannot show an effect."
            )

    def _check_expected(self) -> None:
        tokens = self.counterfactual
        if tokens is None:
            return
        if tokens.shape != (len(self.base),) or tokens.is_floating_point() or tokens.dtype == torch.bool:
            raise UserError(
                f"The causal model gave {tokens.dtype} of shape {list(tokens.shape)} for {len(self.base)} pairs; one "
                "token each is needed."
            )
        wrong = [t for t in tokens.unique().tolist() if self.answers and t not in self.answers]
        if wrong:
            raise UserError(f"The causal model expects token {wrong[0]}, which is not among the answers.")

    @property
    def counterfactual(self) -> Int[Tensor, " batch"] | None:
        """The expected tokens."""
        if isinstance(self.expected, Tensor) or self.expected is None:
            return self.expected
        return torch.as_tensor(self.expected(self.base, self.source))

    @property
    def read(self) -> Int[Tensor, "batch n"]:
        """Where each pair's answer is read."""
        found = as_positions(self.answer_position, len(self.base), self.base.shape[1])
        if found is None:
            raise UserError("The position at which the answer is read must be given.")
        return found

    @property
    def where(self) -> tuple[Int[Tensor, "batch _"] | None, Int[Tensor, "batch _"] | None]:
        """The positions in base and source; None for all of them."""
        batch, length = self.base.shape
        here = as_positions(self.positions, batch, length, "base prompts")
        if self.source_positions is not None and here is None:
            raise UserError("Positions in the source need positions in the base to go to.")
        if self.source_positions is None and length == self.source.shape[1]:
            return here, here
        there = self.source_positions if self.source_positions is not None else self.positions
        return here, as_positions(there, batch, self.source.shape[1], "source prompts")

    def on(self, model: Transformer) -> InterchangePairs:
        """The same pairs with everything worked out, on the network's device.

        `UserError` for tokens that the network does not have or has no logit for.
        """
        here, there = self.where
        expected = self.counterfactual
        for what, tokens in (("expected token", expected), ("answer", torch.tensor(list(self.answers)))):
            wrong = [] if tokens is None else tokens[(tokens < 0) | (tokens >= model.config.outputs)].tolist()
            if wrong:
                raise UserError(
                    f"The {what} {int(wrong[0])} has no logit; this network has them for tokens "
                    f"0–{model.config.outputs - 1}."
                )
        return dataclasses.replace(
            self,
            base=as_tokens(model, self.base),
            source=as_tokens(model, self.source),
            expected=None if expected is None else expected.to(model.device, torch.long),
            answer_position=self.read,
            positions=here,
            source_positions=there,
        )

    def rows(self, rows: Int[Tensor, " n"]) -> InterchangePairs:
        """Some of the pairs, of those that `on` gave."""
        here, there = self.where
        expected = self.counterfactual
        device = self.base.device
        return dataclasses.replace(
            self,
            base=self.base[rows.to(device)],
            source=self.source[rows.to(device)],
            expected=None if expected is None else expected[rows.to(expected.device)],
            answer_position=self.read[rows],
            positions=None if here is None else here[rows],
            source_positions=None if there is None else there[rows],
            labels=[self.labels[i] for i in rows.tolist()],
        )

    def permuted(self, generator: torch.Generator) -> InterchangePairs:
        """The same pairs for a variable that means nothing: what is expected comes from another pair's source.

        With a causal model, the variable's values are shuffled over the sources; with given tokens, the tokens are.
        """
        order = torch.randperm(len(self.base), generator=generator)
        if self.expected is None:
            raise UserError("Pairs without expected answers have no variable to permute.")
        if isinstance(self.expected, Tensor):
            return dataclasses.replace(self, expected=self.expected[order.to(self.expected.device)])
        shuffled = self.source[order.to(self.source.device)]
        return dataclasses.replace(self, expected=torch.as_tensor(self.expected(self.base, shuffled)))

    def aligned(self, source: Float[Tensor, "batch source_pos *axes"]) -> Float[Tensor, "batch pos *axes"]:
        """The source's activation, moved to where it goes in the base; zero where nothing goes."""
        here, there = self.where
        if here is None or there is None or (here is there and source.shape[1] == self.base.shape[1]):
            return source
        rows = torch.arange(len(source), device=source.device)[:, None]
        found = source.new_zeros(len(source), self.base.shape[1], *source.shape[2:])
        found[rows, here.to(source.device)] = source[rows, there.to(source.device)]
        return found

    @property
    def mask(self) -> Tensor | None:
        """`[batch, pos]`, true where the interchange happens; None for everywhere."""
        here, _ = self.where
        if here is None:
            return None
        found = torch.zeros(self.base.shape, dtype=torch.bool)
        return found.scatter_(1, here, True).to(self.base.device)
