"""The procedure: behaviour, attention, causes, weights; heads are chosen on discovery sequences, scored on others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import xarray
from jaxtyping import Float
from torch import Tensor

from headwork.engine.run import run
from headwork.findings.induction_heads.attention import Chosen, HeadScores, attention_when_replaced, choose, head_scores
from headwork.findings.induction_heads.causes import Ablations, Paths, ablations, paths
from headwork.findings.induction_heads.prompts import Prompts, distribution_for, draw, stated_distribution
from headwork.findings.measurement import Measurement, Progress, no_progress
from headwork.methods.ablation import Value
from headwork.methods.batches import chunks
from headwork.methods.ov_copying import copying_scores
from headwork.model.initialise import initialise
from headwork.model.sites import Head
from headwork.model.transformer import Transformer
from headwork.tasks.repeated_sequences import RepeatedSequences

_INDUCTION = ("induction", "induction_null")


def measure(model: Transformer, settings: Mapping[str, Any], progress: Progress = no_progress) -> Measurement:
    """Everything the claim card asks, on one network.

    `settings`: `discovery` and `held_out` count sequences, `ablation` is the primary value that ablated heads take
    (one of `headwork.methods.ablation.VALUES`), `seed` fixes all randomness.
    """
    seed = settings["seed"]
    distribution, note, status = distribution_for(model)
    own = stated_distribution(model)
    prompts = draw(distribution, settings["discovery"], settings["held_out"], seed)
    generator = torch.Generator().manual_seed(seed + 1)
    progress("loss inside repeats", 0.05)
    behaviour = _behaviour(model, prompts)
    progress("scores of every head", 0.15)
    on_discovery = head_scores(model, prompts.discovery, generator)
    on_held_out = head_scores(model, prompts.held_out, generator)
    found = choose(on_discovery.induction, on_discovery.induction_null)
    senders = choose(on_discovery.previous, on_discovery.previous_null, max(h.layer for h in found.heads))
    before, after = attention_when_replaced(model, prompts, found.heads)
    circuit = [*found.heads, *senders.heads]
    ablated = ablations(
        model,
        prompts,
        found.heads,
        circuit,
        settings["ablation"],
        seed,
        lambda p: progress("ablations", 0.25 + 0.4 * p),
    )
    patched = paths(
        model, prompts, senders.heads, found.heads, seed, lambda p: progress("path patching", 0.65 + 0.3 * p)
    )
    dataset = xarray.Dataset(
        {
            **behaviour,
            **_attention(on_discovery, on_held_out, found, senders),
            "attention_before": ("sequence", before.numpy()),
            "attention_after": ("sequence", after.numpy()),
            "attention_drop": ("sequence", (before - after).numpy()),
            **_causes(ablated, patched, settings["ablation"], found.heads),
            **_weights(model, found.heads, seed),
            **(_at_own_distance(model, own, settings) if own is not None and own != distribution else {}),
        },
        coords={
            "layer": range(model.config.n_layers),
            "head": range(model.config.n_heads),
            "sequence": range(settings["held_out"]),
        },
    )
    progress("pictures", 0.97)
    dataset = dataset.merge(_examples(model, prompts, on_held_out, found))
    return Measurement(
        dataset,
        {"induction": [str(h) for h in found.heads], "previous-token": [str(h) for h in senders.heads]},
        prompts.distribution.to_dict(),
        note,
        status,
        _notes(found, senders, ablated, patched),
    )


def _behaviour(model: Transformer, prompts: Prompts) -> dict[str, Any]:
    """Losses per held-out sequence and by place in a copy, and the best predictor that copies by distance."""
    held_out, baseline = prompts.held_out, prompts.baseline
    losses, right = _token_losses(model, held_out.tokens)
    inside, outside = held_out.predictable, held_out.unpredictable
    baseline_loss = _mean(baseline.losses(held_out.tokens), inside)
    loss_inside = _mean(losses, inside)
    copies, longest = int(held_out.copy.max()) + 1, int(held_out.index.max()) + 1
    by_place = torch.full((copies, longest, len(losses)), torch.nan, dtype=torch.float64)
    goes_on = torch.zeros_like(inside)
    goes_on[:, :-1] = held_out.copy[:, 1:] == held_out.copy[:, :-1]
    for copy in range(copies):
        for index in range(longest):
            here = goes_on & (held_out.copy == copy) & (held_out.index == index)
            by_place[copy, index] = _mean(losses, here)
    return {
        "loss_inside": ("sequence", loss_inside.numpy()),
        "loss_outside": ("sequence", _mean(losses, outside).numpy()),
        "accuracy_inside": ("sequence", _mean(right.double(), inside).numpy()),
        "baseline_loss": ("sequence", baseline_loss.numpy()),
        "advantage": ("sequence", (baseline_loss - loss_inside).numpy()),
        "baseline_weights": ("distance", baseline.weights.numpy()),
        "loss_by_place": (("copy", "index", "sequence"), by_place.numpy()),
    }


def _attention(discovery: HeadScores, held_out: HeadScores, found: Chosen, senders: Chosen) -> dict[str, Any]:
    best, null = _needed(found.best), _needed(found.null)
    values: dict[str, Any] = {
        "score_best": ("sequence", held_out.induction[best.layer, best.head].numpy()),
        "score_null": ("sequence", held_out.induction_null[null.layer, null.head].numpy()),
    }
    if senders.best is not None and senders.null is not None:
        values["previous_best"] = ("sequence", held_out.previous[senders.best.layer, senders.best.head].numpy())
        values["previous_null"] = ("sequence", held_out.previous_null[senders.null.layer, senders.null.head].numpy())
    for name in ("induction", "induction_null", "previous", "previous_null", "duplicate"):
        values[f"discovery_{name}"] = (("layer", "head"), getattr(discovery, name).nanmean(-1).numpy())
        values[f"head_{name}"] = (("layer", "head", "sequence"), getattr(held_out, name).numpy())
    return values


def _causes(ablated: Ablations, patched: Paths, primary: Value, found: tuple[Head, ...]) -> dict[str, Any]:
    values = list(ablated.together)
    result: dict[str, Any] = {
        "value": values,
        "cost": (("value", "sequence"), torch.stack([ablated.together[v] for v in values]).numpy()),
        "ablation_cost": ("sequence", ablated.together[primary].numpy()),
        "single_head": ("single", [str(h) for h in ablated.singly]),
        "single_cost": (("single", "sequence"), torch.stack(list(ablated.singly.values())).numpy()),
        "path_queries": ("sequence", patched.routes["q"].numpy()),
        "path_keys": ("sequence", patched.routes["k"].numpy()),
        "path_values": ("sequence", patched.routes["v"].numpy()),
        "direct_head": ("receiver", [str(h) for h in found]),
        "path_direct": (("receiver", "sequence"), torch.stack([patched.direct[h] for h in found]).numpy()),
    }
    if ablated.matched:
        result["ablation_matched"] = ("sequence", ablated.matched[primary].mean(0).numpy())
        result["matched_cost"] = (
            ("value", "sequence"),
            torch.stack([ablated.matched[v].mean(0) for v in values]).numpy(),
        )
        result["matched_set"] = ("set", [" ".join(map(str, s)) for s in ablated.matched_sets])
        result["matched_set_cost"] = (("set", "sequence"), ablated.matched[primary].numpy())
    if patched.matched is not None:
        result["path_matched"] = ("sequence", patched.matched.mean(0).numpy())
    if patched.pairs:
        result["pair"] = [f"{s}→{r}" for s, r in patched.pairs]
        result["path_pair"] = (("pair", "sequence"), torch.stack(list(patched.pairs.values())).numpy())
    return result


def _weights(model: Transformer, found: tuple[Head, ...], seed: int) -> dict[str, Any]:
    scores = copying_scores(model)
    untrained = copying_scores(initialise(model.config, seed))
    return {
        "head_ov_copying": (("layer", "head"), scores.numpy()),
        "ov_copying": ((), float(torch.stack([scores[h.layer, h.head] for h in found]).mean())),
        "ov_null": ((), float(untrained.max())),
    }


def _at_own_distance(model: Transformer, own: RepeatedSequences, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the trap looks like: the best head's score at the one distance that the network was trained on.

    Chosen and scored as elsewhere, with the attention before and after the earlier copies are replaced. It is shown
    beside the verdict and has no part in it.
    """
    prompts = draw(own, settings["discovery"], settings["held_out"], settings["seed"])
    generator = torch.Generator().manual_seed(settings["seed"] + 1)
    chosen = choose(*(getattr(head_scores(model, prompts.discovery, generator), n) for n in _INDUCTION))
    before, after = attention_when_replaced(model, prompts, (_needed(chosen.best),))
    losses, _ = _token_losses(model, prompts.held_out.tokens)
    return {
        "own_distance_score": ("sequence", before.numpy()),
        "own_distance_replaced": ("sequence", after.numpy()),
        "own_distance_loss": ("sequence", _mean(losses, prompts.held_out.predictable).numpy()),
    }


def _examples(model: Transformer, prompts: Prompts, scores: HeadScores, found: Chosen) -> xarray.Dataset:
    """Attention of every head on the sequences where the best head's score is median and lowest."""
    best = _needed(found.best)
    order = scores.induction[best.layer, best.head].argsort()
    cases = {"median": int(order[len(order) // 2]), "worst": int(order[0])}
    tokens = prompts.held_out.tokens[list(cases.values())]
    done = run(model, tokens, "blocks.*.attn.pattern")
    layers = sorted({h.layer for h in found.heads} | {0})
    maps = torch.stack([done[f"blocks.{layer}.attn.pattern"] for layer in layers], 1)
    rows = list(cases.values())
    return xarray.Dataset(
        {
            "attention": (("case", "shown_layer", "head", "query", "key"), maps.cpu().float().numpy()),
            "tokens": (("case", "query"), tokens.numpy()),
            "copy_number": (("case", "query"), prompts.held_out.copy[rows].numpy()),
            "predictable": (("case", "query"), prompts.held_out.predictable[rows].numpy()),
            "case_sequence": ("case", rows),
        },
        coords={"case": list(cases), "shown_layer": layers},
    )


def _notes(found: Chosen, senders: Chosen, ablated: Ablations, patched: Paths) -> list[str]:
    notes = []
    if not found.found:
        notes.append("No head passed its null on discovery sequences; the best one stands in.")
    if not senders.heads:
        notes.append("There is no layer below the found heads, so nothing can reach their keys: those paths carry 0.")
    elif not senders.found:
        notes.append("No head below passed the previous-token null; the best one stands in.")
    if not ablated.matched_sets:
        notes.append(
            "No equal set of heads exists outside the circuit in the same layers: that control is unavailable."
        )
    if senders.heads and patched.matched is None:
        notes.append(
            "No equal set of senders exists outside the circuit in the same layers: that control is unavailable."
        )
    return notes


def _token_losses(model: Transformer, tokens: Tensor) -> tuple[Float[Tensor, "batch pos"], Tensor]:
    """Loss in nats of the next token at every position, and whether it was the most likely one."""
    losses, right = [], []
    for part in chunks(model.config, *tokens.shape):
        logits = run(model, tokens[part]).logits.double()
        targets = tokens[part].roll(-1, 1).to(logits.device)
        losses.append(torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none").cpu())
        right.append((logits.argmax(-1) == targets).cpu())
    return torch.cat(losses), torch.cat(right)


def _mean(values: Float[Tensor, "batch pos"], where: Tensor) -> Float[Tensor, " batch"]:
    """The mean over the chosen positions of each sequence; NaN where there are none."""
    return torch.where(where, values, 0).sum(1) / where.sum(1)


def _needed(head: Head | None) -> Head:
    assert head is not None, "a network with layers has a best head"  # noqa: S101 – checked when prompts are drawn
    return head
