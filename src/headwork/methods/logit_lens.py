"""The logit lens (nostalgebraist 2020): the final norm and unembedding, applied to the stream before each block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headwork.engine.run import Tokens, as_tokens, run
from headwork.errors import UserError
from headwork.methods.batches import BYTES_PER_CHUNK, chunks
from headwork.model.config import TransformerConfig
from headwork.model.sites import layer_of, resolve, sites
from headwork.model.transformer import NO_TAP, Transformer
from headwork.tasks.prompt_pairs import prompt_labels

if TYPE_CHECKING:
    import xarray


def logit_lens(
    model: Transformer,
    tokens: Tokens,
    *,
    targets: Int[Tensor, "batch pos"] | None = None,
    chosen: Sequence[int] = (),
    at: Iterable[str] | str | None = None,
    labels: Sequence[str] = (),
) -> xarray.Dataset:
    """What the network would predict at each position if it stopped at each site.

    `at` names sites that are streams `[batch, pos, d_model]`; by default `resid_pre` of every layer and the final
    stream. `targets` are the tokens to look for; by default those that the whole network finds most likely. Every
    number has dims `site`, `position`, `prompt`:

    - `kl`: KL(final ‖ lens) in nats, from the network's final distribution;
    - `rank`: how many tokens have a higher logit than the target; 0 is the top;
    - `target_logit`, `target_logprob` (nats), and `target` [position, prompt];
    - `top`: the most likely token;
    - `logit` [site, position, prompt, token]: the logits of the `chosen` tokens, where there are any.

    `layer` is a coordinate of `site`: how many blocks come before it. Vocabulary-sized rows are made and reduced a
    chunk at a time. Raises `UserError` for sites that are no stream, and for tokens that the network has no logit for.
    """
    return lens(model, tokens, read_sites(model.config, at), None, targets, chosen, labels)


Translation = Callable[[int, Float[Tensor, "rows d_model"]], Float[Tensor, "rows d_model"]]
"""From the index of a site, and what the stream holds there, to what is read instead."""


def lens(
    model: Transformer,
    tokens: Tokens,
    names: list[str],
    translation: Translation | None,
    targets: Int[Tensor, "batch pos"] | None,
    chosen: Sequence[int],
    labels: Sequence[str],
    method: str = "logit lens",
) -> xarray.Dataset:
    """What the logit lens and its kin share: streams, translated where asked for, as predictions (see `logit_lens`)."""
    tokens = as_tokens(model, tokens)
    prompts = prompt_labels(labels, len(tokens))
    wanted = _checked(model, "chosen tokens", torch.tensor(chosen, dtype=torch.long))
    if targets is not None:
        targets = _checked(model, "targets", targets)
        if targets.shape != tokens.shape:
            raise UserError(f"The targets have shape {list(targets.shape)}; the prompts are {list(tokens.shape)}.")
    end = f"blocks.{model.config.n_layers - 1}.resid_post"
    parts: list[dict[str, Tensor]] = []
    for part in chunks(model.config, *tokens.shape):
        done = run(model, tokens[part], [*names, end]).activations
        sought = None if targets is None else targets[part].flatten()
        with torch.no_grad():
            streams = [done[name].flatten(0, 1) for name in names]
            read = _read(model, streams, done[end].flatten(0, 1), sought, wanted, translation)
        parts.append({key: value.unflatten(1, done[end].shape[:2]) for key, value in read.items()})
    found = {key: torch.cat([p[key] for p in parts], 1).transpose(1, 2).cpu() for key in parts[0]}
    said = {"method": method, "targets": "given" if targets is not None else "the network's own prediction"}
    return _dataset(names, found, chosen, prompts, said)


def read_sites(config: TransformerConfig, at: Iterable[str] | str | None) -> list[str]:
    """The sites to read; `UserError` for those that are no stream."""
    if not config.n_layers:
        raise UserError("This network has no layers: its embeddings already are what it predicts from.")
    names = resolve(config, ["blocks.*.resid_pre", f"blocks.{config.n_layers - 1}.resid_post"] if at is None else at)
    described = sites(config)
    for name in names:
        if described[name].axes != ("batch", "pos", "d_model"):
            raise UserError(
                f"The lens reads streams [batch, pos, d_model], such as resid_pre or mlp_out; {name} has axes "
                f"{', '.join(described[name].axes)}."
            )
    return names


def _checked(model: Transformer, what: str, tokens: Int[Tensor, "*axes"]) -> Int[Tensor, "*axes"]:
    """The tokens on the network's device; `UserError` where it has no logit for them."""
    wrong = tokens[(tokens < 0) | (tokens >= model.config.outputs)]
    if len(wrong):
        raise UserError(
            f"The {what} include {int(wrong[0])}; this network has logits for tokens 0–{model.config.outputs - 1}."
        )
    return tokens.to(model.device, torch.long)


def _read(
    model: Transformer,
    streams: Sequence[Float[Tensor, "rows d_model"]],
    final: Float[Tensor, "rows d_model"],
    targets: Int[Tensor, " rows"] | None,
    chosen: Int[Tensor, " token"],
    translation: Translation | None,
) -> dict[str, Tensor]:
    """The lens's numbers [site, rows] (`logit` [site, rows, token]); logits are made for a chunk of rows at a time."""
    found: dict[str, list[list[Tensor]]] = {}
    # Four rows of the vocabulary at once: logits and log-probabilities of the lens and of the end.
    size = max(1, BYTES_PER_CHUNK // (4 * model.config.outputs * final.element_size()))
    for first in range(0, len(final), size):
        rows = slice(first, first + size)
        end = stream_logits(model, final[rows]).log_softmax(-1)
        sought = end.argmax(-1) if targets is None else targets[rows]
        for i, stream in enumerate(streams):
            part = stream[rows]
            logits = stream_logits(model, part if translation is None else translation(i, part))
            for key, value in _numbers(logits, end, sought, chosen).items():
                found.setdefault(key, [[] for _ in streams])[i].append(value)
    return {key: torch.stack([torch.cat(values) for values in by_site]) for key, by_site in found.items()}


def stream_logits(model: Transformer, stream: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows d_vocab_out"]:
    """What the network would predict from these rows if they were its final stream."""
    return model.unembed(model.ln_final(stream[None], NO_TAP, "ln_final"))[0]


def _numbers(
    logits: Float[Tensor, "rows d_vocab_out"],
    final: Float[Tensor, "rows d_vocab_out"],
    targets: Int[Tensor, " rows"],
    chosen: Int[Tensor, " token"],
) -> dict[str, Tensor]:
    """`final` are log-probabilities."""
    logprobs = logits.log_softmax(-1)
    at_target = logits.gather(1, targets[:, None])
    found = {
        "kl": (final.exp() * (final - logprobs)).sum(-1),
        "rank": (logits > at_target).sum(-1),
        "target_logit": at_target[:, 0],
        "target_logprob": logprobs.gather(1, targets[:, None])[:, 0],
        "top": logits.argmax(-1),
        "target": targets,
    }
    return found | ({"logit": logits[:, chosen]} if len(chosen) else {})


def _dataset(
    names: list[str], found: dict[str, Tensor], chosen: Sequence[int], labels: tuple[str, ...], attrs: dict[str, str]
) -> xarray.Dataset:
    import xarray

    units = {"kl": "nats", "target_logprob": "nats", "target_logit": "logits", "logit": "logits", "rank": "tokens"}
    dims = ("site", "position", "prompt")
    values = {key: (value.double() if value.is_floating_point() else value).numpy() for key, value in found.items()}
    variables: dict[str, Any] = {
        key: ((*dims, "token") if key == "logit" else dims, value, {"units": units.get(key, "token")})
        for key, value in values.items()
        if key != "target"
    }
    # The target is the same at every site.
    variables["target"] = (dims[1:], values["target"][0], {"units": "token"})
    return xarray.Dataset(
        variables,
        coords={
            "site": names,
            "layer": ("site", [_blocks_before(name) for name in names]),
            "position": range(values["kl"].shape[1]),
            "prompt": list(labels),
        }
        | ({"token": list(chosen)} if chosen else {}),
        attrs=attrs,
    )


def _blocks_before(name: str) -> int:
    """How many whole blocks have written into the stream at this site."""
    layer = layer_of(name)
    return 0 if layer is None else layer + name.endswith(".resid_post")
