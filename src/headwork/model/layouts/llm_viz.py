"""The layout of llm-viz: a JSON file with the settings and tensors of a minGPT network, in base64 (Bycroft 2023).

Each tensor is `{"shape": […], "dtype": "torch.float32", "data": "…"}`, little-endian. Names are GPT-2's, but linear
maps are stored as `[out, in]`. The network there sorts letters: six of them go in, and come out one by one.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headwork.errors import UserError
from headwork.model.files import read_json
from headwork.model.layouts import gpt2
from headwork.model.layouts.converted import Converted

_LINEAR = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
_SETTINGS = "config"


def read(path: Path) -> dict[str, Any]:
    """The tensors of such a file, and its settings under `config`. Raises `UserError` where it is another JSON file."""
    return {name: entry if name == _SETTINGS else _tensor(path, name, entry) for name, entry in read_json(path).items()}


def convert(state: Mapping[str, Any], config: Mapping[str, Any]) -> Converted:
    """Read what `read` gives; `config` overrules the settings in it. Raises `UserError` as GPT-2's layout does."""
    stated = state.get(_SETTINGS)
    if not isinstance(stated, Mapping):
        raise UserError("The llm-viz checkpoint has no settings under 'config'; it must be an object.")
    stated = {**stated, **config}
    tensors = {
        name: value.T if name.endswith(_LINEAR) and isinstance(value, Tensor) and value.dim() == 2 else value
        for name, value in state.items()
        if name != _SETTINGS
    }
    theirs = {
        "n_positions": stated.get("block_size"),
        "n_inner": None,
        "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu_new",
        "tie_word_embeddings": False,
    }
    found = gpt2.convert(tensors, {**stated, **theirs})
    c = found.architecture
    data = None
    if c.n_ctx % 2 and c.d_vocab == c.outputs:
        data = {"generator": "sorting", "vocab": c.d_vocab, "length": (c.n_ctx + 1) // 2}
    training = {key: value for key, value in stated.items() if key.endswith("pdrop")}
    return Converted(c, found.state, training=training, data=data, inferred=found.inferred)


def _tensor(path: Path, name: str, entry: Any) -> Tensor:
    whole = isinstance(entry, Mapping) and isinstance(entry.get("shape"), list) and isinstance(entry.get("data"), str)
    if not whole or not all(isinstance(n, int) and n >= 0 for n in entry["shape"]):
        raise UserError(f"{path} is not an llm-viz network: {name} is no tensor with a shape and data.")
    if entry.get("dtype") != "torch.float32":
        raise UserError(f"{path}: {name} is of type {entry.get('dtype')!r}; torch.float32 is expected.")
    try:
        content = base64.b64decode(entry["data"], validate=True)
    except ValueError:
        content = b""
    if len(content) != 4 * math.prod(entry["shape"]):
        raise UserError(f"{path} is truncated or corrupt: {name} does not have the data that its shape needs.")
    return torch.from_numpy(np.frombuffer(content, "<f4").reshape(entry["shape"]).copy())
