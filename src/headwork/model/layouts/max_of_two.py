"""Gross's layout: networks for the maximum of two numbers (Gross et al. 2024), as `.npz`, or as the Coq source.

Tensors have TransformerLens's shapes under short names: `W_E`, `W_pos`, `L0_attn_W_Q`, `L0_ln1_w`, `ln_final_w`, `W_U`,
`b_U`; `W_Q` … with a layer axis hold the same weights once more. The Coq file (`Parameters.v`) writes each as a nested
list of hexadecimal floats, `Definition W_E := [[0x1.8p-1; …]; …].`, after the settings in the same form.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headwork.errors import UserError
from headwork.model.files import kind_of
from headwork.model.layouts import transformer_lens
from headwork.model.layouts.converted import Converted

_AGAIN = {f"{kind}_{which}" for kind in "Wb" for which in "QKVO"}
_OUTSIDE = {"W_E": "embed.W_E", "W_pos": "pos_embed.W_pos", "W_U": "unembed.W_U", "b_U": "unembed.b_U"}
_LENS = {
    "attention_dir": "causal",
    "positional_embedding_type": "standard",
    "use_attn_scale": True,
}
_DEFINITION = re.compile(r"^\s*Definition\s+(\w+)\s*:=(.*?)\.\s*$", re.MULTILINE | re.DOTALL)
_SETTINGS = {"eps": float.fromhex, "attention_dir": lambda text: text.strip('"')}
_LARGEST = 64 * 2**20


def convert(state: Mapping[str, Any], config: Mapping[str, Any]) -> Converted:
    """Read such tensors, with settings in TransformerLens's words or ours. Raises `UserError` as that layout does."""
    stated = {key: value for key, value in state.items() if not isinstance(value, Tensor)}
    renamed = {_theirs(name): value for name, value in state.items() if isinstance(value, Tensor)}
    renamed = {name: value for name, value in renamed.items() if name not in _AGAIN}
    norm = {} if "ln_final.w" in renamed else {"norm": "none"}
    found = transformer_lens.convert(renamed, {**_LENS, **norm, **stated, **config})
    c = found.architecture
    data = {"generator": "max-of-k", "vocab": c.d_vocab, "k": c.n_ctx}
    return Converted(c, found.state, training=found.training, data=data, inferred=found.inferred)


def read(path: Path) -> dict[str, Any]:
    """The tensors of a `.npz` file, or of a Coq file with its settings. Raises `UserError` where it is neither."""
    return _read_npz(path) if kind_of(path) == "npz" else _read_coq(path)


def contents(path: Path) -> str:
    """The sha256 of a file's tensors in float32, by name, whichever of the two forms it has."""
    digest = hashlib.sha256()
    for name, value in sorted(read(path).items()):
        if isinstance(value, Tensor):
            digest.update(f"{name}{list(value.shape)}".encode())
            digest.update(value.float().contiguous().numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def _theirs(name: str) -> str:
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    layer = re.fullmatch(r"L(\d+)_(attn|ln1|ln2|mlp)_(\w+)", name)
    if layer:
        return f"blocks.{layer[1]}.{layer[2]}.{layer[3]}"
    return re.sub(r"^ln_final_", "ln_final.", name)


def _read_npz(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > _LARGEST:
            raise UserError(f"{path} unpacks to {size} bytes; networks of this layout have at most {_LARGEST}.")
        with np.load(path, allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    except UserError:
        raise
    except Exception as error:  # a damaged archive can fail in any way inside numpy's reader
        raise UserError(f"{path} is truncated or corrupt, or not a .npz file of plain arrays.") from error


def _read_coq(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} is neither a .npz file nor the Coq source of a network.") from None
    found: dict[str, Any] = {}
    for name, value in _DEFINITION.findall(text):
        value = value.strip()
        try:
            if value.startswith("["):
                found[name] = _nested(value)
            elif name in _SETTINGS:
                found[name] = _SETTINGS[name](value)
        except (ValueError, TypeError, OverflowError) as error:  # of torch too: lists of unequal depth, 0x1p9999
            raise UserError(f"{path} is truncated or corrupt: {name} is no list of numbers ({error}).") from None
    if not any(isinstance(value, Tensor) for value in found.values()):
        raise UserError(
            f"{path} defines no tensor; a network's Coq source has lines such as 'Definition W_E := [[…]].'"
        )
    return found


def _nested(text: str) -> Tensor:
    """A nested list of hexadecimal floats as a tensor, in float32 as the network was. Raises `ValueError`."""
    parts = re.findall(r"[\[\]]|[^\[\];\s]+", text)
    stack: list[list[Any]] = [[]]
    for part in parts:
        if part == "[":
            stack.append([])
        elif part == "]":
            if len(stack) < 2:
                raise ValueError("unbalanced brackets")
            done = stack.pop()
            stack[-1].append(done)
        else:
            stack[-1].append(float.fromhex(part))
    if len(stack) != 1 or len(stack[0]) != 1:
        raise ValueError("unbalanced brackets")
    return torch.tensor(stack[0][0], dtype=torch.float64).float()
