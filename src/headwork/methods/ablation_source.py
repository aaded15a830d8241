"""Where ablation values come from: means and partners from reference prompts, counterfactuals from paired ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int, Integer
from torch import Tensor

from headwork.engine.run import as_tokens
from headwork.errors import UserError
from headwork.methods.ablated_outputs import AblatedOutputs, counterfactual, from_reference
from headwork.methods.ablation_choices import AblationValue
from headwork.model.config import TransformerConfig
from headwork.model.transformer import Transformer
from headwork.tasks.prompt_pairs import PromptPairs

Reference = (
    Integer[Tensor, "*examples length"] | Integer[np.ndarray, "*examples length"] | Sequence[Sequence[int]] | None
)


@dataclass(frozen=True, eq=False)
class AblationSource:
    """`fixed` values, the same for every prompt, and for each prompt the one to take values from (`other`)."""

    reference: Int[Tensor, "n length"]
    fixed: Mapping[AblationValue, AblatedOutputs]
    other: Mapping[AblationValue, Int[Tensor, "batch pos"]]

    def outputs(self, model: Transformer, value: AblationValue, rows: slice) -> AblatedOutputs:
        """What every component writes, when ablated, on these prompts."""
        if value in self.fixed:
            return self.fixed[value]
        return dataclasses.replace(counterfactual(model, self.other[value][rows]), value=value)


def ablation_source(
    model: Transformer,
    prompts: PromptPairs | Int[Tensor, "batch pos"],
    values: Sequence[AblationValue],
    reference: Reference,
    seed: int,
) -> AblationSource:
    """The source of `values` for these prompts (the clean ones of pairs); the reference is they where it is left out.

    Raises `UserError` for counterfactual values without pairs, a reference of another length where positions matter,
    and prompts that no reference prompt can stand in for.
    """
    pairs = prompts if isinstance(prompts, PromptPairs) else None
    tokens = prompts.clean if isinstance(prompts, PromptPairs) else prompts
    found = tokens if reference is None else as_tokens(model, reference)
    by_position = [value for value in values if value in ("mean-by-position", "resample")]
    if by_position and found.shape[1] != tokens.shape[1]:
        raise UserError(
            f"The reference prompts have {found.shape[1]} tokens, the prompts {tokens.shape[1]}; {by_position[0]} "
            "needs the same length."
        )
    other: dict[AblationValue, Tensor] = {}
    if "counterfactual" in values:
        if pairs is None:
            raise UserError("Counterfactual ablation needs PromptPairs: the values come from the paired prompts.")
        other["counterfactual"] = pairs.corrupt
    if "resample" in values:
        other["resample"] = found[partners(model.config, tokens, found, reference is None, seed)]
    fixed: dict[AblationValue, AblatedOutputs] = {
        value: from_reference(model, found, value) for value in values if value not in other
    }
    return AblationSource(found, fixed, other)


def partners(
    config: TransformerConfig,
    tokens: Int[Tensor, "batch pos"],
    reference: Int[Tensor, "n pos"],
    itself: bool,
    seed: int,
) -> Int[Tensor, " batch"]:
    """A reference prompt for each prompt, drawn from those with its padding; `itself`: they are the prompts.

    None is then its own partner.
    """
    allowed = torch.ones(len(tokens), len(reference), dtype=torch.bool)
    if config.pad_token is not None:
        padding, theirs = (tokens == config.pad_token).cpu(), (reference == config.pad_token).cpu()
        allowed = (padding[:, None] == theirs).all(-1)
    if itself:
        allowed.fill_diagonal_(False)
    alone = (~allowed.any(1)).nonzero()[:, 0].tolist()
    if alone:
        alike = " with the same padding" if len(reference) > 1 else ""
        raise UserError(
            f"Prompt {alone[0]} has no other reference prompt{alike} to resample from; give a reference that has one."
        )
    drawn = torch.multinomial(allowed.double(), 1, generator=torch.Generator().manual_seed(seed))[:, 0]
    return drawn.to(reference.device)
