"""The six choices behind every number about a circuit (Miller et al. 2024), recorded beside the number.

The same circuit can look faithful or not by changing any of them; a faithfulness without them says nothing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal, get_args

from headwork.errors import unknown

Granularity = Literal["node", "edge"]
Component = Literal["heads", "MLPs", "heads and MLPs", "heads by q, k, v and MLPs", "residual stream", "subspace"]
AblationValue = Literal["counterfactual", "zero", "mean", "mean-by-position", "resample"]
Direction = Literal["noising", "denoising"]
AblatedSet = Literal["complement", "circuit"]


@dataclass(frozen=True)
class AblationChoices:
    """How a circuit, or a part of one, was taken out of the network.

    - `granularity`: whole `node`s lose their output for every reader, or single `edge`s for one reader;
    - `component`: what the nodes are;
    - `value`: what an ablated component writes instead: its output on the paired prompt (`counterfactual`), `zero`, its
      `mean` over reference prompts and positions, `mean-by-position` over reference prompts, or its output on another
      reference prompt (`resample`);
    - `positions`: which positions are ablated, in words: `all`, `from the first difference`, `[3, 5]`, …;
    - `direction`: `noising` puts other values into the clean run, `denoising` clean values into the other run;
    - `ablated`: the `complement` of the circuit (is the rest needed?) or the `circuit` itself (is it necessary?).
    """

    granularity: Granularity
    component: Component
    value: AblationValue
    direction: Direction
    ablated: AblatedSet
    positions: str = "all"

    def __post_init__(self) -> None:
        accepted = {
            "granularity": Granularity,
            "component": Component,
            "value": AblationValue,
            "direction": Direction,
            "ablated": AblatedSet,
        }
        for name, choices in accepted.items():
            if getattr(self, name) not in get_args(choices):
                raise unknown(f"{name} of an ablation:", str(getattr(self, name)), get_args(choices))

    def attrs(self) -> dict[str, str]:
        """The choices as attributes of a dataset: `ablation_granularity`, …, `ablation_set`."""
        return {f"ablation_{'set' if name == 'ablated' else name}": value for name, value in asdict(self).items()}
