"""Running a network and keeping the activations that were asked for, and no others."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from headwork.errors import UserError, unknown
from headwork.model.config import TransformerConfig
from headwork.model.sites import resolve, sites
from headwork.model.transformer import Transformer

if TYPE_CHECKING:
    import xarray

    from headwork.engine.edits import Edit

Tokens = Integer[Tensor, "*batch pos"] | Integer[np.ndarray, "*batch pos"] | Sequence[Sequence[int]] | Sequence[int]


@dataclass(frozen=True)
class Run:
    """What one forward pass left: `logits` and, by site name, the activations asked for."""

    config: TransformerConfig
    tokens: Int[Tensor, "batch pos"]
    logits: Float[Tensor, "batch pos d_vocab_out"]
    activations: Mapping[str, Tensor]

    def __getitem__(self, site: str) -> Tensor:
        """The activation at `site`; `UserError` where it was not asked for."""
        names = resolve(self.config, [site])
        if len(names) == 1 and names[0] in self.activations:
            return self.activations[names[0]]
        raise unknown("kept site", site, self.activations, f"Ask for it with sites=[{site!r}] when you run the model.")

    def __iter__(self) -> Iterator[str]:
        return iter(self.activations)

    def to_xarray(self) -> xarray.Dataset:
        """Logits and activations with their axes' names, and the tokens as the coordinate `token`."""
        import xarray

        described = sites(self.config)
        values = {"logits": self.logits, **self.activations}
        return xarray.Dataset(
            {name: (_axes_in_dataset(name, described[name].axes), _array(value)) for name, value in values.items()},
            coords={"token": (("batch", "pos"), self.tokens.cpu().numpy())},
        )


def _axes_in_dataset(name: str, axes: tuple[str, ...]) -> tuple[str, ...]:
    """Axis names under which arrays of different sizes can share a dataset."""
    return tuple(f"{name}.{axis}" if axis == "one" else axis for axis in axes)


def _array(value: Tensor) -> np.ndarray:
    """On the processor; the half precisions as float32, since numpy has no bfloat16."""
    value = value.detach().cpu()
    return (value.float() if value.element_size() < 4 else value).numpy()


class Watch:
    """A tap that applies edits and keeps activations; `start` is the first position that the pass computes."""

    def __init__(
        self, config: TransformerConfig, keep: Iterable[str], edits: Sequence[Edit] = (), start: int = 0
    ) -> None:
        self.described = sites(config)
        self.keep = frozenset(keep)
        self.start = start
        self.edits: dict[str, list[Edit]] = {}
        for edit in edits:
            self.edits.setdefault(edit.site, []).append(edit)
        self.kept: dict[str, Tensor] = {}

    def given(self, site: str) -> Tensor | None:
        return None

    def wants(self, site: str) -> bool:
        return site in self.keep or site in self.edits

    def __call__(self, site: str, value: Tensor) -> Tensor:
        for edit in self.edits.get(site, ()):
            value = edit.apply(self.described[site], value, self.start)
        return self.noted(site, value)

    def _keeps_its_whole(self, site: str) -> bool:
        """Whether the queries, keys and values that share one fused product are all kept."""
        whole, _, part = site.rpartition(".")
        return part in ("q", "k", "v") and all(f"{whole}.{other}" in self.keep for other in "qkv")

    def noted(self, site: str, value: Tensor) -> Tensor:
        """Keep the value if it was asked for; the pass goes on with what is kept, so that gradients reach it."""
        if site in self.keep:
            part_only = value.untyped_storage().nbytes() != value.numel() * value.element_size()
            if part_only and not self._keeps_its_whole(site):
                value = value.clone()  # else keeping the queries alone would keep the whole fused product
            if torch.is_grad_enabled() and not value.requires_grad:
                value = value.detach().requires_grad_()  # frozen weights: gradients start here
            self.kept[site] = value
        return value


def run(
    model: Transformer,
    tokens: Tokens,
    sites: Iterable[str] | str = (),
    edits: Iterable[Edit] | Edit = (),
    *,
    grad: bool = False,
) -> Run:
    """Run `model` on `tokens [batch, pos]`, with `edits` in force, and keep what `sites` name.

    `sites` takes names, TransformerLens aliases and patterns (`blocks.*.attn.pattern`). An edited site is kept as
    edited. With `grad` the pass is recorded, so that `torch.autograd.grad(metric, run[site])` works. Raises `UserError`
    for unknown sites, heads or positions and for tokens that the network does not have.
    """
    tokens = as_tokens(model, tokens)
    keep = resolve(model.config, sites)
    edits = edits if isinstance(edits, Iterable) else [edits]
    watch = Watch(model.config, keep, [edit.checked(model.config, *tokens.shape) for edit in edits])
    with torch.set_grad_enabled(grad):
        logits = model(tokens, watch)
    return Run(model.config, tokens, logits, {name: watch.kept[name] for name in keep})


def observe(
    model: Transformer, tokens: Tokens, sites: Iterable[str] | str
) -> tuple[dict[str, Tensor], Float[Tensor, "batch pos d_model"]]:
    """What `run` keeps at sites before the end, and the final stream; nothing is unembedded."""
    tokens = as_tokens(model, tokens)
    watch = Watch(model.config, resolve(model.config, sites))
    with torch.no_grad():
        resid = model.stream(tokens, watch)
    return watch.kept, resid


def as_tokens(model: Transformer, tokens: Tokens) -> Int[Tensor, "batch pos"]:
    """A copy of the tokens on the model's device, checked against its vocabulary and context length."""
    try:
        found = torch.as_tensor(tokens)
    except (TypeError, ValueError, RuntimeError):
        raise UserError("Tokens must be whole numbers in rows of one length ([batch, pos]).") from None
    if found.dim() == 1:
        found = found[None]
    whole = not (found.is_floating_point() or found.is_complex() or found.dtype == torch.bool)
    if found.dim() != 2 or not whole or not found.numel():
        raise UserError(
            f"Tokens must be whole numbers [batch, pos]; given were {found.dtype} of shape {list(found.shape)}."
        )
    found, config = found.to(model.device, torch.long, copy=True), model.config
    if found.shape[1] > config.n_ctx:
        raise UserError(f"The prompts have {found.shape[1]} tokens; this model reads at most {config.n_ctx}.")
    low, high = int(found.min()), int(found.max())
    if low < 0 or high >= config.d_vocab:
        raise UserError(f"Token {low if low < 0 else high} is outside this model's vocabulary 0–{config.d_vocab - 1}.")
    return found


def bytes_kept(model: Transformer, batch: int, length: int, sites: Iterable[str]) -> int:
    """How many bytes a run on `[batch, length]` tokens will keep for these sites."""
    total = sum(math.prod(shape) for shape in shapes(model.config, batch, length, sites).values())
    return total * model.embed.weight.element_size()


def shapes(config: TransformerConfig, batch: int, length: int, names: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """The shape of each site's activation on `[batch, length]` tokens."""
    sizes: dict[str, int] = {
        "batch": batch,
        "pos": length,
        "query": length,
        "key": length,
        "d_model": config.d_model,
        "head": config.n_heads,
        "kv_head": config.kv_heads,
        "d_head": config.d_head,
        "d_mlp": config.d_mlp,
        "d_vocab_out": config.outputs,
        "one": 1,
    }
    described: dict[str, Any] = dict(sites(config))
    return {name: tuple(sizes[a] for a in described[name].axes) for name in resolve(config, names)}
