"""The circuits of a head between tokens, from its weights alone (Elhage et al. 2021).

The full OV circuit W_E W_V W_O W_U says how attending to one token changes the logit of another; the full QK circuit
W_E W_Q W_Kᵀ W_Eᵀ × scale how much one token wants to look at another. Both describe the path straight from the
embedding to the head (and from the head to the logits). What is left out is said in the attributes: see
`headwork.methods.head_weights`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headwork.errors import UserError, unknown
from headwork.methods.head_weights import (
    NormTreatment,
    Start,
    check_norm,
    check_offset,
    check_start,
    chosen_heads,
    head_coordinates,
    position_query_key,
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
By = Literal["largest", "smallest", "absolute"]
BYTES = 2**29
"""What a circuit may take unless the caller says otherwise."""
_TOKENS_AT_ONCE = 512
_ELEMENT = 8


def ov_circuit(
    model: Transformer,
    heads: Sequence[Head | str] | None = None,
    *,
    tokens: Sequence[int] | None = None,
    outputs: Sequence[int] | None = None,
    start: Start = "embedding",
    norm: NormTreatment = "ignored",
    memory: int = BYTES,
) -> xarray.DataArray:
    """W_E W_V W_O W_U [head, token, output]: what full attention to a token adds to each logit, in logits.

    Rows are the tokens attended to, columns the tokens predicted; all of the vocabulary unless chosen. With `start`
    "after MLP 0" rows begin from W_E + MLP₀(W_E) (heads of layer 0 come before it and read W_E all the same). Raises
    `UserError` for what does not exist, and, before any work, where the result takes more than `memory` bytes: large
    vocabularies are read by chosen tokens, or by `strongest_entries`.
    """
    check_norm(norm)
    check_start(model.config, start)
    which = chosen_heads(model.config, heads)
    rows = _tokens(model, "tokens", tokens, model.config.d_vocab)
    columns = _tokens(model, "outputs", outputs, model.config.outputs)
    _fits("OV", len(which), len(rows), len(columns), memory, "tokens= and outputs=")
    found = torch.stack([torch.matmul(*_ov(model, head, rows, columns, start, norm)) for head in which])
    axes = {"token": rows.tolist(), "output": columns.tolist()}
    said = {"method": "full OV circuit", "units": "logits", "start": start} | treatment(model.config, norm)
    return _array(model, "ov", which, found, axes, said)


def qk_circuit(
    model: Transformer,
    heads: Sequence[Head | str] | None = None,
    *,
    queries: Sequence[int] | None = None,
    keys: Sequence[int] | None = None,
    offset: int | None = None,
    start: Start = "embedding",
    norm: NormTreatment = "ignored",
    memory: int = BYTES,
) -> xarray.DataArray:
    """W_E W_Q W_Kᵀ W_Eᵀ × scale [head, query_token, key_token]: the attention score of each pair of tokens.

    Positions' own part is left out (see `positional_qk`). Under rotary positions the score depends on how many
    positions the query is behind its key, and `offset` must say it: W_Q R(offset) W_Kᵀ. The rest is as in `ov_circuit`.
    """
    check_norm(norm)
    check_start(model.config, start)
    check_offset(model.config, offset)
    which = chosen_heads(model.config, heads)
    rows = _tokens(model, "query tokens", queries, model.config.d_vocab)
    columns = _tokens(model, "key tokens", keys, model.config.d_vocab)
    _fits("QK", len(which), len(rows), len(columns), memory, "queries= and keys=")
    found = torch.stack([torch.matmul(*_qk(model, head, rows, columns, start, norm, offset)) for head in which])
    axes = {"query_token": rows.tolist(), "key_token": columns.tolist()}
    said = {"method": "full QK circuit", "units": "attention score", "start": start}
    return _array(model, "qk", which, found, axes, said | treatment(model.config, norm, offset))


def positional_qk(
    model: Transformer,
    heads: Sequence[Head | str] | None = None,
    *,
    positions: Sequence[int] | None = None,
    norm: NormTreatment = "ignored",
    memory: int = BYTES,
) -> xarray.DataArray:
    """W_pos W_Q W_Kᵀ W_posᵀ × scale [head, query, key]: the attention score between positions, whatever the tokens.

    Only where positions are a table (learned, shortformer); otherwise, and for what does not exist, `UserError`. Keys
    behind their query are given too, although a causal network never looks there.
    """
    check_norm(norm)
    config = model.config
    if config.positions not in ("learned", "shortformer"):
        raise UserError(
            f"This network's positions are {config.positions!r}; only learned and shortformer ones are a table."
        )
    which = chosen_heads(config, heads)
    places = _tokens(model, "positions", positions, config.n_ctx)
    _fits("positional QK", len(which), len(places), len(places), memory, "positions=")
    table = model.W_pos.detach()[places].double()
    found = []
    for head in which:
        q, k = position_query_key(model, head, norm)
        found.append((table @ q) @ (table @ k).T)
    axes = {"query": places.tolist(), "key": places.tolist()}
    said = {"method": "positional QK circuit", "units": "attention score"} | treatment(config, norm)
    return _array(model, "positional_qk", which, torch.stack(found), axes, said)


def strongest_entries(
    model: Transformer,
    heads: Sequence[Head | str] | None = None,
    *,
    circuit: Circuit = "OV",
    top: int = 20,
    by: By = "largest",
    offset: int | None = None,
    start: Start = "embedding",
    norm: NormTreatment = "ignored",
    memory: int = BYTES,
    progress: Callable[[int], None] | None = None,
) -> xarray.Dataset:
    """The `top` entries of each head's full circuit, without ever holding the vocabulary-sized matrix.

    Dims `head`, `rank`: `value` (logits, or attention score) and the tokens `row` (attended to; QK: query) and `column`
    (predicted; QK: key), best first by `by`: `largest`, `smallest`, or `absolute` value. Rows are made a chunk at a
    time so that no more than `memory` bytes are taken beside the weights; `progress` is called with the number of rows
    done since the last call. Raises `UserError` as `ov_circuit` and `qk_circuit`, or where not even one row fits.
    """
    for kind, given, accepted in (("circuit", circuit, Circuit), ("order of entries", by, By)):
        if given not in get_args(accepted):
            raise unknown(kind, given, get_args(accepted))
    check_norm(norm)
    check_start(model.config, start)
    if circuit == "QK" or offset is not None:
        check_offset(model.config, offset)
    which = chosen_heads(model.config, heads)
    rows = torch.arange(model.config.d_vocab, device=model.device)
    columns = torch.arange(model.config.outputs if circuit == "OV" else model.config.d_vocab, device=model.device)
    if not 1 <= top <= len(rows) * len(columns):
        raise UserError(f"top = {top}; each circuit has {len(rows) * len(columns):,} entries, and at least 1 is shown.")
    size = _rows_at_once(model, len(columns), top, memory)
    found = []
    for head in which:
        if circuit == "OV":
            left, right = _ov(model, head, rows, columns, start, norm)
        else:
            left, right = _qk(model, head, rows, columns, start, norm, offset)
        found.append(_strongest(left, right, top, by, size, progress))
    return _entries(model, which, found, circuit, by, {"start": start} | treatment(model.config, norm, offset))


def _ov(
    model: Transformer,
    head: Head,
    rows: Int[Tensor, " row"],
    columns: Int[Tensor, " column"],
    start: Start,
    norm: NormTreatment,
) -> tuple[Float[Tensor, "row d_head"], Float[Tensor, "d_head column"]]:
    """The two factors of the full OV circuit; the vocabulary passes through d_model a chunk at a time."""
    v, o = value_output(model, head, norm)
    left = _read(model, head, rows, start, v)
    return left, torch.cat([o @ unembedding(model, part, norm) for part in columns.split(_TOKENS_AT_ONCE)], 1)


def _qk(
    model: Transformer,
    head: Head,
    rows: Int[Tensor, " row"],
    columns: Int[Tensor, " column"],
    start: Start,
    norm: NormTreatment,
    offset: int | None,
) -> tuple[Float[Tensor, "row d_head"], Float[Tensor, "d_head column"]]:
    q, k = query_key(model, head, norm, offset)
    return _read(model, head, rows, start, q), _read(model, head, columns, start, k).T


def _read(
    model: Transformer, head: Head, tokens: Int[Tensor, " token"], start: Start, reads: Float[Tensor, "d_model d_head"]
) -> Float[Tensor, "token d_head"]:
    """What a head reads of tokens; those of layer 0 come before MLP 0."""
    begin: Start = start if head.layer else "embedding"
    return torch.cat([token_vectors(model, part, begin) @ reads for part in tokens.split(_TOKENS_AT_ONCE)])


def _strongest(
    left: Float[Tensor, "row d_head"],
    right: Float[Tensor, "d_head column"],
    top: int,
    by: By,
    size: int,
    progress: Callable[[int], None] | None,
) -> tuple[Float[Tensor, " top"], Int[Tensor, " top"], Int[Tensor, " top"]]:
    """Values, rows and columns of the strongest entries of left · right, `size` rows at a time."""
    values, places = left.new_empty(0), torch.empty(0, dtype=torch.long, device=left.device)
    for first, part in _parts(left, size):
        entries = (part @ right).flatten()
        near = _order(entries, by).topk(min(top, len(entries))).indices
        values = torch.cat([values, entries[near]])
        places = torch.cat([places, near + first * right.shape[1]])
        best = _order(values, by).topk(min(top, len(values))).indices
        values, places = values[best], places[best]
        if progress:
            progress(len(part))
    return values, places // right.shape[1], places % right.shape[1]


def _order(values: Float[Tensor, " n"], by: By) -> Float[Tensor, " n"]:
    return {"largest": lambda: values, "smallest": lambda: -values, "absolute": values.abs}[by]()


def _parts(left: Float[Tensor, "row d_head"], size: int) -> Iterator[tuple[int, Float[Tensor, "some d_head"]]]:
    for first in range(0, len(left), size):
        yield first, left[first : first + size]


def _rows_at_once(model: Transformer, columns: int, top: int, memory: int) -> int:
    """How many rows of a circuit fit beside its factors; `UserError` where it is none."""
    config = model.config
    factors = (config.d_vocab + 2 * columns) * config.d_head
    chunk = _TOKENS_AT_ONCE * (2 * config.d_model + 4 * config.d_mlp)
    # Entries, their order and what finding the best of them takes.
    free, row = memory - _ELEMENT * (factors + chunk + 6 * top), 4 * columns * _ELEMENT
    if free < row:
        least = _ELEMENT * (factors + chunk + 6 * top) + row
        raise UserError(
            f"One row of {columns:,} entries needs about {least / 1e6:,.1f} MB beside the weights; the limit is "
            f"{memory / 1e6:,.1f} MB."
        )
    return free // row


def _tokens(model: Transformer, what: str, given: Sequence[int] | None, count: int) -> Int[Tensor, " n"]:
    """The chosen ids, all by default, on the network's device."""
    if given is None:
        return torch.arange(count, device=model.device)
    found = [int(i) for i in given]
    wrong = [i for i in found if not 0 <= i < count]
    if wrong:
        raise UserError(f"The {what} include {wrong[0]}; this network has 0–{count - 1}.")
    if not found or len(set(found)) < len(found):
        raise UserError(f"The {what} are {found[:10]}; at least one is needed, and each once.")
    return torch.tensor(found, device=model.device)


def _fits(what: str, heads: int, rows: int, columns: int, memory: int, choose: str) -> None:
    needed = 2 * heads * rows * columns * _ELEMENT
    if needed > memory:
        raise UserError(
            f"The {what} circuits of {heads} heads over {rows:,} × {columns:,} entries need {needed / 1e9:,.1f} GB; "
            f"the limit is {memory / 1e9:,.1f} GB. Choose some with {choose}, or fewer heads."
        )


def _array(
    model: Transformer,
    name: str,
    which: list[Head],
    found: Float[Tensor, "head row column"],
    axes: dict[str, list[int]],
    attrs: dict[str, Any],
) -> xarray.DataArray:
    import xarray

    coords = head_coordinates(model.config, which) | axes
    return xarray.DataArray(found.cpu().numpy(), dims=("head", *axes), coords=coords, name=name, attrs=attrs)


def _entries(
    model: Transformer,
    which: list[Head],
    found: list[tuple[Tensor, Tensor, Tensor]],
    circuit: Circuit,
    by: By,
    attrs: dict[str, Any],
) -> xarray.Dataset:
    import xarray

    value, row, column = (torch.stack(parts).cpu().numpy() for parts in zip(*found))
    dims, units = ("head", "rank"), "logits" if circuit == "OV" else "attention score"
    return xarray.Dataset(
        {
            "value": (dims, value, {"units": units}),
            "row": (dims, row, {"units": "token"}),
            "column": (dims, column, {"units": "token"}),
        },
        coords=head_coordinates(model.config, which) | {"rank": range(value.shape[1])},
        attrs={"method": f"strongest entries of the full {circuit} circuit", "by": by} | attrs,
    )
