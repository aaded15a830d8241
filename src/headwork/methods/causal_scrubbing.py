"""Causal scrubbing (Chan et al. 2022): does a network do as well when all that a hypothesis calls irrelevant is random?

Every node of the hypothesis is computed from other inputs that agree with this one on the node's feature, again and
again down the tree, and what no node mentions from inputs drawn at random. If the metric survives, the hypothesis is
consistent with what the network does on this dataset.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from headwork.engine.metrics import Metric
from headwork.engine.run import Tokens, as_tokens, run
from headwork.errors import UserError
from headwork.methods.ablation_choices import AblationChoices
from headwork.methods.scrubbing_plan import REST, Hypothesis, Plan, checked, draw
from headwork.methods.site_vectors import forward_bytes
from headwork.model.config import TransformerConfig
from headwork.model.transformer import NO_TAP, Transformer
from headwork.tasks.prompt_pairs import checked_metric, of_rows, prompt_labels

if TYPE_CHECKING:
    import xarray


def causal_scrubbing(
    model: Transformer,
    tokens: Tokens,
    hypothesis: Hypothesis,
    metric: Metric,
    *,
    draws: int = 10,
    seed: int = 0,
    labels: Sequence[str] = (),
    memory: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> xarray.Dataset:
    """How much of the metric on the dataset `tokens [n, pos]` the scrubbed network keeps, over random `draws`.

    All inputs come from this dataset, whose prompts must be padded at the same positions. `memory` is in bytes, beside
    the weights; `progress` is called with the number of draws done since the last call. The dataset of results:

    - `recovered`: (scrubbed − resampled) ÷ (unscrubbed − resampled), means over prompts and draws; 1 where nothing is
      lost, 0 where no more is left than on other inputs. Its 95 % interval `recovered_interval` [bound] is a linearised
      t interval over prompts; both are NaN where unscrubbed and resampled cannot be told apart;
    - `unscrubbed` [prompt], `scrubbed` and `resampled` [draw, prompt], in the metric's unit; resampled is the metric of
      the whole network on another input, for this prompt's answers;
    - `alone` [node]: the share of a node's draws in which no other input agreed on its `feature`. Near 1 the feature is
      so fine, or the dataset so small, that the node was not tested.

    Raises `UserError`, before any work, for a hypothesis about what does not exist, features of a wrong shape, fewer
    than two inputs, different padding, and a limit that one prompt exceeds.
    """
    tokens = as_tokens(model, tokens)
    names = prompt_labels(labels, len(tokens))
    checked(model.config, hypothesis)
    checked_metric(model, metric, names, tokens.shape[1])
    _check_padding(model.config, tokens)
    if draws < 1:
        raise UserError(f"{draws} draws were asked for; at least 1 is needed.")
    generator = torch.Generator().manual_seed(seed)
    plans = [draw(hypothesis, tokens, generator) for _ in range(draws)]
    size = _prompts_at_once(model, tokens, plans[0], memory)
    known = _observed(model, tokens, plans[0], size)
    found = {"unscrubbed": [_measured(known, _own(plans[0]), metric, names, size)], "scrubbed": [], "resampled": []}
    for plan in plans:
        found["scrubbed"].append(_measured(known, plan, metric, names, size))
        found["resampled"].append(_measured(known, _resampled(plan), metric, names, size))
        if progress:
            progress(1)
    values = {name: torch.stack(parts).double().cpu().numpy() for name, parts in found.items()}
    return _dataset(values, plans, names, metric, seed)


@dataclass(frozen=True, eq=False)
class Known:
    """What one run on each input leaves: writers' outputs by name, and streams by the place where they are read."""

    model: Transformer
    tokens: Int[Tensor, "n pos"]
    outputs: Mapping[str, Float[Tensor, "n pos d_model"]]
    streams: Mapping[str, Float[Tensor, "n pos d_model"]]

    def written(self, plan: Plan, part: slice) -> Float[Tensor, "m pos d_model"]:
        """What a node tells its reader, for some prompts: one row for each row of the reader."""
        assert plan.node is not None, "the logits tell nobody"  # noqa: S101 – the root has no reader
        rows, by_position = plan.rows[part].to(self.tokens.device), plan.node.feature.by_position
        if not plan.inputs:
            return _taken(self.outputs[plan.node.writer], rows, by_position)
        found = self._computed(plan, part)
        if not by_position:
            return found
        length = found.shape[1]
        # One row for each position: row p counts at position p.
        return found.unflatten(0, (-1, length)).diagonal(dim1=1, dim2=2).transpose(1, 2)

    def read(self, site: str, inputs: Sequence[Plan], plan: Plan, part: slice) -> Float[Tensor, "m pos d_model"]:
        """The stream that a node reads: its inputs by plan, and everything unmentioned from one other input."""
        assert plan.unmentioned is not None, "only nodes with inputs read"  # noqa: S101 – an invariant of plans
        rest = next((p for p in inputs if p.node is not None and p.node.writer == REST), None)
        rows, by_position = plan.unmentioned[part], False
        if rest is not None and rest.node is not None:
            rows, by_position = rest.rows[part], rest.node.feature.by_position
        rows = rows.to(self.tokens.device)
        total = _taken(self.streams[site], rows, by_position)
        for child in inputs:
            if child is not rest and child.node is not None:
                total = total - _taken(self.outputs[child.node.writer], rows, by_position) + self.written(child, part)
        return total

    def _computed(self, plan: Plan, part: slice) -> Float[Tensor, "m pos d_model"]:
        """A writer's output when it reads what its inputs say."""
        assert plan.node is not None, "the logits are computed by the metric"  # noqa: S101 – see `written`
        writer, config = plan.node.writer, self.model.config
        if writer.startswith("m"):
            layer = int(writer[1:])
            block = self.model.layers[layer]
            stream = self.read(_mlp_site(config, layer), plan.inputs.get("mlp", ()), plan, part)
            return block.mlp(block.ln2(stream, NO_TAP, ""), NO_TAP, "")
        layer, head = (int(part) for part in writer.split("."))
        block = self.model.layers[layer]
        frame = self.model.frame(self.tokens[plan.rows[part].flatten().to(self.tokens.device)])
        parts = []
        for i, route in enumerate("qkv"):
            normed = block.ln1(
                self.read(f"blocks.{layer}.resid_pre", plan.inputs.get(route, ()), plan, part), NO_TAP, ""
            )
            placed = normed if frame.key_positions is None else normed + frame.key_positions
            parts.append(block.attn.project(normed, placed, frame, NO_TAP, "")[i])
        q, k, v = parts
        return block.attn.mix(q, k, v, frame.masks.of(block.attn), NO_TAP, "")[:, :, head] @ block.attn.W_O[head]


def _taken(value: Float[Tensor, "n pos d"], rows: Int[Tensor, "some r"], by_position: bool) -> Float[Tensor, "m pos d"]:
    """The values of these inputs; if by position, each from the input that is named for it."""
    if not by_position:
        return value[rows.flatten()]
    length = value.shape[1]
    return value[rows.reshape(-1, length), torch.arange(length, device=value.device)]


def _mlp_site(config: TransformerConfig, layer: int) -> str:
    return f"blocks.{layer}.{'resid_pre' if config.parallel else 'resid_mid'}"


def _own(plan: Plan) -> Plan:
    """Everything from the input itself."""
    return Plan("logits", None, plan.rows, 0.0, plan.rows, {"": ()})


def _resampled(plan: Plan) -> Plan:
    """Everything from the other input from which the logits' unmentioned inputs come."""
    return Plan("logits", None, plan.rows, 0.0, plan.unmentioned, {"": ()})


def _measured(known: Known, plan: Plan, metric: Metric, labels: tuple[str, ...], size: int) -> Float[Tensor, " n"]:
    """The metric of each prompt under a plan."""
    count, length = known.tokens.shape
    end = f"blocks.{known.model.config.n_layers - 1}.resid_post"
    found = []
    with torch.no_grad():
        for first in range(0, count, size):
            part = slice(first, min(first + size, count))
            stream = known.read(end, plan.inputs[""], plan, part)
            one = checked_metric(known.model, of_rows(metric, part, count), labels[part], length)
            found.append(one(known.model, stream, 0))
    return torch.cat(found)


def _needed(config: TransformerConfig, plan: Plan) -> tuple[list[str], list[str]]:
    """Writers whose outputs, and sites whose streams, a plan takes values from."""
    writers, streams = set(), {f"blocks.{config.n_layers - 1}.resid_post"}
    for one in plan.walk():
        if one.node is None:
            continue
        if one.node.writer != REST:
            writers.add(one.node.writer)
        if one.inputs and one.node.writer.startswith("m"):
            streams.add(_mlp_site(config, int(one.node.writer[1:])))
        elif one.inputs:
            streams.add(f"blocks.{one.node.writer.split('.')[0]}.resid_pre")
    return sorted(writers), sorted(streams)


def _source(writer: str) -> str:
    """The site from which a writer's output is made."""
    if writer == "embed":
        return "blocks.0.resid_pre"
    return f"blocks.{writer[1:]}.mlp_out" if writer.startswith("m") else f"blocks.{writer.split('.')[0]}.attn.z"


def _observed(model: Transformer, tokens: Int[Tensor, "n pos"], plan: Plan, size: int) -> Known:
    """Run the dataset once, a chunk at a time, and keep what the plan needs."""
    writers, streams = _needed(model.config, plan)
    kept: dict[str, list[Tensor]] = {name: [] for name in (*writers, *streams)}
    for some in tokens.split(size):
        done = run(model, some, [*map(_source, writers), *streams])
        for name in streams:
            kept[name].append(done[name])
        for writer in writers:
            value = done[_source(writer)]
            if writer != "embed" and not writer.startswith("m"):
                layer, head = (int(part) for part in writer.split("."))
                with torch.no_grad():
                    value = value[:, :, head] @ model.layers[layer].attn.W_O[head]
            kept[writer].append(value)
    values = {name: torch.cat(parts) for name, parts in kept.items()}
    return Known(model, tokens, {w: values[w] for w in writers}, {s: values[s] for s in streams})


def _prompts_at_once(model: Transformer, tokens: Int[Tensor, "n pos"], plan: Plan, memory: int | None) -> int:
    """How many prompts are scrubbed together; `UserError` where not even one fits."""
    count, length = tokens.shape
    if memory is None:
        return count
    kept = sum(map(len, _needed(model.config, plan)))
    fixed = kept * count * length * model.config.d_model * model.embed.weight.element_size()
    copies = max((one.rows.shape[1] for one in plan.walk() if one.inputs), default=1)
    depth = max(one.name.count("<") for one in plan.walk())
    each = forward_bytes(model, length) * copies * (2 + depth)
    if memory < fixed + each:
        raise UserError(
            f"Scrubbing {count} prompts of {length} tokens needs about {(fixed + each) / 1e6:,.1f} MB beside the "
            f"weights; the limit is {memory / 1e6:,.1f} MB."
        )
    return min(count, (memory - fixed) // each)


def _check_padding(config: TransformerConfig, tokens: Int[Tensor, "n pos"]) -> None:
    padding = tokens == config.pad_token if config.pad_token is not None else torch.zeros_like(tokens)
    different = (padding != padding[0]).any(1).nonzero()[:, 0].tolist()
    if different:
        raise UserError(
            f"Prompt {different[0]} has padding (token {config.pad_token}) at other positions than prompt 0; values "
            "can be exchanged only between prompts that are padded alike."
        )


def ratio_of_means(top: np.ndarray, bottom: np.ndarray) -> tuple[float, float, float]:
    """Σ top ÷ Σ bottom over paired units, with its linearised 95 % t interval (Cochran 1977, §6.4).

    All NaN where the denominators' own interval reaches zero: the ratio then has no bounds (Fieller 1954). With one
    unit there is a ratio without an interval.
    """
    from scipy import stats

    count, mean = len(bottom), float(bottom.mean())
    if count < 2:
        return (float(top.mean()) / mean if mean else math.nan), math.nan, math.nan
    t = float(stats.t.ppf(0.975, count - 1)) / math.sqrt(count)
    if abs(mean) <= t * float(bottom.std(ddof=1)):
        return math.nan, math.nan, math.nan
    value = float(top.mean()) / mean
    half = t * float((top - value * bottom).std(ddof=1)) / abs(mean)
    return value, value - half, value + half


def _dataset(
    values: dict[str, np.ndarray], plans: list[Plan], labels: tuple[str, ...], metric: Metric, seed: int
) -> xarray.Dataset:
    import xarray

    whole, kept, lost = values["unscrubbed"][0], values["scrubbed"], values["resampled"]
    recovered, low, high = ratio_of_means(kept.mean(0) - lost.mean(0), whole - lost.mean(0))
    nodes = [plan.name for plan in plans[0].walk() if plan.node is not None]
    alone = np.mean([[one.alone for one in plan.walk() if one.node is not None] for plan in plans], 0)
    unit = {"units": "units of the metric"}
    choices = AblationChoices("edge", "heads by q, k, v and MLPs", "resample", "noising", "complement")
    return xarray.Dataset(
        {
            "recovered": ((), recovered, {"units": "1"}),
            "recovered_interval": ("bound", [low, high], {"units": "1"}),
            "unscrubbed": ("prompt", whole, unit),
            "scrubbed": (("draw", "prompt"), kept, unit),
            "resampled": (("draw", "prompt"), lost, unit),
            "alone": ("node", alone, {"units": "1"}),
        },
        coords={
            "prompt": list(labels),
            "draw": range(len(plans)),
            "bound": ["low", "high"],
            "node": nodes,
            "feature": ("node", [plan.node.feature.name for plan in plans[0].walk() if plan.node is not None]),
        },
        attrs={"method": "causal scrubbing", "metric": type(metric).__name__, "draws": len(plans), "seed": seed}
        | choices.attrs(),
    )
