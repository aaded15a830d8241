"""What the found heads do to the loss: ablation against matched sets, and paths from the previous-token heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headwork.engine.edits import Edit
from headwork.engine.metrics import Loss
from headwork.engine.resume import Trace, trace
from headwork.engine.run import run
from headwork.engine.sweep import sweep
from headwork.findings.induction_heads.prompts import Prompts
from headwork.methods.ablation import VALUES, Ablation, Value, ablate, matched_sets
from headwork.methods.batches import chunks
from headwork.methods.path_patching import Route, direct_edit, path_edits
from headwork.model.sites import Head, heads
from headwork.model.transformer import Transformer

# Every head is ablated by itself in networks of at most this many heads; in larger ones only the found ones are.
_ALL_SINGLY = 48


@dataclass(frozen=True)
class Ablations:
    """Costs in nats inside repeats: loss when ablated minus loss when not, per sequence."""

    together: dict[Value, Float[Tensor, " batch"]]
    matched: dict[Value, Float[Tensor, "set batch"]]
    singly: dict[Head, Float[Tensor, " batch"]]
    matched_sets: list[tuple[Head, ...]]


@dataclass(frozen=True)
class Paths:
    """Costs in nats inside the last copy when one path carries what it would with the earlier copies replaced.

    `routes` are the paths from all previous-token heads into all found heads, by q, k, v; `matched` those from other
    sets of senders into the keys; `pairs` single heads into single heads' keys; `direct` found heads into the logits.
    """

    routes: dict[str, Float[Tensor, " batch"]]
    matched: Float[Tensor, "set batch"] | None
    pairs: dict[tuple[Head, Head], Float[Tensor, " batch"]]
    direct: dict[Head, Float[Tensor, " batch"]]


def ablations(
    model: Transformer,
    prompts: Prompts,
    found: Sequence[Head],
    circuit: Sequence[Head],
    primary: Value,
    seed: int,
    progress: Callable[[float], None],
) -> Ablations:
    """Ablate the found heads together under every value, matched sets likewise, and heads singly under the primary."""
    reference = Ablation(model, prompts.discovery.tokens, torch.Generator().manual_seed(seed))
    everyone = heads(model.config)
    outside = [h for h in everyone if h not in circuit]
    sets = matched_sets(found, outside, np.random.default_rng(seed))
    single = everyone if len(everyone) <= _ALL_SINGLY else sorted(set(found))
    plan: list[tuple[Value, Sequence[Head]]] = []
    plan.extend((value, found) for value in VALUES)
    plan.extend((value, chosen) for value in VALUES for chosen in sets)
    plan.extend((primary, [head]) for head in single)
    held_out = prompts.held_out
    values = {value: reference.values(value, len(held_out.tokens)) for value in VALUES}

    def variants(part: slice, _: Trace) -> list[list[Edit]]:
        return [ablate(chosen, values[value], part) for value, chosen in plan]

    costs = _costs(model, held_out.tokens, held_out.targets, held_out.predictable, variants, progress)
    first = len(VALUES)
    matched = costs[first : first + len(VALUES) * len(sets)].unflatten(0, (len(VALUES), len(sets)))
    return Ablations(
        dict(zip(VALUES, costs[:first])),
        dict(zip(VALUES, matched)) if sets else {},
        dict(zip(single, costs[first + matched.shape[0] * matched.shape[1] :])),
        sets,
    )


def paths(
    model: Transformer,
    prompts: Prompts,
    senders: Sequence[Head],
    found: Sequence[Head],
    seed: int,
    progress: Callable[[float], None],
) -> Paths:
    """Patch what the senders would say, had the earlier copies been others, into the found heads alone."""
    outside = [h for h in heads(model.config) if h not in senders and h not in found]
    sets = matched_sets(senders, outside, np.random.default_rng(seed)) if senders else []
    pairs = [(s, r) for s in senders for r in found if s.layer < r.layer]
    routes: tuple[Route, ...] = ("q", "k", "v")

    def variants(part: slice, clean: Trace) -> list[list[Edit]]:
        corrupt = run(model, prompts.replaced.tokens[part], "blocks.*.attn.z")
        planned = [path_edits(model, clean, corrupt, senders, found, route) for route in routes]
        planned += [path_edits(model, clean, corrupt, chosen, found, "k") for chosen in sets]
        planned += [path_edits(model, clean, corrupt, [s], [r], "k") for s, r in pairs]
        planned += [[direct_edit(model, clean, corrupt, [head])] for head in found]
        return planned

    held_out = prompts.held_out
    costs = _costs(model, held_out.tokens, held_out.targets, held_out.last_copy(), variants, progress)
    matched_end = len(routes) + len(sets)
    pairs_end = matched_end + len(pairs)
    return Paths(
        dict(zip(routes, costs)),
        costs[len(routes) : matched_end] if sets else None,
        dict(zip(pairs, costs[matched_end:pairs_end])),
        dict(zip(found, costs[pairs_end:])),
    )


def _costs(
    model: Transformer,
    tokens: Tensor,
    targets: Tensor,
    where: Tensor,
    variants: Callable[[slice, Trace], Sequence[list[Edit]]],
    progress: Callable[[float], None],
) -> Float[Tensor, "variant batch"]:
    """The loss at `where` under each variant minus the loss without, per sequence, chunk by chunk."""
    parts = []
    for part in chunks(model.config, *tokens.shape):
        clean = trace(model, tokens[part])
        metric = Loss(targets[part].to(model.device), where[part].to(model.device))
        planned = [[], *variants(part, clean)]
        losses = sweep(model, clean, planned, metric)
        parts.append((losses[1:] - losses[0]).cpu())
        progress(part.stop / len(tokens))
    return torch.cat(parts, 1)
