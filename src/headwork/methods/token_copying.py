"""The copy score of a head: how often what it writes of a token names that very token (Wang et al. 2022).

Wang et al. take the stream at each name after MLP 0, send it through a head's OV circuit and count how often the name
is among the top five logits: above 95 % for name movers, below 20 % for the average head; for negative name movers the
same with the sign turned. Here biases are left out, and only the order of logits counts, so no norm's scale matters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headwork.engine.run import Tokens, as_tokens, run
from headwork.errors import UserError
from headwork.methods.batches import chunks
from headwork.methods.head_weights import (
    NormTreatment,
    Start,
    check_norm,
    check_start,
    chosen_heads,
    head_coordinates,
    token_vectors,
    treatment,
    unembedding,
    value_output,
)
from headwork.model.sites import Head
from headwork.model.transformer import Transformer

if TYPE_CHECKING:
    import xarray

_MOST = 2**26
_NUMBERS = ("copy_score", "negative_copy_score", "null_tokens", "null_tokens_p95", "null_turned", "null_turned_p95")


def token_copy_scores(
    model: Transformer,
    tokens: Sequence[int] | None = None,
    *,
    prompts: Tokens | None = None,
    positions: Sequence[int] | None = None,
    heads: Sequence[Head | str] | None = None,
    top: int = 5,
    start: Start | None = None,
    norm: NormTreatment = "folded",
    draws: int = 20,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> xarray.Dataset:
    """The share of tokens that are among the `top` logits of their own vector, sent through each head's OV circuit.

    Either `tokens` (all by default), whose vectors are their embedding or, by default where there is an MLP, that after
    MLP 0 without attention; or, as in the paper, `prompts` and the position of one token in each, whose vectors are the
    stream after block 0 (`blocks.0.resid_post`). Heads of layer 0 read the embedding or stream before block 0.
    Dim `head`, each a share from 0 to 1; a token that ties with others for the last place does not count:

    - `copy_score`; `negative_copy_score`: the same with the sign of OV turned;
    - `null_tokens`, `null_tokens_p95`: mean and 95th percentile over `draws` in which each vector is asked for a random
      other token of those given (a head that always names names, whichever it reads, scores here too);
    - `null_turned`, `null_turned_p95`: the same for the head with what it writes turned into random directions, its
      singular values kept. All heads meet the same directions, so that their nulls are not independent.

    `progress` is called with 1 after each pass over a head's logits, of which there are 1 + `draws`. Raises `UserError`
    for what does not exist, and before any work for more tokens than can be compared with the vocabulary.
    """
    config = model.config
    check_norm(norm)
    if config.outputs != config.d_vocab:
        raise UserError(
            f"Copying needs one vocabulary; this model reads {config.d_vocab} tokens and writes {config.outputs}."
        )
    which = chosen_heads(config, heads)
    if not 1 <= top < config.outputs:
        raise UserError(f"top = {top}; it must be from 1 to {config.outputs - 1}, below the vocabulary's size.")
    if draws < 1:
        raise UserError(f"draws = {draws}; a null needs at least 1.")
    asked, before, after, begin = _vectors(model, tokens, prompts, positions, start)
    generator = torch.Generator().manual_seed(seed)
    others = _others(asked.cpu(), draws, generator).to(asked.device)
    every = torch.arange(config.outputs, device=model.device)
    unembed = unembedding(model, every, norm)
    found, written = [], []
    for head in which:
        v, o = value_output(model, head, norm)
        read = (after if head.layer else before) @ v
        logits = read @ (o @ unembed)
        hits, against = _in_top(logits, asked, top), _in_top(-logits, asked, top)
        null = hits.gather(1, others).double().mean(0)
        found.append(torch.stack([_own(hits), _own(against), null.mean(), null.quantile(0.95)]))
        # W_O is R of its QR decomposition, and orthonormal directions: those that are drawn anew below.
        written.append(read @ torch.linalg.qr(o.T, mode="r").R.T)
        if progress:
            progress(1)
    turned = torch.empty(draws, len(which), dtype=torch.float64, device=model.device)
    for draw in range(draws):
        directions = _directions(written[0].shape[1], config.d_model, generator).to(model.device) @ unembed
        for i, z in enumerate(written):
            turned[draw, i] = _own(_in_top(z @ directions, asked, top))
            if progress:
                progress(1)
    numbers = torch.cat([torch.stack(found, 1), torch.stack([turned.mean(0), turned.quantile(0.95, 0)])])
    said = {"start": begin, "top": top, "tokens": len(asked), "chance": top / config.outputs}
    said |= {"draws": draws, "seed": seed} | treatment(config, norm)
    return _dataset(model, which, numbers, said)


def _vectors(
    model: Transformer,
    tokens: Sequence[int] | None,
    prompts: Tokens | None,
    positions: Sequence[int] | None,
    start: Start | None,
) -> tuple[Int[Tensor, " token"], Float[Tensor, "token d_model"], Float[Tensor, "token d_model"], str]:
    """The tokens, their vectors before and after MLP 0, and in words what they are."""
    config = model.config
    if prompts is not None:
        if tokens is not None or start is not None or positions is None:
            raise UserError("Give either tokens (and start), or prompts with one position each.")
        return *_in_context(model, as_tokens(model, prompts), positions), "the stream after block 0 of prompts"
    if positions is not None:
        raise UserError("positions say where the tokens are in prompts; give prompts too, or leave them out.")
    begin: Start = start or ("embedding" if config.attention_only else "after MLP 0")
    check_start(config, begin)
    count = config.d_vocab if tokens is None else len(tokens)
    _comparable(count, config.outputs)
    asked = torch.arange(count, device=model.device)
    if tokens is not None:
        asked = as_tokens(model, [[int(token)] for token in tokens])[:, 0]
        if len(asked.unique()) < len(asked):
            raise UserError("The tokens whose copying is scored include one twice; each is needed once.")
    return asked, token_vectors(model, asked, "embedding"), token_vectors(model, asked, begin), begin


def _in_context(
    model: Transformer, prompts: Int[Tensor, "batch pos"], positions: Sequence[int]
) -> tuple[Int[Tensor, " token"], Float[Tensor, "token d_model"], Float[Tensor, "token d_model"]]:
    """The tokens at one position of each prompt, and the stream there before and after block 0."""
    where, length = torch.tensor([int(p) for p in positions], device=prompts.device), prompts.shape[1]
    if len(where) != len(prompts):
        raise UserError(f"{len(where)} positions were given for {len(prompts)} prompts; one each is needed.")
    wrong = where[(where < 0) | (where >= length)]
    if len(wrong):
        raise UserError(f"The positions include {int(wrong[0])}; the prompts have positions 0–{length - 1}.")
    _comparable(len(prompts), model.config.outputs)
    sites = ["blocks.0.resid_pre", "blocks.0.resid_post"]
    parts: list[list[Tensor]] = []
    for part in chunks(model.config, *prompts.shape):
        done = run(model, prompts[part], sites).activations
        rows = torch.arange(len(where[part]), device=where.device)
        parts.append([done[site][rows, where[part]].double() for site in sites])
    before, after = (torch.cat(streams) for streams in zip(*parts))
    return prompts.gather(1, where[:, None])[:, 0], before, after


def _comparable(tokens: int, outputs: int) -> None:
    if tokens * max(tokens, outputs) > _MOST:
        raise UserError(
            f"{tokens:,} tokens against {outputs:,} logits each are too many; choose up to "
            f"{_MOST // outputs:,} with tokens=."
        )


def _others(tokens: Int[Tensor, " token"], draws: int, generator: torch.Generator) -> Int[Tensor, "token draw"]:
    """For each token the indices of random ones that differ from it; `UserError` where there is none."""
    differs = tokens[:, None] != tokens
    if not differs.any(1).all():
        raise UserError("Copying is scored against other tokens; at least two different ones are needed.")
    return torch.multinomial(differs.float(), draws, replacement=True, generator=generator)


def _in_top(
    logits: Float[Tensor, "token output"], tokens: Int[Tensor, " token"], top: int
) -> Bool[Tensor, "token asked"]:
    """Whether each token is among the top of each row: above the first that no longer is, so that ties do not count."""
    first_below = logits.topk(top + 1).values[:, -1:]
    return logits[:, tokens] > first_below


def _own(hits: Bool[Tensor, "token asked"]) -> Float[Tensor, ""]:
    """The share of tokens that their own row has among its top."""
    return hits.diagonal().double().mean()


def _directions(rank: int, width: int, generator: torch.Generator) -> Float[Tensor, "rank d_model"]:
    """Orthonormal rows, uniform over all such."""
    drawn = torch.linalg.qr(torch.randn(width, rank, generator=generator, dtype=torch.float64))
    # Uniform only with these signs: QR as it comes prefers vectors that point against the axes.
    return (drawn.Q * drawn.R.diagonal().sign()).T


def _dataset(
    model: Transformer, which: list[Head], found: Float[Tensor, "number head"], attrs: dict[str, Any]
) -> xarray.Dataset:
    import xarray

    return xarray.Dataset(
        {name: ("head", values.cpu().numpy(), {"units": "1"}) for name, values in zip(_NUMBERS, found)},
        coords=head_coordinates(model.config, which),
        attrs={"method": "token copy score"} | attrs,
    )
