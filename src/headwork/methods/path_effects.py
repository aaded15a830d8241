"""Path patching: what one component tells another, and nothing else (Wang et al. 2022; Goldowsky-Dill et al. 2023).

A receiver's input is computed again from a residual stream in which one sender's output is the other run's; everything
else that it reads is the base run's, and behind the receiver everything responds. So a path is direct: from the sender
through the stream into the receiver. Wang et al. also count what reaches the receiver through MLPs on the way, which
they let respond while all other heads stay frozen: `mlps="respond"`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from headwork.engine.edits import Edit, add, replace
from headwork.engine.metrics import Metric
from headwork.engine.resume import Trace, trace
from headwork.engine.sweep import sweep
from headwork.errors import unknown
from headwork.methods.ablation_choices import AblationChoices, Direction
from headwork.methods.cells import chosen, unless_all
from headwork.methods.components import Group, readers_named, writers_named
from headwork.methods.effects import between_runs
from headwork.methods.graph import Reader, Writer, graph
from headwork.methods.path_inputs import Change, OnTheWay, Place, answers, change, inputs
from headwork.methods.path_patching import Route, projected
from headwork.methods.room import copies_that_fit
from headwork.model.config import TransformerConfig
from headwork.model.transformer import Transformer
from headwork.tasks.prompt_pairs import CheckedMetric, PromptPairs, checked_metric, of_rows

if TYPE_CHECKING:
    import xarray

# Tokens of all senders' streams that are held at once where there is no limit on memory.
_TOKENS_AT_ONCE = 8192


def path_patching(
    model: Transformer,
    pairs: PromptPairs,
    metric: Metric,
    *,
    receivers: Group | Sequence[Group] | None = "logits",
    route: Route | Sequence[Route] = ("q", "k", "v"),
    senders: Group | Sequence[Group] | None = None,
    direction: Direction = "noising",
    mlps: OnTheWay = "frozen",
    positions: Sequence[int] | None = None,
    memory: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> xarray.Dataset:
    """The effect of every path from a sender to a receiver.

    Senders are writers (`embed`, heads `3.5`, MLPs `m3`), all where left out; receivers are readers: `logits`, MLPs, a
    head's queries, keys or values (`3.5<k>`), or a head (`3.5`) by each `route` in turn; all where None. A group of
    names sends, or receives, together; receivers that do are set to what each hears from the senders and do not respond
    to one another, but for the logits, which add what they hear to all else. Under grouped-query attention keys and
    values belong to key–value heads: the reader `3.1<k>` is the second of them, and heads that share one are one
    receiver, whose keys all of them meet.

    `direction`: noising gives receivers in the clean run what senders write in the corrupt one, denoising the reverse.
    `mlps` on the way from sender to receiver stay as they are (`frozen`) or `respond`; heads on the way never do.
    `positions` restrict where the sender's output is the other run's. `memory` is in bytes, beside the weights;
    `progress` is called with the number of paths done since the last call (each once for every chunk of prompts).

    The dataset has dims `sender`, `receiver` and `prompt`, coordinate `route` [receiver] (`q`, `k`, `v`, or empty):

    - `effect` [sender, receiver, prompt], in the metric's unit: patched − base; NaN where there is no path;
    - `normalised` [sender, receiver], `normalised_by_prompt`, `clean`, `corrupt` [prompt] as of `activation_patching`.

    Raises `UserError` for what does not exist, a metric that is not finite, and where `memory` is too little.
    """
    pairs = pairs.on(model)
    for what, given, accepted in (("direction", direction, Direction), ("treatment of MLPs", mlps, OnTheWay)):
        if given not in get_args(accepted):
            raise unknown(what, str(given), get_args(accepted))
    plan = _plan(model.config, receivers, route, senders, pairs, positions)
    batch, length = pairs.clean.shape
    checked_metric(model, metric, pairs.labels, length)
    size, *at_once = _room(model, plan, batch, length, memory)
    parts = []
    for first in range(0, batch, size):
        rows = slice(first, min(first + size, batch))
        some = pairs.part(rows)
        base, other = (some.corrupt, some.clean) if direction == "denoising" else (some.clean, some.corrupt)
        checked = CheckedMetric(of_rows(metric, rows, batch), some.labels)
        base_trace = trace(model, base)
        changed, final = change(base_trace, other, plan.positions, plan.sent)
        with torch.no_grad():
            runs = [checked(model, stream, 0) for stream in (base_trace.resid_final, final)]
            patched = _patched(base_trace, changed, plan, mlps, checked, at_once, progress)
        parts.append((patched - runs[0], *runs))
    effect, *runs = (torch.cat(values, -1) for values in zip(*parts))
    attrs = {"method": "path patching", "direction": direction, "mlps": mlps, "metric": type(metric).__name__}
    return _dataset(plan, pairs, effect, (runs[0], runs[1]), direction, attrs)


@dataclass(frozen=True)
class _Plan:
    """Senders and receivers by label; what is `sent` at some positions of those `given`, receivers hear at `positions`.

    Those are all from the first that is sent on, so that of receivers that hear together none responds to another.
    """

    senders: dict[str, tuple[Writer, ...]]
    receivers: dict[str, tuple[Reader, ...]]
    given: tuple[int, ...]
    sent: tuple[int, ...]
    positions: tuple[int, ...]
    every_position: bool

    def heard(self, config: TransformerConfig, sender: Sequence[Writer], receiver: Sequence[Reader]) -> list[Reader]:
        """Those of the receivers that the sender, or part of it, has a path to."""
        edges = graph(config)
        rows = [edges.writer(str(w)) for w in sender]
        return [r for r in receiver if edges.visible[rows, edges.reader(str(r))].any()]

    def readers(self) -> set[Reader]:
        """Every reader that receives."""
        return {reader for group in self.receivers.values() for reader in group}


def _plan(
    config: TransformerConfig,
    receivers: Group | Sequence[Group] | None,
    route: Route | Sequence[Route],
    senders: Group | Sequence[Group] | None,
    pairs: PromptPairs,
    positions: Sequence[int] | None,
) -> _Plan:
    edges = graph(config)
    routes = [route] if isinstance(route, str) else list(route)
    for one in routes or [""]:
        if one not in get_args(Route):
            raise unknown("route into a head", str(one), get_args(Route))
    given = chosen("position", positions, pairs.clean.shape[1], "The prompts")
    sent = tuple(p for p in given if p >= pairs.start(config))
    start = min(sent, default=0) if config.causal else 0
    return _Plan(
        writers_named(config, [str(w) for w in edges.writers] if senders is None else senders, "sender"),
        readers_named(config, [str(r) for r in edges.readers] if receivers is None else receivers, routes),
        given,
        sent,
        tuple(range(start, pairs.clean.shape[1])) if sent else (),
        positions is None,
    )


def _room(model: Transformer, plan: _Plan, batch: int, length: int, memory: int | None) -> tuple[int, int, int]:
    """How many prompts are held at once, how many senders, and in how many patched copies."""
    config, tokens = model.config, max(1, len(plan.positions))
    many = max(1, _TOKENS_AT_ONCE // (batch * tokens))
    element = model.embed.weight.element_size()
    outputs = config.n_layers * (config.n_heads * config.d_head + config.d_model * (not config.attention_only))
    # A sender's stream, normed stream and what is computed of it; and what is put into the base run for each reader.
    hidden = config.d_mlp * (4 if config.gated_mlp else 2)
    readers = plan.readers()
    heads = sum(reader.kind in "qkv" for reader in readers)
    put = heads * config.d_head + (len(readers) - heads) * config.d_model
    each = (tokens * (8 * config.d_model + hidden) + 2 * length * put) * element
    # The other run's outputs, and the change from the base run's.
    beside = 2 * length * (outputs + 2 * config.d_model) * element
    prompts, copies = copies_that_fit(model, batch, length, beside, memory, "Path patching", each)
    return prompts, min(many, copies), copies


def _patched(
    base: Trace,
    changed: Change,
    plan: _Plan,
    mlps: OnTheWay,
    metric: CheckedMetric,
    at_once: Sequence[int],
    progress: Callable[[int], None] | None,
) -> Float[Tensor, "sender receiver b"]:
    """The metric under every path; NaN where there is none. `at_once`: how many senders and copies are held."""
    model = base.model
    found = changed.embed.new_full((len(plan.senders), len(plan.receivers), len(base.tokens)), torch.nan)
    untouched = metric(model, base.resid_final, 0)
    groups = list(plan.senders.values())
    senders, copies = at_once
    for first in range(0, len(groups), senders):
        part = groups[first : first + senders]
        heard = [[plan.heard(model.config, sender, group) for group in plan.receivers.values()] for sender in part]
        places = [(i, j) for i, row in enumerate(heard) for j, readers in enumerate(row) if readers]
        if not plan.positions:
            for i, j in places:
                found[first + i, j] = untouched
            continue
        received = _received(base, changed, plan, part, mlps)
        for at in range(0, len(places), copies):
            some = places[at : at + copies]
            paths = [{reader: received[reader][i] for reader in heard[i][j]} for i, j in some]
            for (i, j), values in zip(some, _measured(base, plan.positions, paths, metric, progress)):
                found[first + i, j] = values
    return found


def _place(reader: Reader) -> Place:
    return reader.layer, "attention" if reader.kind in "qkv" else reader.kind


def _received(
    base: Trace, changed: Change, plan: _Plan, senders: Sequence[Sequence[Writer]], mlps: OnTheWay
) -> dict[Reader, Float[Tensor, "sender b some_pos *inside"]]:
    """What each receiver computes from each sender's stream: queries, keys, values, an MLP's output.

    For the logits it is what is added to the final stream.
    """
    model = base.model
    readers: dict[Place, list[Reader]] = {}
    for reader in sorted(plan.readers()):
        readers.setdefault(_place(reader), []).append(reader)
    found: dict[Reader, Tensor] = {}
    for (layer, kind), entering, moved in inputs(base, changed, senders, readers, mlps):
        here = readers[layer, kind]
        if kind == "logits":
            found[here[0]] = moved
        elif kind == "mlp":
            found[here[0]] = answers(model.layers[layer], entering + moved)
        else:
            stream = (entering + moved).flatten(0, 1)
            for route in get_args(Route):
                some = [reader for reader in here if reader.kind == route]
                if some:
                    heads = [reader.index for reader in some]
                    new = projected(model, model.layers[layer], stream, route, heads, changed.positions)
                    found |= zip(some, new.unflatten(0, moved.shape[:2]).unbind(3))
    return found


def _measured(
    base: Trace,
    positions: tuple[int, ...],
    paths: Sequence[dict[Reader, Tensor]],
    metric: CheckedMetric,
    progress: Callable[[int], None] | None,
) -> list[Float[Tensor, " b"]]:
    """The metric when receivers are given these values, path by path."""
    straight = [all(reader.kind == "logits" for reader in path) for path in paths]
    edits = [
        [_edit(base, positions, reader, value) for reader, value in path.items()]
        for path, direct in zip(paths, straight)
        if not direct
    ]
    through = iter(sweep(base.model, base, edits, metric, progress) if edits else ())
    found = []
    for path, direct in zip(paths, straight):
        if direct:
            final = base.resid_final.clone()
            final[:, list(positions)] += sum(path.values())
            found.append(metric(base.model, final, 0))
        else:
            found.append(next(through))
    if progress and any(straight):
        progress(sum(straight))
    return found


def _edit(base: Trace, positions: tuple[int, ...], reader: Reader, value: Float[Tensor, "b some_pos _"]) -> Edit:
    """The edit that gives one receiver its value at the positions."""
    batch, length = base.tokens.shape
    where = unless_all(positions, length)
    if where is not None:
        whole = value.new_zeros(batch, length, value.shape[2])
        whole[:, list(positions)] = value
        value = whole
    if reader.kind == "logits":
        return add(f"blocks.{base.config.n_layers - 1}.resid_post", value, None, where)
    if reader.kind == "mlp":
        return replace(f"blocks.{reader.layer}.mlp_out", value, None, where)
    return replace(f"blocks.{reader.layer}.attn.{reader.kind}", value[:, :, None], [reader.index], where)


def _dataset(
    plan: _Plan,
    pairs: PromptPairs,
    effect: Float[Tensor, "sender receiver batch"],
    runs: tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]],
    direction: Direction,
    attrs: dict[str, Any],
) -> xarray.Dataset:
    text = "all" if plan.every_position else str(list(plan.given))
    choices = AblationChoices("edge", "heads by q, k, v and MLPs", "counterfactual", direction, "circuit", text)
    coords = {"sender": list(plan.senders), "receiver": list(plan.receivers)}
    found = between_runs(effect, coords, pairs.labels, *runs, direction, attrs | choices.attrs())
    kinds = [{reader.kind for reader in group} for group in plan.receivers.values()]
    routes = [kind.pop() if len(kind) == 1 and kind <= {"q", "k", "v"} else "" for kind in kinds]
    return found.assign_coords(route=("receiver", routes))
