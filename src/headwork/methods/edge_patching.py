"""Edge patching: what the metric does when one edge carries the other run's activation, exactly.

The reader of the edge reads its stream with the writer's output exchanged for that in the other run; everything behind
the reader responds, and no other reader of that writer sees the exchange (path patching of single edges: Wang et al.
2022, Goldowsky-Dill et al. 2023). Edge attribution (`headwork.methods.edge_attribution`) is its first-order estimate.

An edge into layer L changes one reader's output there: a head's z, or the MLP's. So each variant starts from that
output and the trace of the run that is patched into; no work before it is repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headwork.engine.edits import Edit, replace
from headwork.engine.metrics import Metric
from headwork.engine.resume import Trace, trace, trace_sites
from headwork.engine.run import bytes_kept
from headwork.engine.sweep import sweep
from headwork.errors import UserError, unknown
from headwork.methods.ablated_outputs import AblatedOutputs, counterfactual
from headwork.methods.ablation_choices import AblationChoices, Direction
from headwork.methods.graph import Graph, Reader, graph
from headwork.model.config import TransformerConfig
from headwork.model.sites import key_site
from headwork.model.transformer import NO_TAP, Transformer
from headwork.tasks.prompt_pairs import CheckedMetric, PromptPairs, checked_metric, of_rows

if TYPE_CHECKING:
    import xarray

_TOKENS_PER_PASS = 8192


def edge_patching(
    model: Transformer,
    pairs: PromptPairs,
    metric: Metric,
    *,
    direction: Direction = "noising",
    edges: Sequence[tuple[str, str]] | None = None,
    per_example: bool = False,
    memory: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> xarray.DataArray:
    """The exact effect of every edge `[writer, reader]`, or of the `edges` named: patched − base, in the metric's unit.

    `noising` runs the clean prompts and lets one edge carry what its writer writes on the corrupt ones; `denoising` the
    other way round. Effects are means over prompts, or `[prompt, writer, reader]` with `per_example`; NaN where there
    is no edge, or none was asked for. Writers and readers are named as in `headwork.methods.graph`.

    `memory` is in bytes, beside the weights; where the pairs do not fit at once the metric must be a dataclass whose
    tensors have one row per prompt. `progress` is called with the number of edges done since the last call (once more
    for each chunk of prompts). Raises `UserError` for edges that do not exist, pairs and metrics that do not fit, and
    where `memory` is too little.
    """
    pairs = pairs.on(model)
    if direction not in get_args(Direction):
        raise unknown("direction", str(direction), get_args(Direction))
    nodes = graph(model.config)
    wanted = _wanted(nodes, edges)
    batch, length = pairs.clean.shape
    checked_metric(model, metric, pairs.labels, length)
    prompts, copies = _room(model, batch, length, memory)
    found = []
    for first in range(0, batch, prompts):
        rows = slice(first, min(first + prompts, batch))
        some = pairs.part(rows)
        checked = checked_metric(model, of_rows(metric, rows, batch), some.labels, length)
        with torch.no_grad():
            effects = _Chunk.of(model, some, direction, checked, copies).effects(nodes, wanted, progress)
        found.append(effects if per_example else effects.sum(0, keepdim=True))
    total = torch.cat(found) if per_example else torch.cat(found).sum(0) / batch
    return _labelled(nodes, total, pairs.labels if per_example else (), direction, metric, batch)


def _wanted(nodes: Graph, edges: Sequence[tuple[str, str]] | None) -> Bool[np.ndarray, "writer reader"]:
    """The edges that were asked for; `UserError` for those that do not exist."""
    if edges is None:
        return nodes.visible
    writers, readers = [str(w) for w in nodes.writers], [str(r) for r in nodes.readers]
    wanted = np.zeros_like(nodes.visible)
    for writer, reader in edges:
        for what, name, names in (("writer", writer, writers), ("reader", reader, readers)):
            if name not in names:
                raise unknown(f"{what} of an edge", name, names)
        at = writers.index(writer), readers.index(reader)
        if not nodes.visible[at]:
            raise UserError(f"There is no edge from {writer} to {reader}: a reader sees only the writers before it.")
        wanted[at] = True
    if not wanted.any():
        raise UserError("No edge was given to patch; name at least one, or leave them out for all.")
    return wanted


@dataclass(frozen=True, eq=False)
class _Chunk:
    """Some prompts: the run that is patched into, and by how much each writer's output differs in the other run.

    `changes` cover the positions from `start` on; before it the runs are the same.
    """

    model: Transformer
    base: Trace
    changes: Float[Tensor, "writer batch rows d_model"]
    start: int
    metric: CheckedMetric
    copies: int

    @classmethod
    def of(
        cls, model: Transformer, pairs: PromptPairs, direction: Direction, metric: CheckedMetric, copies: int
    ) -> _Chunk:
        into, other = (pairs.clean, pairs.corrupt) if direction == "noising" else (pairs.corrupt, pairs.clean)
        base, start = trace(model, into), pairs.start(model.config)
        changes = _changes(base, counterfactual(model, other).positions(start), start)
        return cls(model, base, changes, start, metric, copies)

    def effects(
        self, nodes: Graph, wanted: Bool[np.ndarray, "writer reader"], progress: Callable[[int], None] | None
    ) -> Float[Tensor, "batch writer reader"]:
        """Patched − base of every edge that is wanted, NaN elsewhere."""
        base = self.metric(self.model, self.base.resid_final, 0)
        found = base.new_full((len(base), *wanted.shape), torch.nan)
        places: dict[tuple[int, str], list[int]] = {}
        for column, reader in enumerate(nodes.readers):
            if wanted[:, column].any():
                kind = reader.kind if reader.kind in ("mlp", "logits") else "attention"
                places.setdefault((reader.layer, kind), []).append(column)
        for (layer, kind), columns in places.items():
            rows = np.flatnonzero(wanted[:, columns].any(1)).tolist()
            for first in range(0, len(rows), self.copies):
                writers = rows[first : first + self.copies]
                outputs = self._patched(layer, kind, writers, [nodes.readers[c] for c in columns])
                for column, (site, values) in zip(columns, outputs):
                    mine = [i for i, writer in enumerate(writers) if wanted[writer, column]]
                    if not mine:
                        continue
                    rows_of = torch.tensor([writers[i] for i in mine])
                    found[:, rows_of, column] = (self._read(site, values, mine) - base).T
                    if progress:
                        progress(len(mine))
        return found

    def _read(
        self, site: str, values: Float[Tensor, "writer batch rows *axes"], mine: list[int]
    ) -> Float[Tensor, "some batch"]:
        """The metric when `site` has these values."""
        if site == "logits":
            return torch.stack([self.metric(self.model, self._whole("", values[i]), 0) for i in mine])
        where = tuple(range(self.start, self.base.tokens.shape[1])) if self.start else None
        edits: list[Edit] = [replace(site, self._whole(site, values[i]), None, where) for i in mine]
        return sweep(self.model, self.base, edits, self.metric)

    def _whole(self, site: str, value: Float[Tensor, "batch rows *axes"]) -> Float[Tensor, "batch pos *axes"]:
        """The value at all positions: those before `start` are the base run's."""
        known = self.base.values[site] if site else self.base.resid_final
        return torch.cat([known[:, : self.start], value], 1)

    def _patched(
        self, layer: int, kind: str, writers: list[int], readers: list[Reader]
    ) -> Iterator[tuple[str, Float[Tensor, "writer batch rows *axes"]]]:
        """For each of the readers of one place, the site of its output and what that becomes, writer by writer."""
        change, start, config = self.changes[writers], self.start, self.model.config
        if kind == "logits":
            yield "logits", self.base.resid_final[:, start:] + change
            return
        block, here = self.model.layers[layer], f"blocks.{layer}"
        between = "resid_mid" if kind == "mlp" and not config.parallel else "resid_pre"
        stream = self.base.values[f"{here}.{between}"][:, start:]
        read = (stream + change).flatten(0, 1)
        if kind == "mlp":
            yield f"{here}.mlp_out", block.mlp(block.ln2(read, NO_TAP, ""), NO_TAP, "").view(change.shape)
            return
        patched = self._projected(layer, read)
        keys, values = self.base.values[key_site(config, layer)], self.base.values[f"{here}.attn.v"]
        known = {"q": self._projected(layer, stream)["q"], "k": keys, "v": values}
        for reader in readers:
            yield f"{here}.attn.z", self._z(layer, reader, known, patched, len(writers))

    def _projected(
        self, layer: int, stream: Float[Tensor, "n rows d_model"]
    ) -> dict[str, Float[Tensor, "n rows some d_head"]]:
        """Queries, keys and values of all heads, as attention uses them."""
        block = self.model.layers[layer]
        frame = self.model.frame(self.base.tokens[:1], self.start)
        normed = block.ln1(stream, NO_TAP, "")
        moved = normed if frame.key_positions is None else normed + frame.key_positions
        q, k, v = block.attn.project(normed, moved, frame, NO_TAP, "")
        return {"q": q, "k": k, "v": v}

    def _z(
        self,
        layer: int,
        reader: Reader,
        known: dict[str, Float[Tensor, "batch rows_or_pos some d_head"]],
        patched: dict[str, Float[Tensor, "copies_batch rows some d_head"]],
        copies: int,
    ) -> Float[Tensor, "writer batch rows head d_head"]:
        """All heads' outputs where one reader is patched: only those that mix its queries, keys or values change."""
        config, attn = self.model.config, self.model.layers[layer].attn
        size = config.n_heads // config.kv_heads
        group = reader.index // size if reader.kind == "q" else reader.index
        members = slice(group * size, (group + 1) * size)
        chosen = {"q": members, "k": slice(group, group + 1), "v": slice(group, group + 1)}
        parts = {which: _copied(known[which][:, :, heads], copies) for which, heads in chosen.items()}
        if reader.kind == "q":
            parts["q"] = parts["q"].clone()
            parts["q"][:, :, reader.index - members.start] = patched["q"][:, :, reader.index]
        else:
            before = parts[reader.kind][:, : self.start]
            parts[reader.kind] = torch.cat([before, patched[reader.kind][:, :, chosen[reader.kind]]], 1)
        padded = config.pad_token is not None
        frame = self.model.frame(_copied(self.base.tokens, copies) if padded else self.base.tokens[:1], self.start)
        mixed = attn.mix(parts["q"], parts["k"], parts["v"], frame.masks.of(attn), NO_TAP, "").unflatten(
            0, (copies, -1)
        )
        z = self.base.values[f"blocks.{layer}.attn.z"][:, self.start :].expand(copies, -1, -1, -1, -1).clone()
        if reader.kind == "q":
            z[:, :, :, reader.index] = mixed[:, :, :, reader.index - members.start]
        else:
            z[:, :, :, members] = mixed
        return z


def _copied(x: Tensor, copies: int) -> Tensor:
    return x.expand(copies, *x.shape).flatten(0, 1)


def _changes(base: Trace, other: AblatedOutputs, start: int) -> Float[Tensor, "writer batch rows d_model"]:
    """Other − base output of every writer at the positions from `start` on."""
    model, config = base.model, base.config
    parts = [(other.embed - model.embedded(base.tokens, start=start))[None]]
    for layer, block in enumerate(model.layers):
        z = other.z[layer] - base.values[f"blocks.{layer}.attn.z"][:, start:]
        parts.append(torch.einsum("bphe,hed->hbpd", z, block.attn.W_O))
        if not config.attention_only:
            parts.append((other.mlp_out[layer] - base.values[f"blocks.{layer}.mlp_out"][:, start:])[None])
    return torch.cat(parts)


def _room(model: Transformer, batch: int, length: int, memory: int | None) -> tuple[int, int]:
    """How many prompts are held at once, and how many patched copies of each; an estimate from above."""
    once, each = bytes_per_prompt(model, length)
    if memory is None:
        return batch, max(1, _TOKENS_PER_PASS // (batch * length))
    prompts = min(batch, memory // (once + each))
    if not prompts:
        raise UserError(
            f"Edge patching on one pair of {length} tokens needs about {(once + each) / 1e6:,.1f} MB beside the "
            f"weights; the limit is {memory / 1e6:,.1f} MB."
        )
    most = max(1, _TOKENS_PER_PASS // (prompts * length))
    return prompts, min(most, (memory // prompts - once) // each)


def bytes_per_prompt(model: Transformer, length: int) -> tuple[int, int]:
    """What one pair of prompts takes however many copies are patched at once, and what each copy adds."""
    c: TransformerConfig = model.config
    element, writers = model.embed.weight.element_size(), len(graph(c).writers)
    slots = c.n_heads + 2 * c.kv_heads
    # Both runs leave logits, and the changes are joined from as many parts.
    runs = 2 * bytes_kept(model, 1, length, trace_sites(c)) + 2 * length * (c.outputs + 2 * c.d_model) * element
    attention = 3 * slots * c.d_head + 6 * c.n_heads * (c.d_head + length) + 2 * c.n_layers * c.kv_heads * c.d_head
    copy = 8 * c.d_model + attention + (5 if c.gated_mlp else 3) * c.d_mlp
    return runs + 2 * writers * length * c.d_model * element, (length * copy + 3 * c.outputs) * element


def _labelled(
    nodes: Graph,
    effects: Float[Tensor, "*prompt writer reader"],
    labels: tuple[str, ...],
    direction: Direction,
    metric: Metric,
    batch: int,
) -> xarray.DataArray:
    import xarray

    choices = AblationChoices(
        granularity="edge",
        component="heads by q, k, v and MLPs",
        value="counterfactual",
        direction=direction,
        ablated="circuit",
    )
    coords = {"writer": [str(w) for w in nodes.writers], "reader": [str(r) for r in nodes.readers]}
    coords |= {"prompt": list(labels)} if labels else {}
    return xarray.DataArray(
        effects.double().cpu().numpy(),
        dims=("prompt", "writer", "reader") if labels else ("writer", "reader"),
        coords=coords,
        name="edge_patching",
        attrs={
            "method": "edge patching",
            "metric": type(metric).__name__,
            "prompts": batch,
            "direction": direction,
            "units": "units of the metric",
            **choices.attrs(),
        },
    )
