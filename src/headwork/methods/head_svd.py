"""Singular vectors of a head's OV and QK circuits, and the tokens they speak of (Millidge & Black 2022).

W_V W_O = Σ s u vᵀ: where the stream lies along u, the head writes s along v. W_Q W_Kᵀ × scale likewise: queries along
u look for keys along v. The decomposition is made from the d_head-sized factors: with V = Q_V R_V and Oᵀ = Q_O R_O
(QR), it is that of R_V R_Oᵀ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from headwork.errors import UserError, unknown
from headwork.methods.head_weights import (
    NormTreatment,
    check_norm,
    check_offset,
    chosen_heads,
    head_coordinates,
    query_key,
    token_vectors,
    treatment,
    unembedding,
    value_output,
)
from headwork.model.sites import Head
from headwork.model.transformer import Transformer

if TYPE_CHECKING:
    import xarray

Circuit = Literal["OV", "QK"]
Vectors = Float[Tensor, "component d_model"]
_TOKENS_AT_ONCE = 4096


def head_svd(
    model: Transformer,
    heads: Sequence[Head | str] | None = None,
    *,
    circuits: Sequence[Circuit] = ("OV", "QK"),
    components: int | None = None,
    top: int = 10,
    offset: int | None = None,
    norm: NormTreatment = "ignored",
) -> xarray.Dataset:
    """The singular value decomposition of each head's circuits.

    Dims `circuit`, `head`, `component` (strongest first; all that a head can have unless `components` says fewer):

    - `singular_value`; `left`, `right` [circuit, head, component, d_model]: unit vectors that the head reads and writes
      (QK: those of the query's and of the key's stream). Both may change sign together: the entry of `right` that is
      largest in size is positive here;
    - `effective_rank` [circuit, head]: (Σ s²)² ÷ Σ s⁴ over all components, from 1 to d_head; 0 for a head that is zero;
    - `top_left`, `top_right` [circuit, head, component, sign, place]: the `top` tokens whose embedding lies furthest
      along the vector (sign +) or against it (−); what OV writes meets the unembedding instead. Read + goes with
      written +, − with −. The inner products are `left_value` and `right_value`, and `left_text`, `right_text` the
      tokens' text, where the network has a tokenizer.

    Under rotary positions QK needs a stated `offset` (W_Q R(offset) W_Kᵀ). `norm` treats the norm before the head and,
    for what OV writes, the final one; embeddings are taken as they are. Under grouped queries heads of a group share
    W_K and W_V: `kv_head`. Raises `UserError` for what does not exist.
    """
    config = model.config
    check_norm(norm)
    for circuit in circuits:
        if circuit not in get_args(Circuit):
            raise unknown("circuit", circuit, get_args(Circuit))
    if not circuits or len(set(circuits)) < len(circuits):
        raise UserError(f"The circuits are {list(circuits)}; OV, QK or both are needed, each once.")
    if "QK" in circuits or offset is not None:
        check_offset(config, offset)
    which = chosen_heads(config, heads)
    rank = min(config.d_head, config.d_model)
    kept = rank if components is None else components
    if not 1 <= kept <= rank:
        raise UserError(f"components = {kept}; a head of this network has 1–{rank}.")
    if not 1 <= top <= min(config.d_vocab, config.outputs):
        raise UserError(f"top = {top}; there are {min(config.d_vocab, config.outputs)} tokens to choose from.")
    found = [[_one(model, head, circuit, kept, top, offset, norm) for head in which] for circuit in circuits]
    values = {
        key: torch.stack([torch.stack([one[key] for one in row]) for row in found]).cpu().numpy() for key in found[0][0]
    }
    return _dataset(model, list(circuits), which, values, treatment(config, norm, offset))


def _one(
    model: Transformer,
    head: Head,
    circuit: Circuit,
    kept: int,
    top: int,
    offset: int | None,
    norm: NormTreatment,
) -> dict[str, Tensor]:
    """Everything about one circuit of one head."""
    if circuit == "OV":
        reads, o = value_output(model, head, norm)
        other = o.T
    else:
        reads, other = query_key(model, head, norm, offset)
    left, values, right = factored_svd(reads, other)
    squares = values.square()
    total = squares.square().sum()
    effective = squares.sum().square() / total if total > 0 else total
    found = {"singular_value": values[:kept], "effective_rank": effective, "left": left[:kept], "right": right[:kept]}
    ends = {"left": "read", "right": "written" if circuit == "OV" else "read"}
    for side, what in ends.items():
        along, tokens = _tokens_along(model, found[side], top, what == "written", norm)
        found |= {f"top_{side}": tokens, f"{side}_value": along}
    return found


def factored_svd(
    reads: Float[Tensor, "d_model d_head"], other: Float[Tensor, "d_model d_head"]
) -> tuple[Vectors, Float[Tensor, " component"], Vectors]:
    """Left vectors, singular values and right vectors of reads · otherᵀ, which is never made; vectors are rows."""
    first, second = torch.linalg.qr(reads), torch.linalg.qr(other)
    u, values, vt = torch.linalg.svd(first.R @ second.R.T)
    left, right = (first.Q @ u).T, vt @ second.Q.T
    largest = right.gather(1, right.abs().argmax(1, keepdim=True))
    sign = torch.where(largest < 0, -1.0, 1.0).to(right.dtype)
    return left * sign, values, right * sign


def _tokens_along(
    model: Transformer, vectors: Vectors, top: int, written: bool, norm: NormTreatment
) -> tuple[Float[Tensor, "component sign place"], Int[Tensor, "component sign place"]]:
    """Inner products and ids of the tokens furthest along and against each vector."""
    count = model.config.outputs if written else model.config.d_vocab
    every = torch.arange(count, device=model.device).split(_TOKENS_AT_ONCE)
    if written:
        along = torch.cat([vectors @ unembedding(model, part, norm) for part in every], 1)
    else:
        along = torch.cat([vectors @ token_vectors(model, part, "embedding").T for part in every], 1)
    most, least = along.topk(top), along.topk(top, largest=False)
    return torch.stack([most.values, least.values], 1), torch.stack([most.indices, least.indices], 1)


def _texts(model: Transformer, tokens: np.ndarray) -> np.ndarray | None:
    """The text of each token, empty where the tokenizer has fewer than the network; None without a tokenizer."""
    if model.tokenizer_source is None:
        return None
    ids = np.unique(tokens)
    known = [int(i) for i in ids if i < model.tokenizer.d_vocab]
    text = dict(zip(known, model.tokenizer.pieces(known)))
    return np.array([text.get(int(i), "") for i in tokens.flat], dtype=object).reshape(tokens.shape)


def _dataset(
    model: Transformer, circuits: list[Circuit], which: list[Head], values: dict[str, np.ndarray], attrs: dict[str, Any]
) -> xarray.Dataset:
    import xarray

    dims = ("circuit", "head", "component")
    units = "OV: written per read; QK: attention score"
    variables: dict[str, Any] = {
        "singular_value": (dims, values["singular_value"], {"units": units}),
        "effective_rank": (dims[:2], values["effective_rank"], {"units": "components"}),
    }
    for side in ("left", "right"):
        ranked = (*dims, "sign", "place")
        variables[side] = ((*dims, "d_model"), values[side], {"units": "1"})
        variables[f"top_{side}"] = (ranked, values[f"top_{side}"], {"units": "token"})
        variables[f"{side}_value"] = (ranked, values[f"{side}_value"], {"units": "inner product"})
        texts = _texts(model, values[f"top_{side}"])
        if texts is not None:
            variables[f"{side}_text"] = (ranked, texts)
    return xarray.Dataset(
        variables,
        coords={"circuit": circuits, "sign": ["+", "−"]} | head_coordinates(model.config, which),
        attrs={"method": "singular value decomposition of heads"} | attrs,
    )
