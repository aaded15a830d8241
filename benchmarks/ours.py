"""Headwork's side: the same pieces of work by its public calls."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray  # noqa: F401 – the package imports it where results are made; here that is no part of the work
from benchmarks.machine import matrix_rates
from benchmarks.serve import Done, Job, serve

import headwork
from benchmarks import acdc
from headwork.engine.metrics import LogitDifference
from headwork.engine.run import run
from headwork.methods.activation_patching import activation_patching
from headwork.methods.edge_attribution import edge_attribution
from headwork.model.sites import sites
from headwork.tasks.prompt_pairs import PromptPairs


def metric(job: Job) -> LogitDifference:
    """The logit difference at the last position."""
    p = job.prompts
    return LogitDifference(torch.full_like(p.correct, job.setting.length - 1), p.correct, p.wrong)


def patching(job: Job, site: str, by: Any, **more: Any) -> Done:
    """A denoising sweep; the values are the patched runs' metric [layer, unit, prompt]."""
    pairs = PromptPairs(job.prompts.clean, job.prompts.corrupt)
    more = {**more, **{k: v for k, v in job.options.items() if k == "memory"}}
    found = activation_patching(job.model, pairs, metric(job), site=site, by=by, **more)
    return Done({"patched": (found["effect"] + found["corrupt"]).values, "effect": found["effect"].values})


def heads(job: Job) -> Done:
    """Every head's output, all positions together."""
    return patching(job, "attn.z", "head")


def residual(job: Job) -> Done:
    """The residual stream by layer and position."""
    return patching(job, "resid_pre", "position")


CONFIRMED = 20  # how many of the screened heads are patched again in float32


def screened(job: Job) -> Done:
    """The head sweep with products in bfloat16, its top confirmed in float32."""
    p = job.prompts
    pairs = PromptPairs(p.clean, p.corrupt)
    found = activation_patching(job.model, pairs, metric(job), site="attn.z", by="head", confirm=CONFIRMED)
    certain = {key: found.attrs[key] for key in ("certain_top", "screening_error")}
    values = {"patched": (found["effect"] + found["corrupt"]).values, "effect": found["effect"].values}
    return Done(values, {"confirmed": CONFIRMED} | certain)


def eap(job: Job, variant: Any = "eap") -> Done:
    """All edges' scores [writer, reader], NaN where there is no edge."""
    p = job.prompts
    limit = {k: v for k, v in job.options.items() if k == "memory"}
    found = edge_attribution(job.model, p.clean, p.corrupt, metric(job), variant=variant, steps=5, **limit)
    return Done({"scores": found.values}, {"edges": int(np.isfinite(found.values).sum())})


def eap_ig(job: Job) -> Done:
    """The same, the gradient averaged over five runs between the two prompts' embeddings."""
    return eap(job, "inputs")


def circuit(job: Job) -> Done:
    """ACDC in the setting of `benchmarks.acdc`, which makes its own network."""
    case = acdc.case(job.prompts.clean.device.type)
    found, seconds = acdc.timed_acdc(*case)
    notes = {"seconds": seconds, "evaluations": found.evaluations, "confirmed": found.confirmed}
    notes |= {"kept": int(found.mask.sum()), "edges": found.graph.edges, "margin": found.margin}
    return Done({"mask": found.mask}, notes)


def plain_circuit(job: Job) -> Done:
    """The plain way: a whole run for every edge, or for the first `at_most` of them, its time scaled up."""
    model, pairs, metric = acdc.case(job.prompts.clean.device.type)
    bare = acdc.seconds_of_a_bare_pass(model, pairs)
    edges = acdc.graph(acdc.SHAPE).edges
    begun = time.perf_counter()
    mask, tried = acdc.plain_acdc(model, pairs, metric, acdc.THRESHOLD, job.options.get("at_most"))
    seconds = (time.perf_counter() - begun) * edges / tried
    return Done({"mask": mask}, {"seconds": seconds, "tried": tried, "bare": bare * edges})


def cache(job: Job) -> Done:
    """The bare forward pass; with the sites that HookedTransformer's cache holds; with every declared site."""
    model, tokens = job.model, job.prompts.clean
    every = list(sites(model.config))
    like = [name for name in every if not name.endswith("attn.result") and name != "logits"]
    calls = {"bare": (), "cached": like, "all": every}
    return alternated(
        {name: partial(run, model, tokens, names) for name, names in calls.items()},
        {"cached": len(like), "all": len(every)},
        tokens.device.type,
        job.options.get("rounds", 9),
    )


def alternated(calls: dict[str, Callable[[], Any]], count: dict[str, int], device: str, rounds: int) -> Done:
    """Median seconds of each call, taken turn by turn so that what slows the machine slows all alike."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    with torch.no_grad():
        for _ in range(rounds + 1):
            for name, call in calls.items():
                begun = time.perf_counter()
                held = call()
                if device != "cpu":
                    torch.cuda.synchronize()
                taken[name].append(time.perf_counter() - begun)
                del held
    medians = {name: statistics.median(times[1:]) for name, times in taken.items()}
    return Done(notes={"medians": medians, "sites": count})


def rates(job: Job) -> Done:
    """The machine's measured rates of matrix products."""
    return Done(notes={"rates": matrix_rates(job.prompts.clean.device.type, job.setting.size.d_model >= 512)})


WORKS = {
    "heads": heads,
    "residual": residual,
    "screened": screened,
    "eap": eap,
    "eap-ig": eap_ig,
    "acdc": circuit,
    "acdc-plain": plain_circuit,
    "cache": cache,
    "rates": rates,
}


def load(folder: Path, device: str) -> Any:
    """The network, in float32."""
    return headwork.load(str(folder), device)


if __name__ == "__main__":
    serve(load, WORKS, {"headwork": version("headwork")})
