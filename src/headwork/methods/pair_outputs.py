"""What a network makes of every pair of elements of a group: the arrays that analyses of group networks start from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headwork.engine.run import run
from headwork.errors import UserError
from headwork.model.adapter import Adapted
from headwork.model.pair_mlp import PairMLP
from headwork.model.transformer import Transformer
from headwork.tasks.group_composition import GroupComposition
from headwork.tasks.groups import Group

_AT_ONCE = 2048
_LARGEST = 256


@dataclass(frozen=True, eq=False)
class PairOutputs:
    """In float64: `logits` for every answer z, `hidden` neurons after their activation, and what each adds, `outward`.

    `embeddings` are what the network makes of a single element, by name: for the MLP of Chughtai et al. `left` and
    `right`, what x and y add to each neuron before its ReLU (W_x and W_y times their halves of W); for a transformer
    `embed`, the residual stream's. Where a final norm stands between the neurons and the logits, what a neuron adds
    depends on the others, and `outward` is None.
    """

    group: Group
    logits: Float[Tensor, "x y z"]
    hidden: Float[Tensor, "x y neuron"]
    outward: Float[Tensor, "neuron z"] | None
    embeddings: dict[str, Float[Tensor, "element feature"]]

    @property
    def labels(self) -> Int[Tensor, "x y"]:
        """The right answers."""
        return self.group.table


def pair_outputs(model: Adapted | PairMLP | Transformer, task: GroupComposition) -> PairOutputs:
    """Run the network on all pairs. Raises `UserError` where it is no network for pairs of this group's elements."""
    group = task.structure
    if group.order > _LARGEST:
        raise UserError(
            f"The {group.name} group with parameter {group.parameter} has {group.order} elements; all answers to all "
            f"pairs are analysed for groups of up to {_LARGEST}."
        )
    if isinstance(model, Transformer):
        return _of_transformer(model, task, group)
    module = model.module if isinstance(model, Adapted) else model
    if not isinstance(module, PairMLP):
        raise UserError(
            f"Group composition is analysed in the authors' MLP and in transformers; this network is a "
            f"{type(module).__name__}."
        )
    n = group.order
    if len(module.W_x) != n or module.W_U.shape[1] != n:
        raise UserError(
            f"The network has {len(module.W_x)} elements and {module.W_U.shape[1]} answers, but the {group.name} group "
            f"with parameter {group.parameter} has {n} elements."
        )
    with torch.no_grad():
        embed = module.W_x.shape[1]
        left, right = module.W_x @ module.W[:embed], module.W_y @ module.W[embed:]
        hidden = (left[:, None] + right[None]).relu()
        logits = hidden @ module.W_U
    return PairOutputs(
        group, _wide(logits), _wide(hidden), _wide(module.W_U), {"left": _wide(left), "right": _wide(right)}
    )


def _of_transformer(model: Transformer, task: GroupComposition, group: Group) -> PairOutputs:
    n, config = group.order, model.config
    if task.equals is None or config.d_vocab != n + 1 or model.W_U.shape[1] < n:
        raise UserError(
            f"A transformer for the {group.name} group of {n} elements reads x, y and =, {n + 1} tokens in all; this "
            f"one has {config.d_vocab}, and its task's equals is {task.equals}."
        )
    mlp = model.layers[-1].mlp
    if mlp is None:
        raise UserError("The analysis of group composition needs a network with an MLP; this one has none.")
    site = f"blocks.{config.n_layers - 1}.mlp.post"
    tokens = task.every().tokens
    logits, hidden = [], []
    for part in tokens.split(_AT_ONCE):
        done = run(model, part, sites=[site])
        logits.append(_wide(done.logits[:, -1, :n]))
        hidden.append(_wide(done[site][:, -1]))
    with torch.no_grad():
        outward = mlp.W_out @ model.W_U[:, :n] if config.norm == "none" else None
        embed = model.W_E[:n]
    return PairOutputs(
        group,
        torch.cat(logits).reshape(n, n, n),
        torch.cat(hidden).reshape(n, n, -1),
        None if outward is None else _wide(outward),
        {"embed": _wide(embed)},
    )


def _wide(value: Tensor) -> Tensor:
    return value.detach().double().cpu()
