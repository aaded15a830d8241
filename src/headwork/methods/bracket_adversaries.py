"""Strings that a bracket classifier should misjudge if it reads elevation the way it seems to (McDougall 2023).

The head that reads whether the elevation is negative somewhere averages over positions, and what it finds at each is a
share of opening among the brackets behind it. One dip below zero, at one place only, changes both little: two balanced
strings with `)(` between them. If the mechanism is right such strings are called balanced much more often than other
unbalanced ones, and less often the deeper the dip is: `))((`, `)))(((`. Both are measured here. The balanced string of
the same shape, with `()` in the dip's place, shows whether the network says balanced because of the shape alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool
from torch import Tensor

from headwork.errors import UserError
from headwork.methods.batches import chunks
from headwork.methods.elevation_readers import check_classifier
from headwork.model.transformer import Transformer
from headwork.tasks.brackets import BalancedBrackets

if TYPE_CHECKING:
    import xarray

FAMILIES = ("tower dip tower", "ripple dip ripple", "tower dip ripple", "ripple dip tower")
CONTROLS = ("random", "equal counts")


def dipped(length: int, depth: int = 1, *, balanced: bool = False) -> dict[str, list[str]]:
    """Every string of this length that is two balanced ones around one dip of this depth, by family.

    A tower is `(((…)))`, a ripple `()()…`. Strings of two families may be the same where one side is short. With
    `balanced` the dip is turned around, `()` for `)(`. Raises `UserError` for an odd length or one too short.
    """
    if length % 2 or depth < 1 or length < 2 * depth:
        raise UserError(
            f"A string of {length} brackets has no dip of depth {depth}; the length must be even, "
            f"{2 * max(depth, 1)} or more, and the depth 1 or more."
        )
    rest = length // 2 - depth
    shape = {"tower": lambda n: "(" * n + ")" * n, "ripple": lambda n: "()" * n}
    dip = "(" * depth + ")" * depth if balanced else ")" * depth + "(" * depth
    found = {}
    for family in FAMILIES:
        before, _, after = family.split()
        found[family] = [shape[before](a) + dip + shape[after](rest - a) for a in range(rest + 1)]
    return found


def unbalanced_controls(length: int, count: int, generator: torch.Generator) -> dict[str, list[str]]:
    """`count` unbalanced strings of this length of each kind: random brackets, and as many of both in random order.

    The latter fail as dipped strings do, by a negative elevation only.
    """
    if length < 2 or length % 2:
        raise UserError(f"Control strings have {length} brackets; it must be an even number, 2 or more.")
    found: dict[str, list[str]] = {name: [] for name in CONTROLS}
    closing = torch.arange(length) >= length // 2
    while min(map(len, found.values())) < count:
        for name in CONTROLS:
            if name == "random":
                rows = torch.randint(0, 2, (count, length), generator=generator)
            else:
                rows = closing[torch.rand(count, length, generator=generator).argsort(1)].long()
            height = (1 - 2 * rows).cumsum(1)
            bad = (height < 0).any(1) | (height[:, -1] != 0)
            texts = ["".join("()"[symbol] for symbol in row) for row in rows[bad].tolist()]
            found[name] = (found[name] + texts)[:count]
    return found


def called_balanced(model: Transformer, task: BalancedBrackets, texts: Sequence[str]) -> Bool[Tensor, " string"]:
    """Which strings the network calls balanced."""
    check_classifier(model, task)
    examples = task.of(texts)
    parts = []
    for part in chunks(model.config, *examples.tokens.shape):
        with torch.no_grad():
            logits = model(examples.tokens[part].to(model.device))[:, examples.read[0]].cpu()
        parts.append(logits[:, 1] > logits[:, 0])
    return torch.cat(parts)


def bracket_adversaries(
    model: Transformer,
    task: BalancedBrackets,
    *,
    length: int | None = None,
    depths: Sequence[int] = (1, 2, 3, 4),
    controls: int = 1000,
    seed: int = 0,
) -> xarray.Dataset:
    """How often strings with one dip are called balanced, against other unbalanced strings of the same length.

    Dims `family`, `depth` and `control`; `length` is the task's by default (its even part):

    - `fooled` [family, depth]: the share of the family's strings that are called balanced; `strings` [family, depth];
    - `all_fooled` [depth]: the share of all families' strings together, each counted once; `all_strings`;
    - `accepted` [family]: the same shapes with the first dip turned around, which are balanced: the share called so;
    - `control_fooled` [control]: the share of `controls` random unbalanced strings that are called balanced;
    - `p_value` [control]: Fisher's exact test that dips of the first depth fool it more often.

    Attribute `examples`: up to ten strings of the first depth that fool it. The families are enumerated and have no
    interval. Raises `UserError` for a network that is no bracket classifier, and for strings that cannot be.
    """
    import xarray
    from scipy import stats

    check_classifier(model, task)
    length = task.length - task.length % 2 if length is None else length
    if not depths or controls < 1 or length > task.length:
        raise UserError(
            f"Given were {len(depths)} depths, {controls} controls and length {length}; at least one of each is "
            f"needed, and strings of at most {task.length} brackets."
        )
    dips = [dipped(length, depth) for depth in depths]
    others = unbalanced_controls(length, controls, torch.Generator().manual_seed(seed))
    called = [{name: called_balanced(model, task, texts) for name, texts in dip.items()} for dip in dips]
    together = [
        {text: bool(one) for name in FAMILIES for text, one in zip(dip[name], said[name])}
        for dip, said in zip(dips, called)
    ]
    turned = dipped(length, depths[0], balanced=True)
    accepted = [float(called_balanced(model, task, turned[name]).double().mean()) for name in FAMILIES]
    missed = [int(called_balanced(model, task, others[name]).sum()) for name in CONTROLS]
    first = sum(together[0].values())
    p_value = [
        stats.fisher_exact([[first, len(together[0]) - first], [m, controls - m]], alternative="greater")[1]
        for m in missed
    ]
    shares = [[float(said[name].double().mean()) for said in called] for name in FAMILIES]
    return xarray.Dataset(
        {
            "fooled": (("family", "depth"), shares, {"units": "1"}),
            "strings": (("family", "depth"), [[len(dip[name]) for dip in dips] for name in FAMILIES]),
            "all_fooled": ("depth", [sum(once.values()) / len(once) for once in together], {"units": "1"}),
            "all_strings": ("depth", [len(once) for once in together]),
            "accepted": ("family", accepted, {"units": "1"}),
            "control_fooled": ("control", [m / controls for m in missed], {"units": "1"}),
            "p_value": ("control", p_value),
        },
        coords={"family": list(FAMILIES), "depth": list(depths), "control": list(CONTROLS)},
        attrs={
            "method": "adversarial strings: one dip between two balanced strings",
            "length": length,
            "controls": controls,
            "seed": seed,
            "examples": [text for text, fooled in together[0].items() if fooled][:10],
        },
    )
