"""Whether a head copies: the eigenvalues of its full OV circuit W_E W_V W_O W_U (Elhage et al. 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from headwork.errors import UserError
from headwork.model.transformer import Transformer

if TYPE_CHECKING:
    import xarray


def copying_scores(model: Transformer) -> Float[Tensor, "layer head"]:
    """Σ λ / Σ |λ| of each head: 1 where reading a token raises its own logit in every direction, −1 where it lowers it.

    The nonzero eigenvalues of the vocabulary-sized matrix are those of W_O W_U W_E W_V `[d_head, d_head]`. Norms are
    left out. Raises `UserError` where inputs and outputs are different vocabularies.
    """
    config = model.config
    if config.outputs != config.d_vocab:
        raise UserError(
            f"Copying needs one vocabulary; this model reads {config.d_vocab} tokens and writes {config.outputs}."
        )
    around = (model.W_U.double() @ model.W_E.double()).detach()
    per_group = config.n_heads // config.kv_heads
    scores = torch.empty(config.n_layers, config.n_heads)
    for layer, block in enumerate(model.layers):
        w_o, w_v = block.attn.W_O.double().detach(), block.attn.W_V.double().detach()
        small = w_o @ around @ w_v.repeat_interleave(per_group, 0)
        eigenvalues = torch.linalg.eigvals(small)
        # A head that writes nothing has eigenvalues of zero: it copies nothing, and its score is 0.
        size = eigenvalues.abs().sum(-1).clamp(min=torch.finfo(torch.float64).tiny)
        scores[layer] = (eigenvalues.real.sum(-1) / size).float().cpu()
    return scores


def ov_copying(model: Transformer) -> xarray.DataArray:
    """`copying_scores` with their labels: dims `layer`, `head`, without unit, from −1 to 1."""
    import xarray

    scores = copying_scores(model)
    return xarray.DataArray(
        scores.numpy(),
        dims=("layer", "head"),
        coords={"layer": range(scores.shape[0]), "head": range(scores.shape[1])},
        name="ov_copying",
        attrs={"method": "copying score: eigenvalues of the full OV circuit", "norm": "ignored", "units": "1"},
    )
