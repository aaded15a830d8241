"""The values of a circuit that is cut edge by edge from the output backwards, recomputing only what a cut reaches.

While a reader's edges are tried, no edge before it has been cut: what it reads are the whole network's live outputs,
known from one pass. Its own output changes, then those of later nodes to which a path of kept edges leads, and nothing
else. Each node is computed only at the positions that the metric needs of it: where a head is kept for the metric's
position alone, its queries at other positions are not computed; keys and values are needed everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from headwork.engine.metrics import Metric
from headwork.engine.run import Watch
from headwork.methods.ablated_outputs import AblatedOutputs
from headwork.methods.circuit_runs import finished, first_change
from headwork.methods.graph import Reader, graph
from headwork.model.sites import key_site
from headwork.model.transformer import NO_TAP, Frame, Transformer

PerVariant = Float[Tensor, "variant batch rows width"]


@dataclass(eq=False)
class Trial:
    """Some cuts of one reader's edges, each added to those before it: variant i is without the first i + 1 writers.

    `read` is what the reader then reads and `final` what the metric does; `changes` are the writers that it reaches
    (heads before W_O, which is narrower) and `projected` their queries, keys and values.
    """

    reader: int
    writers: tuple[int, ...]
    read: PerVariant
    changes: dict[int, PerVariant] = field(default_factory=dict)
    projected: dict[tuple[int, str, int], PerVariant] = field(default_factory=dict)
    final: PerVariant | None = None


class LiveCircuit:
    """A circuit on its way from all edges to few; `kept[writer, reader]` are those still live.

    Readers are taken from the last to the first (`turn_to`), their writers in any order (`without`, `settle`). It is
    for `torch.no_grad()`: it updates in place what it holds.
    """

    def __init__(
        self, model: Transformer, tokens: Int[Tensor, "batch pos"], metric: Metric, ablated: AblatedOutputs
    ) -> None:
        self.model, self.tokens, self.metric = model, tokens, metric
        self.edges = graph(model.config)
        self.kept = torch.as_tensor(self.edges.visible.copy())
        self.length = tokens.shape[1]
        self.read_from = metric.reads(self.length)
        self.start = first_change(model, tokens, ablated, self.read_from)
        self.ablated = ablated.positions(self.start)
        self._rows = {str(w): i for i, w in enumerate(self.edges.writers)}
        self._columns = {str(r): i for i, r in enumerate(self.edges.readers)}
        # The first position that is needed of each; the length where no path of kept edges leads to the metric.
        self.needed = [self.length] * len(self.edges.writers)
        self.needed_by = [self.length] * len(self.edges.readers)
        self._frames: dict[tuple[int, int], Frame] = {}
        self._run_once()
        self.value = self._mean_metric(self.streams["logits"][:, self.read_from - self.start :])
        self.reader, self.input = len(self.edges.readers), self.streams["logits"]

    def _run_once(self) -> None:
        """Everything that the whole network writes and reads, as changes from the ablated outputs."""
        model, config = self.model, self.model.config
        parts = ["resid_pre", "attn.v", "attn.z"] + ([] if config.attention_only else ["mlp_out"])
        if not config.attention_only and not config.parallel:
            parts.append("resid_mid")
        keep = [f"blocks.{layer}.{part}" for layer in range(config.n_layers) for part in parts]
        keys = [key_site(config, layer) for layer in range(config.n_layers)]
        query = "rot_q" if config.turned else "q_norm.normalized" if config.qk_norm else "q"
        queries = [f"blocks.{layer}.attn.{query}" for layer in range(config.n_layers)]
        watch = Watch(config, [*keep, *keys, *queries])
        resid, frame = model.embedded(self.tokens), model.frame(self.tokens)
        embedded = resid
        for block in model.layers:
            resid = block(resid, frame, watch)
        cut, kept = self.start, watch.kept
        self.streams: dict[str, Tensor] = {"logits": resid[:, cut:]}
        self.under: dict[str, Tensor] = {}
        self.heads: dict[tuple[int, str], Tensor] = {}
        self.changes: list[Tensor] = [embedded[:, cut:] - self.ablated.embed]
        under = self.ablated.embed
        for layer, block in enumerate(model.layers):
            here = f"blocks.{layer}"
            self.heads[layer, "q"], self.heads[layer, "k"] = kept[queries[layer]], kept[keys[layer]]
            self.heads[layer, "v"] = kept[f"{here}.attn.v"]
            self.streams[f"a{layer}"], self.under[f"a{layer}"] = kept[f"{here}.resid_pre"][:, cut:], under
            z = kept[f"{here}.attn.z"][:, cut:] - self.ablated.z[layer]
            self.changes += list(torch.einsum("bphe,hed->hbpd", z, block.attn.W_O))
            after = under + block.attn.write(self.ablated.z[layer], NO_TAP, "")
            if not config.attention_only:
                stream = kept[f"{here}.resid_pre" if config.parallel else f"{here}.resid_mid"][:, cut:]
                self.streams[f"m{layer}"], self.under[f"m{layer}"] = stream, under if config.parallel else after
                self.changes.append(kept[f"{here}.mlp_out"][:, cut:] - self.ablated.mlp_out[layer])
                after = after + self.ablated.mlp_out[layer]
            under = after
        self.under["logits"] = under

    def turn_to(self, reader: int) -> bool:
        """Take up the next reader, of which all later edges are decided; whether anything it reads can matter."""
        if self.reader < len(self.edges.readers):
            self._note_needs(self.reader)
        self.reader = reader
        self.needed_by[reader] = self._needed_of(self.edges.readers[reader])
        at = self.needed_by[reader]
        self.input = self.streams[_place(self.edges.readers[reader])][:, at - self.start :]
        return at < self.length

    def _note_needs(self, reader: int) -> None:
        for writer in self.kept[:, reader].nonzero()[:, 0].tolist():
            self.needed[writer] = min(self.needed[writer], self.needed_by[reader])

    def _needed_of(self, reader: Reader) -> int:
        if reader.kind == "logits":
            return self.read_from
        if reader.kind == "mlp":
            return self.needed[self._rows[f"m{reader.layer}"]]
        groups = self._groups
        group = reader.index // groups if reader.kind == "q" else reader.index
        rows = [self._rows[f"{reader.layer}.{head}"] for head in range(group * groups, (group + 1) * groups)]
        together = min(self.needed[row] for row in rows)
        for row in rows:  # the heads of a group are computed together, so at the same positions
            self.needed[row] = together if self.needed[row] < self.length else self.length
        if reader.kind == "q":
            return self.needed[self._rows[f"{reader.layer}.{reader.index}"]]
        return self.start if together < self.length else self.length

    @property
    def _groups(self) -> int:
        return self.model.config.n_heads // self.model.config.kv_heads

    def without(self, writers: Sequence[int]) -> Trial:
        """Try the reader's edges from these writers cut one after the other."""
        at = self.needed_by[self.reader] - self.start
        lost = torch.stack([self.changes[w][:, at:] for w in writers])
        trial = Trial(self.reader, tuple(writers), self.input - lost.cumsum(0))
        trial.final = self._propagated(trial)
        return trial

    def metric_of(self, trial: Trial, variant: int) -> float:
        """The metric's mean over prompts after the first `variant` + 1 cuts."""
        assert trial.final is not None  # noqa: S101 – `without` has set it
        return self._mean_metric(trial.final[variant])

    def _mean_metric(self, final: Float[Tensor, "batch rows d_model"]) -> float:
        return float(self.metric(self.model, final, self.read_from).double().mean())

    def settle(self, trial: Trial, variant: int, value: float) -> None:
        """Cut the edges of the trial up to this variant, at which the metric is `value`."""
        self.kept[list(trial.writers[: variant + 1]), trial.reader] = False
        self.input, self.value = trial.read[variant], value
        for row, change in trial.changes.items():
            writer, at = self.edges.writers[row], self.needed[row] - self.start
            new = change[variant]
            if writer.kind == "head":
                new = new @ self.model.layers[writer.layer].attn.W_O[writer.index]
            self.changes[row][:, at:] = new
        for (layer, kind, head), values in trial.projected.items():
            self.heads[layer, kind][:, self.length - values.shape[2] :, head] = values[variant]

    def _propagated(self, trial: Trial) -> PerVariant:
        """The final streams, when the trial's reader reads what it says; what changes on the way is noted in it."""
        config = self.model.config
        first = self.edges.readers[trial.reader]
        if first.kind == "logits":
            return trial.read
        if first.kind == "mlp":
            self._mlp(trial, first.layer, trial.read)
        else:
            self._project(trial, first.layer, [(first.kind, first.index)], trial.read)
            self._mix(trial, first.layer)
        for layer in range(first.layer, config.n_layers):
            if layer > first.layer:
                for column, slots in self._reached(trial, layer).items():
                    self._project(trial, layer, slots, self._read(trial, column))
                self._mix(trial, layer)
            if not config.attention_only and (layer > first.layer or first.kind != "mlp"):
                column = self._columns[f"m{layer}"]
                if self._sources(trial, column):
                    self._mlp(trial, layer, self._read(trial, column))
        return self._read(trial, self._columns["logits"])

    def _sources(self, trial: Trial, column: int) -> tuple[int, ...]:
        """The writers that a reader reads; none where it is not reached or does not matter."""
        if self.needed_by[column] >= self.length:
            return ()
        sources = tuple(self.kept[:, column].nonzero()[:, 0].tolist())
        return sources if any(w in trial.changes for w in sources) else ()

    def _reached(self, trial: Trial, layer: int) -> dict[int, list[tuple[str, int]]]:
        """The queries, keys and values that are reached, those that read the same together, under one of them."""
        config = self.model.config
        found: dict[tuple[int, tuple[int, ...]], list[tuple[str, int]]] = {}
        for kind, heads in (("q", config.n_heads), ("k", config.kv_heads), ("v", config.kv_heads)):
            for head in range(heads):
                column = self._columns[f"{layer}.{head}<{kind}>"]
                sources = self._sources(trial, column)
                if sources:
                    found.setdefault((self.needed_by[column], sources), []).append((kind, head))
        return {self._columns[f"{layer}.{slots[0][1]}<{slots[0][0]}>"]: slots for slots in found.values()}

    def _read(self, trial: Trial, column: int) -> PerVariant:
        """What a later reader reads."""
        at = self.needed_by[column]
        total = self._from(self.under[_place(self.edges.readers[column])], at)
        reached: dict[int, list[int]] = {}
        for row in self.kept[:, column].nonzero()[:, 0].tolist():
            if row not in trial.changes:
                total = total + self.changes[row][:, at - self.start :]
            else:
                writer = self.edges.writers[row]
                reached.setdefault(-1 - writer.layer if writer.kind == "mlp" else writer.layer, []).append(row)
        total = total[None]
        for layer, rows in reached.items():
            parts = [trial.changes[row][:, :, at - self.needed[row] :] for row in rows]
            if layer < 0:
                total = total + parts[0]
            else:
                w_o = self.model.layers[layer].attn.W_O
                heads = [self.edges.writers[row].index for row in rows]
                whole = w_o if len(heads) == len(w_o) else w_o[heads]
                total = total + torch.cat(parts, -1) @ whole.flatten(0, 1)
        return total

    def _mlp(self, trial: Trial, layer: int, read: PerVariant) -> None:
        block, row = self.model.layers[layer], self._rows[f"m{layer}"]
        out = block.mlp(block.ln2(read.flatten(0, 1), NO_TAP, ""), NO_TAP, "").view(read.shape)
        trial.changes[row] = out - self._from(self.ablated.mlp_out[layer], self.needed[row])

    def _project(self, trial: Trial, layer: int, slots: Sequence[tuple[str, int]], read: PerVariant) -> None:
        """Queries, keys and values of these heads, which all read the same."""
        block, config = self.model.layers[layer], self.model.config
        frame = self._frame(self.length - read.shape[2], len(read))
        normed = block.ln1(read.flatten(0, 1), NO_TAP, "")
        before = {"q": 0, "k": config.n_heads, "v": config.n_heads + config.kv_heads}
        weight = block.attn.qkv.weight.unflatten(0, (-1, config.d_head))
        bias = block.attn.qkv.bias
        for kind in dict.fromkeys(kind for kind, _ in slots):
            heads = [head for k, head in slots if k == kind]
            rows = [before[kind] + head for head in heads]
            chosen = slice(rows[0], rows[-1] + 1) if rows[-1] - rows[0] + 1 == len(rows) else rows
            x = normed
            if frame.key_positions is not None and kind != "v":
                x = x + frame.key_positions[:1]
            moved = None if bias is None else bias.unflatten(0, (-1, config.d_head))[chosen].flatten()
            out = functional.linear(x, weight[chosen].flatten(0, 1), moved).unflatten(-1, (len(heads), -1))
            if kind != "v":
                out = finished(block.attn, out, frame, kind)
            for head, values in zip(heads, out.unflatten(0, read.shape[:2]).unbind(3)):
                trial.projected[layer, kind, head] = values

    def _mix(self, trial: Trial, layer: int) -> None:
        """The outputs, before W_O, of all heads that matter and of which queries, keys or values have changed."""
        size = self._groups
        reached = {(h // size if kind == "q" else h) for at, kind, h in trial.projected if at == layer}
        together: dict[int, list[int]] = {}
        for group in sorted(reached):
            rows = [self._rows[f"{layer}.{head}"] for head in range(group * size, (group + 1) * size)]
            together.setdefault(min(self.needed[row] for row in rows), []).append(group)
        attn, variants = self.model.layers[layer].attn, len(trial.read)
        for at, groups in together.items():
            members = [head for group in groups for head in range(group * size, (group + 1) * size)]
            q = torch.stack([self._head(trial, layer, "q", head, at) for head in members], 3).flatten(0, 1)
            k, v = (
                torch.stack([self._head(trial, layer, kind, group, 0) for group in groups], 3).flatten(0, 1)
                for kind in "kv"
            )
            z = attn.mix(q, k, v, self._frame(at, variants).masks.of(attn), NO_TAP, "").unflatten(0, (variants, -1))
            gone = self._from(self.ablated.z[layer], at)
            for i, head in enumerate(members):
                row, group = self._rows[f"{layer}.{head}"], head // size
                changed = {("q", head), ("k", group), ("v", group)}
                if self.needed[row] < self.length and any((layer, *one) in trial.projected for one in changed):
                    trial.changes[row] = z[:, :, :, i] - gone[:, :, head]

    def _head(self, trial: Trial, layer: int, kind: str, index: int, at: int) -> PerVariant:
        """One head's queries, keys or values at the positions from `at` on, in every variant."""
        known = self.heads[layer, kind][:, at:, index].expand(len(trial.read), -1, -1, -1)
        new = trial.projected.get((layer, kind, index))
        if new is None:
            return known
        return torch.cat([known[:, :, : known.shape[2] - new.shape[2]], new], 2)

    def _from(self, ablated: Float[Tensor, "#batch #rows *axes"], position: int) -> Float[Tensor, "#batch #some *axes"]:
        """Ablated values at the positions from this one on; one value for all positions stays one."""
        return ablated if self.ablated.length is None else ablated[:, position - self.start :]

    def _frame(self, start: int, variants: int) -> Frame:
        """What queries from `start` on may see; it is the same for all prompts unless they are padded."""
        copies = variants if self.model.config.pad_token is not None else 0
        if (start, copies) not in self._frames:
            tokens = self.tokens.expand(copies, -1, -1).flatten(0, 1) if copies else self.tokens[:1]
            self._frames[start, copies] = self.model.frame(tokens, start)
        return self._frames[start, copies]


def _place(reader: Reader) -> str:
    """Where in the stream it reads: `a3` (queries, keys, values), `m3`, or `logits`."""
    return {"mlp": f"m{reader.layer}", "logits": "logits"}.get(reader.kind, f"a{reader.layer}")
