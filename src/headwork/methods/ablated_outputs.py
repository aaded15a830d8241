"""What every writer writes where it is ablated: its output on another prompt, a mean, or nothing.

Kept in the form that takes least: the embedding, every head's z (its output before W_O, which is `d_model ÷ d_head`
times as wide) and every MLP's output. Attention's output bias is no head's, so no ablation changes it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headwork.engine.run import Tokens, Watch, as_tokens
from headwork.errors import UserError, unknown
from headwork.methods.ablation_choices import AblationValue
from headwork.methods.batches import chunks
from headwork.model.transformer import Transformer

Shared = Float[Tensor, "#batch #pos d_model"]
SharedPerHead = Float[Tensor, "#batch #pos head d_head"]


@dataclass(frozen=True, eq=False)
class AblatedOutputs:
    """One value for every writer, layer by layer; axes of size 1 hold for every prompt, or every position.

    `embed` includes learned positions. `mlp_out` is empty in an attention-only network. `tokens` are the paired prompts
    that counterfactual values were taken on, so that whoever uses them can skip positions where nothing differs.
    """

    value: AblationValue
    embed: Shared
    z: tuple[SharedPerHead, ...]
    mlp_out: tuple[Shared, ...]
    tokens: Int[Tensor, "batch all"] | None = None

    @property
    def prompts(self) -> int | None:
        """For how many prompts there are values; None where they hold for any number."""
        return None if len(self.embed) == 1 and self.value not in ("counterfactual", "resample") else len(self.embed)

    @property
    def length(self) -> int | None:
        """For how many positions there are values; None where they hold for any number."""
        return None if self.value in ("zero", "mean") else self.embed.shape[1]

    def rows(self, rows: slice) -> AblatedOutputs:
        """The values of some prompts."""
        if self.prompts is None:
            return self
        tokens = None if self.tokens is None else self.tokens[rows]
        z, mlp_out = tuple(z[rows] for z in self.z), tuple(out[rows] for out in self.mlp_out)
        return dataclasses.replace(self, embed=self.embed[rows], z=z, mlp_out=mlp_out, tokens=tokens)

    def positions(self, start: int) -> AblatedOutputs:
        """The values at the positions from `start` on."""
        if self.length is None or not start:
            return self
        z, mlp_out = tuple(z[:, start:] for z in self.z), tuple(out[:, start:] for out in self.mlp_out)
        return dataclasses.replace(self, embed=self.embed[:, start:], z=z, mlp_out=mlp_out)

    def require(self, model: Transformer, batch: int, length: int) -> None:
        """Raise `UserError` unless the values are for this network and for prompts of this shape."""
        config = model.config
        layers = len(self.z) == config.n_layers and len(self.mlp_out) == config.n_layers * (not config.attention_only)
        widths = all(z.shape[2:] == (config.n_heads, config.d_head) for z in self.z)
        if not layers or not widths or self.embed.shape[2] != config.d_model:
            raise UserError("The ablated outputs were taken on a network of another shape; take them on this one.")
        for what, held, asked in (("prompts", self.prompts, batch), ("positions", self.length, length)):
            if held not in (None, asked):
                raise UserError(f"The ablated outputs ({self.value}) are for {held} {what}; there are {asked} here.")


def counterfactual(model: Transformer, corrupt: Tokens) -> AblatedOutputs:
    """Every writer's output on the paired prompts (interchange ablation; Vig et al. 2020, Conmy et al. 2023)."""
    tokens = as_tokens(model, corrupt)
    embed, z, mlp_out = _outputs(model, tokens)
    return AblatedOutputs("counterfactual", embed, z, mlp_out, tokens)


def zeros(model: Transformer) -> AblatedOutputs:
    """Nothing: no writer adds anything to the stream."""
    config, nothing = model.config, model.embed.weight.detach().new_zeros
    z = nothing(1, 1, config.n_heads, config.d_head)
    embed = nothing(1, 1, config.d_model)
    mlps = 0 if config.attention_only else config.n_layers
    return AblatedOutputs("zero", embed, (z,) * config.n_layers, (embed,) * mlps)


def from_reference(
    model: Transformer,
    reference: Tokens,
    value: AblationValue,
    prompts: int = 1,
    generator: torch.Generator | None = None,
) -> AblatedOutputs:
    """Values estimated on reference prompts `[batch, pos]`.

    `mean` is over reference prompts and positions, `mean-by-position` over reference prompts (Wang et al. 2022);
    `resample` gives each of `prompts` prompts the outputs on one reference prompt, the same for all writers, drawn with
    `generator` (Chan et al. 2022); `zero` looks at nothing. Raises `UserError` for `counterfactual`, which needs paired
    prompts and not a reference, and for `resample` without a generator.
    """
    if value not in get_args(AblationValue):
        raise unknown("ablation value", str(value), get_args(AblationValue))
    if value == "counterfactual":
        raise UserError("Counterfactual values come from paired prompts, not from a reference; use counterfactual().")
    if value == "zero":
        return zeros(model)
    tokens = as_tokens(model, reference)
    if value == "resample":
        if generator is None or prompts < 1:
            raise UserError(
                f"Resampling draws one reference prompt for each prompt: it needs a torch.Generator and 1 prompt or "
                f"more, not {prompts}."
            )
        chosen = torch.randint(len(tokens), (prompts,), generator=generator, device=generator.device)
        used, place = chosen.to(tokens.device).unique(return_inverse=True)
        embed, z, mlp_out = _outputs(model, tokens[used])
        return AblatedOutputs(value, embed[place], tuple(x[place] for x in z), tuple(x[place] for x in mlp_out))
    embed, z, mlp_out = _means(model, tokens, (0, 1) if value == "mean" else (0,))
    return AblatedOutputs(value, embed, z, mlp_out)


_Outputs = tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]


def _outputs(model: Transformer, tokens: Int[Tensor, "batch pos"]) -> _Outputs:
    """Embedding, z and MLP outputs of all prompts; logits are not computed."""
    parts = [_of_chunk(model, tokens[part]) for part in chunks(model.config, *tokens.shape)]
    embeds, zs, mlps = zip(*parts)
    z, mlp_out = (tuple(torch.cat(layer) for layer in zip(*layers)) for layers in (zs, mlps))
    return torch.cat(embeds), z, mlp_out


def _means(model: Transformer, tokens: Int[Tensor, "batch pos"], axes: tuple[int, ...]) -> _Outputs:
    """Their means over axes, summed chunk by chunk so that no more than one chunk is held."""
    total: list[Tensor] | None = None
    for part in chunks(model.config, *tokens.shape):
        embed, z, mlp_out = _of_chunk(model, tokens[part])
        sums = [x.sum(axes, keepdim=True) for x in (embed, *z, *mlp_out)]
        total = sums if total is None else [a + b for a, b in zip(total, sums)]
    assert total is not None  # noqa: S101 – tokens have at least one row
    count = len(tokens) * (tokens.shape[1] if 1 in axes else 1)
    embed, *rest = [x / count for x in total]
    return embed, tuple(rest[: model.config.n_layers]), tuple(rest[model.config.n_layers :])


def _of_chunk(model: Transformer, tokens: Int[Tensor, "batch pos"]) -> _Outputs:
    config = model.config
    parts = ["attn.z"] if config.attention_only else ["attn.z", "mlp_out"]
    watch = Watch(config, [f"blocks.{layer}.{part}" for layer in range(config.n_layers) for part in parts])
    with torch.no_grad():
        resid = embed = model.embedded(tokens)
        frame = model.frame(tokens)
        for block in model.layers:
            resid = block(resid, frame, watch)
    names = range(config.n_layers)
    z = tuple(watch.kept[f"blocks.{layer}.attn.z"] for layer in names)
    return embed, z, tuple(watch.kept[f"blocks.{layer}.mlp_out"] for layer in names if not config.attention_only)
