"""What probes are fitted and judged on: four parts of the examples that share none, and shuffled labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headwork.errors import UserError

SHARES = (0.2, 0.4, 0.15, 0.25)


@dataclass(frozen=True, eq=False)
class Splits:
    """Rows of the examples.

    Units are chosen on `selection`, probes fitted on `train`, penalties and the number of units chosen on `validation`,
    and everything is reported on `test`. Raises `UserError` where two parts share a row.
    """

    selection: Int[Tensor, " a"]
    train: Int[Tensor, " b"]
    validation: Int[Tensor, " c"]
    test: Int[Tensor, " d"]

    def __post_init__(self) -> None:
        seen: dict[int, str] = {}
        for name, part in self.parts().items():
            if not len(part):
                raise UserError(f"The {name} part of the examples is empty.")
            for row in part.tolist():
                if row in seen:
                    raise UserError(f"Example {row} is in the {seen[row]} part and again in the {name} part.")
                seen[row] = name

    def parts(self) -> dict[str, Int[Tensor, " rows"]]:
        """The parts by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def check(self, labels: Tensor) -> None:
        """Raise `UserError` for rows that do not exist, classes that a part lacks, and numbers all the same."""
        for name, part in self.parts().items():
            if int(part.min()) < 0 or int(part.max()) >= len(labels):
                raise UserError(f"The {name} part names an example that does not exist; there are {len(labels)}.")
            if labels.is_floating_point():
                if len(part) < 3:
                    raise UserError(f"The {name} part has {len(part)} examples; a number needs at least 3.")
                if len(labels[part].unique()) < 2:
                    raise UserError(f"All numbers in the {name} part are {labels[part[0]]}; R² needs different ones.")
                continue
            missing = sorted(set(labels.tolist()) - set(labels[part].tolist()))
            if missing:
                raise UserError(f"The {name} part has no example of class {missing[0]}; more examples are needed.")


def split(
    labels: Tensor,
    generator: torch.Generator,
    groups: Int[Tensor, " n"] | None = None,
    shares: Sequence[float] = SHARES,
) -> Splits:
    """A random split into selection, train, validation and test by these shares.

    Examples of one group stay together. Each class is split by itself, so that every part has some of it, unless groups
    have examples of several. Raises `UserError` where a part would be empty or lack a class.
    """
    if len(shares) != 4 or not all(share > 0 for share in shares) or abs(sum(shares) - 1) > 1e-6:
        raise UserError(f"The shares of the parts are {list(shares)}; four above 0 are needed, 1 together.")
    groups = torch.arange(len(labels)) if groups is None else groups
    members = [(groups == g).nonzero()[:, 0] for g in groups.unique()]
    kinds = torch.zeros(len(members), dtype=torch.long)
    if not labels.is_floating_point() and all(len(labels[rows].unique()) == 1 for rows in members):
        kinds = torch.stack([labels[rows[0]] for rows in members])
    strata = [(kinds == kind).nonzero()[:, 0] for kind in kinds.unique()]
    parts: list[list[Tensor]] = [[], [], [], []]
    for stratum in strata:
        order = stratum[torch.randperm(len(stratum), generator=generator)].tolist()
        ends = [0, *(round(float(e) * len(order)) for e in torch.tensor(shares, dtype=torch.float64).cumsum(0))]
        for part, first, last in zip(parts, ends, ends[1:]):
            part += [members[i] for i in order[first:last]]
    if not all(parts):
        raise UserError(f"{len(members)} examples or groups are too few to split into four parts.")
    found = Splits(*(torch.cat(part).sort().values for part in parts))
    found.check(labels)
    return found


def shuffled(
    labels: Tensor, splits: Splits, count: int, generator: torch.Generator, groups: Int[Tensor, " n"] | None = None
) -> Tensor:
    """`[count, n]`: the labels shuffled within each part, which keeps how many of each class it has.

    With groups, what is exchanged is what could be: whole groups' labels where each group has only one, else the labels
    within each group.
    """
    found = labels.expand(count, -1).clone()
    for part in splits.parts().values():
        if groups is None:
            cells = [part]
        else:
            cells = [part[groups[part] == g] for g in groups[part].unique()]
        if groups is not None and all(len(labels[cell].unique()) == 1 for cell in cells):
            values = torch.stack([labels[cell[0]] for cell in cells])
            for row in found:
                for cell, value in zip(cells, values[torch.randperm(len(cells), generator=generator)]):
                    row[cell] = value
            continue
        for row in found:
            for cell in cells:
                row[cell] = labels[cell[torch.randperm(len(cell), generator=generator)]]
    return found


def standardised(
    x: Float[Tensor, "*p n d"], rows: Int[Tensor, " train"]
) -> tuple[Float[Tensor, "*p n d"], Float[Tensor, "*p one d"], Float[Tensor, "*p one d"]]:
    """Each unit less its mean, over its deviation on these rows (constant units stay 0); with mean and deviation."""
    mean, deviation = x[..., rows, :].mean(-2, keepdim=True), x[..., rows, :].std(-2, correction=0, keepdim=True)
    deviation = torch.where(deviation > 0, deviation, torch.inf)
    return (x - mean) / deviation, mean, deviation
