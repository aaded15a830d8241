"""The pieces of work, by TransformerLens's own functions where it has them; the same for both versions."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from benchmarks.peers import eap
from benchmarks.serve import Done, Job
from torch import Tensor
from transformer_lens import patching


def sweep(patch: Callable[..., Any]) -> Callable[[Job], Done]:
    """A denoising sweep: clean activations from a cache, one patched forward pass of the corrupt prompts per cell."""

    def work(job: Job) -> Done:
        p, kept = job.prompts, []
        rows = torch.arange(len(p.correct))

        def metric(logits: Tensor) -> Tensor:
            values = logits[rows, -1, p.correct] - logits[rows, -1, p.wrong]
            kept.append(values)
            return values.mean()

        with torch.no_grad():
            _, cached = job.model.run_with_cache(p.clean)
            means = patch(job.model, p.corrupt, cached, metric)
        return Done({"patched": torch.stack(kept).unflatten(0, tuple(means.shape)).numpy()})

    return work


def cache(job: Job) -> Done:
    """The bare forward pass, and with `run_with_cache`; turn by turn."""
    model, tokens = job.model, job.prompts.clean
    taken: dict[str, list[float]] = {"bare": [], "cached": []}
    count = 0
    with torch.no_grad():
        for _ in range(job.options.get("rounds", 9) + 1):
            begun = time.perf_counter()
            model(tokens)
            taken["bare"].append(time.perf_counter() - begun)
            begun = time.perf_counter()
            _, cached = model.run_with_cache(tokens)
            taken["cached"].append(time.perf_counter() - begun)
            count = len(cached)
            del cached
    medians = {name: statistics.median(times[1:]) for name, times in taken.items()}
    return Done(notes={"medians": medians, "sites": {"cached": count}})


def edges(steps: int | None) -> Callable[[Job], Done]:
    """EAP, or EAP-IG with so many steps."""

    def work(job: Job) -> Done:
        eap.prepare(job.model)
        found = eap.scores(job.model, job.prompts, steps, bool(job.options.get("frozen")))
        return Done({"scores": found}, {"edges": int(np.isfinite(found).sum())})

    return work


WORKS = {
    "heads": sweep(patching.get_act_patch_attn_head_out_all_pos),
    "residual": sweep(patching.get_act_patch_resid_pre),
    "cache": cache,
    "eap": edges(None),
    "eap-ig": edges(5),
}
