"""Direct logit attribution: what each component writes straight into a logit difference (Elhage et al. 2021).

The final residual stream is a sum of what the embedding, heads, MLPs and biases write. The final norm is linear in the
stream once its scale is fixed at the value it has in this very run; centring and gain are linear anyway and are exact.
With the scale fixed the contributions add up to the metric exactly. They say nothing of how a component, taken away,
would change the scale or what later layers do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headwork.engine.metrics import LogitDifference
from headwork.engine.run import Run, Tokens, as_tokens, run
from headwork.errors import UserError
from headwork.methods.batches import chunks
from headwork.model.config import TransformerConfig
from headwork.model.transformer import Norm, Transformer
from headwork.tasks.prompt_pairs import checked_metric, prompt_labels

if TYPE_CHECKING:
    import xarray


def direct_attribution(
    model: Transformer, tokens: Tokens, metric: LogitDifference, labels: Sequence[str] = ()
) -> xarray.Dataset:
    """The direct contribution of every component to a logit difference, in logits, with the final norm's scale fixed.

    - `contribution` [component, prompt]: `embed`, `pos_embed`, heads `3.5`, `b_O 3` (the bias of a layer's attention
      output), MLPs `m3` (their output bias included), `b_ln_final` and `b_U`, those that the architecture has; they
      add up to `metric`;
    - `by_head` [layer, head, prompt]: the heads' contributions;
    - `by_position` [layer, head, position, prompt]: the same, split by the position that the head read (pattern ·
      value, through W_O); adds up over positions to `by_head`;
    - `by_mlp` [layer, prompt], where there are MLPs;
    - `metric`, `scale` [prompt]: the logit difference, and what the final norm divides by where it is read (1 without
      a norm).

    Raises `UserError` for a metric that is not a logit difference, or is for other prompts or tokens.
    """
    tokens = as_tokens(model, tokens)
    if not isinstance(metric, LogitDifference):
        raise UserError(
            f"Direct attribution needs a LogitDifference, which is linear in the normed stream; given was a "
            f"{type(metric).__name__}."
        )
    names = prompt_labels(labels, len(tokens))
    checked_metric(model, metric, names, tokens.shape[1])
    with torch.no_grad():
        parts = [_contributions(model, tokens[part], _of(metric, part)) for part in chunks(model.config, *tokens.shape)]
    return _dataset(model.config, {key: torch.cat([p[key] for p in parts], -1) for key in parts[0]}, names)


def _of(metric: LogitDifference, part: slice) -> LogitDifference:
    return LogitDifference(metric.positions[part], metric.correct[part], metric.wrong[part])


def _contributions(
    model: Transformer, tokens: Int[Tensor, "batch pos"], metric: LogitDifference
) -> dict[str, Float[Tensor, "*axes batch"]]:
    """Contributions by component; `by_head` and `by_position` hold all layers."""
    config = model.config
    done = run(model, tokens, _needed(config))
    rows, at = torch.arange(len(tokens), device=model.device), metric.positions.to(model.device)
    direction, constants, scale = _direction(model, done, metric)
    found = {"embed": (done["embed"][rows, at] * direction).sum(-1)}
    if config.positions == "learned":
        found["pos_embed"] = (done["pos_embed"][rows, at] * direction).sum(-1)
    by_position = direction.new_empty(config.n_layers, config.n_heads, tokens.shape[1], len(tokens))
    for layer, block in enumerate(model.layers):
        here = f"blocks.{layer}"
        by_position[layer] = _by_position(model, done, layer, rows, at, direction)
        if block.attn.out.bias is not None:
            found[f"b_O {layer}"] = direction @ block.attn.out.bias
        if not config.attention_only:
            found[f"m{layer}"] = (done[f"{here}.mlp_out"][rows, at] * direction).sum(-1)
    found |= constants
    logits = done.logits[rows, at]
    correct, wrong = metric.correct.to(model.device), metric.wrong.to(model.device)
    found["metric"] = logits[rows, correct] - logits[rows, wrong]
    return found | {"scale": scale, "by_head": by_position.sum(2), "by_position": by_position}


def _needed(config: TransformerConfig) -> list[str]:
    """The sites whose values the attribution reads."""
    outside = ["embed"] + ["pos_embed"] * (config.positions == "learned") + ["ln_final.scale"] * (config.norm != "none")
    inside = ["attn.pattern", "attn.v"] + ["mlp_out"] * (not config.attention_only)
    return outside + [f"blocks.{layer}.{part}" for layer in range(config.n_layers) for part in inside]


def _direction(
    model: Transformer, done: Run, metric: LogitDifference
) -> tuple[Float[Tensor, "batch d_model"], dict[str, Float[Tensor, " batch"]], Float[Tensor, " batch"]]:
    """The vector whose product with the final stream is the metric less its constants, the constants, and the scale."""
    correct, wrong = metric.correct.to(model.device), metric.wrong.to(model.device)
    direction = model.W_U.T[correct] - model.W_U.T[wrong]
    constants = {}
    scale = torch.ones(len(correct), dtype=model.dtype, device=model.device)
    norm = model.ln_final
    if isinstance(norm, Norm):
        if norm.b is not None:
            constants["b_ln_final"] = direction @ norm.b
        direction = direction * norm.w
        if norm.centred:
            direction = direction - direction.mean(-1, keepdim=True)
        rows = torch.arange(len(correct), device=model.device)
        scale = done["ln_final.scale"][rows, metric.positions.to(model.device), 0]
        direction = direction / scale[:, None]
    if model.unembed.bias is not None:
        constants["b_U"] = model.unembed.bias[correct] - model.unembed.bias[wrong]
    return direction, constants, scale


def _by_position(
    model: Transformer,
    done: Run,
    layer: int,
    rows: Int[Tensor, " batch"],
    at: Int[Tensor, " batch"],
    direction: Float[Tensor, "batch d_model"],
) -> Float[Tensor, "head pos batch"]:
    """What each head carries from each position straight into the metric."""
    config = model.config
    read = torch.einsum("hdm,bm->bhd", model.layers[layer].attn.W_O, direction)
    values = done[f"blocks.{layer}.attn.v"].repeat_interleave(config.n_heads // config.kv_heads, 2)
    pattern = done[f"blocks.{layer}.attn.pattern"][rows, :, at]
    return torch.einsum("bhk,bkhd,bhd->hkb", pattern, values, read)


def _dataset(
    config: TransformerConfig, found: dict[str, Float[Tensor, "*axes prompt"]], labels: tuple[str, ...]
) -> xarray.Dataset:
    import xarray

    array = {name: value.double().cpu().numpy() for name, value in found.items()}
    components = {name: array[name] for name in ("embed", "pos_embed") if name in array}
    for layer in range(config.n_layers):
        components |= {f"{layer}.{head}": array["by_head"][layer, head] for head in range(config.n_heads)}
        components |= {name: array[name] for name in (f"b_O {layer}", f"m{layer}") if name in array}
    components |= {name: array[name] for name in ("b_ln_final", "b_U") if name in array}
    units = {"units": "logits"}
    variables = {
        "contribution": (("component", "prompt"), list(components.values()), units),
        "by_head": (("layer", "head", "prompt"), array["by_head"], units),
        "by_position": (("layer", "head", "position", "prompt"), array["by_position"], units),
        "metric": ("prompt", array["metric"], units),
        "scale": ("prompt", array["scale"], {"units": "1"}),
    }
    if not config.attention_only and config.n_layers:
        variables["by_mlp"] = (("layer", "prompt"), [array[f"m{layer}"] for layer in range(config.n_layers)], units)
    return xarray.Dataset(
        variables,
        coords={
            "component": list(components),
            "layer": range(config.n_layers),
            "head": range(config.n_heads),
            "position": range(array["by_position"].shape[2]),
            "prompt": list(labels),
        },
        attrs={
            "method": "direct logit attribution",
            "norm": config.norm,
            "norm_treatment": "none" if config.norm == "none" else "linear, its scale fixed at its value in this run",
        },
    )
