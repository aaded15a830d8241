"""How far one head reads what an earlier one writes, from their weights: Q-, K- and V-composition (Elhage et al. 2021).

With A = W_V W_O of the writer and B what the reader makes of its input (W_Q W_Kᵀ, W_K W_Qᵀ or W_V W_O), the score is
‖A B‖ / (‖A‖ ‖B‖), Frobenius norms, between 0 and 1. It is computed from d_head-sized factors alone: with V = Q_V R_V
(QR), ‖V O X Yᵀ‖ = ‖(R_V O) (X R_Yᵀ)‖.

Two random heads do not score 0, so a score says little without its null. The null here keeps both heads' singular
values and turns their directions at random: in the basis of singular vectors that is diag(s) C diag(t), where C is a
corner of a random orthogonal d_model × d_model matrix. Its root mean square is 1/√d_model for any pair of heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from headwork.errors import UserError, unknown
from headwork.methods.head_weights import (
    NormTreatment,
    check_norm,
    check_offset,
    chosen_heads,
    head_coordinates,
    query_key,
    treatment,
    value_output,
)
from headwork.model.sites import Head
from headwork.model.transformer import Transformer

if TYPE_CHECKING:
    import xarray

Route = Literal["q", "k", "v"]
Output = Float[Tensor, "rank d_model"]
Input = Float[Tensor, "d_model rank"]
_NUMBERS = ("score", "null_mean", "null_p95", "z")


def composition_scores(
    model: Transformer,
    *,
    routes: Sequence[Route] = ("q", "k", "v"),
    writers: Sequence[Head | str] | None = None,
    readers: Sequence[Head | str] | None = None,
    offset: int | None = None,
    norm: NormTreatment = "ignored",
    draws: int = 200,
    seed: int = 0,
) -> xarray.Dataset:
    """Composition scores of every writer with every reader of a later layer.

    Dims `route`, `writer`, `reader`; NaN where the writer is not in an earlier layer:

    - `score`, from 0 to 1, without unit; 0 too where a head is zero;
    - `null_mean`, `null_p95`: mean and 95th percentile over `draws` random turns of the same two heads. All pairs meet
      the same turns, so that the nulls of different pairs are not independent;
    - `z`: (score − null_mean) ÷ standard deviation of the null; NaN where the null does not vary;
    - `gaussian_mean`, `gaussian_p95` [] : the same for heads of these shapes with Gaussian weights.

    Under rotary positions W_Q W_Kᵀ depends on how far the query is behind its key, so weights alone define Q- and
    K-composition only at a stated `offset`: give it, or ask for `routes=["v"]`. Under grouped queries all readers of a
    group have the same K-side weights, and `reader_kv_head` says which. With `norm="folded"` the norm before the reader
    is in its weights but for the scale. MLPs are no part of this. Raises `UserError` for what does not exist.
    """
    config = model.config
    check_norm(norm)
    wanted = _routes(routes)
    if set(wanted) & {"q", "k"} or offset is not None:
        _check_offset(model, offset, wanted)
    if draws < 2:
        raise UserError(f"draws = {draws}; a null needs at least 2.")
    writing, reading = chosen_heads(config, writers, "writers"), chosen_heads(config, readers, "readers")
    if not [1 for w in writing for r in reading if w.layer < r.layer]:
        raise UserError("No writer is in an earlier layer than a reader, so none can compose.")
    generator = torch.Generator().manual_seed(seed)
    rank = min(config.d_head, config.d_model)
    turns = _corners(rank, config.d_model, draws, generator).square().to(model.device)
    outputs = [_output(model, head, norm) for head in writing]
    spectra = torch.stack([torch.linalg.svdvals(m)[:rank].square() for m in outputs])
    turned = torch.einsum("wi,dij->dwj", spectra, turns)
    found = torch.full((len(_NUMBERS), len(wanted), len(writing), len(reading)), torch.nan, dtype=torch.float64)
    for j, reader in enumerate(reading):
        earlier = [i for i, writer in enumerate(writing) if writer.layer < reader.layer]
        if not earlier:
            continue
        stacked = torch.stack([outputs[i] for i in earlier])
        for i, route in enumerate(wanted):
            reads = _input(model, reader, route, norm, offset)
            found[:, i, earlier, j] = _compared(stacked, reads, turned[:, earlier]).cpu()
    gaussian = _gaussian_scores(config.d_model, config.d_head, draws, generator)
    said = treatment(config, norm, offset) | {"draws": draws, "seed": seed}
    return _dataset(model, wanted, writing, reading, found, gaussian, said)


def _routes(routes: Sequence[Route]) -> tuple[Route, ...]:
    wanted: tuple[Route, ...] = tuple(routes)
    for route in wanted:
        if route not in get_args(Route):
            raise unknown("route of composition", route, get_args(Route))
    if not wanted or len(set(wanted)) < len(wanted):
        raise UserError(f"The routes are {list(wanted)}; at least one of q, k, v is needed, and each once.")
    return wanted


def _check_offset(model: Transformer, offset: int | None, routes: Sequence[Route]) -> None:
    if model.config.turned and offset is None:
        raise UserError(
            "Under rotary positions Q- and K-composition depend on how far the query is behind its key; state offset, "
            f"from 0 to {model.config.n_ctx - 1}, or ask for routes=['v'] alone (given: {list(routes)})."
        )
    check_offset(model.config, offset)


def _output(model: Transformer, head: Head, norm: NormTreatment) -> Output:
    """R_V W_O: as W_V W_O, but for an orthonormal factor on the left."""
    v, o = value_output(model, head, norm)
    return _square(v) @ o


def _input(model: Transformer, head: Head, route: Route, norm: NormTreatment, offset: int | None) -> Input:
    """What the reader makes of its input, but for an orthonormal factor on the right."""
    if route == "v":
        v, o = value_output(model, head, norm)
        return v @ _square(o.T).T
    q, k = query_key(model, head, norm, offset)
    reads, other = (q, k) if route == "q" else (k, q)
    return reads @ _square(other).T


def _square(tall: Float[Tensor, "*draw d_model d_head"]) -> Float[Tensor, "*draw rank d_head"]:
    """R of the QR decomposition: it has the same products with its own transpose."""
    return torch.linalg.qr(tall, mode="r").R


def _compared(
    outputs: Float[Tensor, "writer rows d_model"],
    reads: Float[Tensor, "d_model columns"],
    turned: Float[Tensor, "draw writer rank"],
) -> Float[Tensor, "number writer"]:
    """Score, mean and 95th percentile of the null, z, of one reader with its writers."""
    sizes = torch.linalg.matrix_norm(outputs) * torch.linalg.matrix_norm(reads)
    # A head that writes or reads nothing composes with none.
    whole = torch.where(sizes > 0, sizes, 1)
    score = torch.linalg.matrix_norm(outputs @ reads) / whole
    spectrum = torch.linalg.svdvals(reads)[: turned.shape[-1]].square()
    null = (turned @ spectrum).clamp(min=0).sqrt() / whole
    mean, spread = null.mean(0), null.std(0)
    # Rounding alone makes the null of two heads that have no direction of their own vary by this much.
    varies = spread > 1e-12
    z = torch.where(varies, (score - mean) / torch.where(varies, spread, 1), torch.nan)
    return torch.stack([score, mean, null.quantile(0.95, 0), z])


def _corners(rank: int, width: int, draws: int, generator: torch.Generator) -> Float[Tensor, "draw rank rank"]:
    """The upper left corners of `draws` random orthogonal matrices of this width, uniform over the group."""
    gaussian = torch.randn(draws, width, rank, generator=generator, dtype=torch.float64)
    # Signs of the columns, which QR leaves to the library, vanish in the squares that alone are used.
    return torch.linalg.qr(gaussian).Q[:, :rank]


def _gaussian_scores(d_model: int, d_head: int, draws: int, generator: torch.Generator) -> Float[Tensor, " draw"]:
    """Scores of pairs of heads whose weights are independent standard normal numbers."""
    found = torch.empty(draws, dtype=torch.float64)
    for draw in range(draws):
        v, o, x, y = torch.randn(4, d_model, d_head, generator=generator, dtype=torch.float64)
        output, reads = _square(v) @ o.T, x @ _square(y).T
        found[draw] = torch.linalg.matrix_norm(output @ reads)
        found[draw] /= torch.linalg.matrix_norm(output) * torch.linalg.matrix_norm(reads)
    return found


def _dataset(
    model: Transformer,
    routes: Sequence[Route],
    writers: list[Head],
    readers: list[Head],
    found: Float[Tensor, "number route writer reader"],
    gaussian: Float[Tensor, " draw"],
    attrs: dict[str, Any],
) -> xarray.Dataset:
    import xarray

    variables: dict[str, Any] = {
        name: (("route", "writer", "reader"), values.numpy(), {"units": "1"}) for name, values in zip(_NUMBERS, found)
    }
    variables["gaussian_mean"] = ((), float(gaussian.mean()), {"units": "1"})
    variables["gaussian_p95"] = ((), float(gaussian.quantile(0.95)), {"units": "1"})
    coords = head_coordinates(model.config, writers, "writer") | head_coordinates(model.config, readers, "reader")
    if model.config.turned and set(routes) & {"q", "k"}:
        attrs["warning"] = "Rotary positions turn queries and keys: Q and K hold at the stated offset alone"
    return xarray.Dataset(
        variables,
        coords={"route": list(routes)} | coords,
        attrs={"method": "composition scores", "null": "singular values kept, directions turned at random"} | attrs,
    )
