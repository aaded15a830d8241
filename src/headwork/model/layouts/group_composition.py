"""Chughtai's layouts: networks for group multiplication, `model.pt` with `cfg.json` beside it (Chughtai et al. 2023).

The MLP has `W_x`, `W_y [element, embed]`, `W [2·embed, hidden]` and `W_U [hidden, element]`. The transformer has
TransformerLens's layout and, in `x_embed` and `y_embed`, copies of its embedding at the end of training; it has no norm
and a ReLU MLP, and reads `x, y, =`. The settings tell the group, which the tensors do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from headwork.errors import UserError, unknown
from headwork.model.layouts import transformer_lens
from headwork.model.layouts.converted import Built, Converted, Tensors
from headwork.model.pair_mlp import PairMLP

_ORDERS: dict[str, tuple[str, Callable[[int], int]]] = {
    "CyclicGroup": ("cyclic", lambda n: n),
    "DihedralGroup": ("dihedral", lambda n: 2 * n),
    "SymmetricGroup": ("symmetric", math.factorial),
    "AlternatingGroup": ("alternating", lambda n: math.factorial(n) // 2),
}
_LENS = {
    "act_fn": "relu",
    "norm": "none",
    "positional_embedding_type": "standard",
    "attention_dir": "causal",
    "use_attn_scale": True,
    "parallel_attn_mlp": False,
}
_COPIES = ("x_embed", "y_embed")
_LARGEST = 1000


def convert(state: Mapping[str, Any], config: Mapping[str, Any]) -> Converted:
    """Read the transformer.

    Raises `UserError` where the settings lack the group or name one of another order, and for tensors that are amiss.
    """
    data = _data(config)
    rest = {name: tensor for name, tensor in state.items() if name not in _COPIES}
    found = transformer_lens.convert(rest, _LENS)
    equals = _checked(data, found.architecture.d_vocab - 1, found.architecture.outputs)
    return Converted(found.architecture, found.state, training=_training(config), data={**data, "equals": equals})


def build(state: Mapping[str, Any], config: Mapping[str, Any]) -> Built:
    """Read the MLP. Raises `UserError` as `convert` does."""
    data = _data(config)
    tensors = Tensors(state, "group-composition", "")
    elements, embed = tensors.shape("W_x", 2)
    hidden, outputs = tensors.shape("W_U", 2)
    _checked(data, elements, outputs)
    module = PairMLP(elements, embed, hidden)
    module.read(
        x=tensors.take("W_x", elements, embed),
        y=tensors.take("W_y", elements, embed),
        inward=tensors.take("W", 2 * embed, hidden),
        outward=tensors.take("W_U", hidden, elements),
    )
    tensors.finish()
    return Built(module, torch.zeros(1, 2, dtype=torch.long), training=_training(config), data=data)


def _data(config: Mapping[str, Any]) -> dict[str, Any]:
    if "group" not in config or "group_parameter" not in config:
        raise UserError(
            "The group-composition checkpoint does not say which group it is about: keep the authors' cfg.json, with "
            "group and group_parameter, beside model.pt."
        )
    name, parameter = config["group"], config["group_parameter"]
    if not isinstance(name, str) or name not in _ORDERS:
        raise unknown("group in the checkpoint's cfg.json:", str(name), _ORDERS)
    if not isinstance(parameter, int) or not 1 <= parameter <= _LARGEST:
        raise UserError(
            f"The checkpoint's cfg.json has group_parameter = {parameter!r}; it must be a whole number from 1 to "
            f"{_LARGEST}."
        )
    return {"generator": "group-composition", "group": _ORDERS[name][0], "parameter": parameter}


def _checked(data: Mapping[str, Any], elements: int, outputs: int) -> int:
    """How many elements the group has. Raises `UserError` where that is not the network's vocabulary."""
    order = next(count for name, count in _ORDERS.values() if name == data["group"])(data["parameter"])
    if elements != order or outputs != order:
        raise UserError(
            f"The checkpoint's cfg.json names the {data['group']} group with parameter {data['parameter']}, of {order} "
            f"elements, but its tensors have {elements} inputs and {outputs} outputs."
        )
    return order


def _training(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if isinstance(value, str | int | float)}
