"""Sweeps: the effect of many interventions, batched into few resumed passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from headwork.engine.edits import Edit
from headwork.engine.metrics import Metric
from headwork.engine.resume import Entry, Trace, entry, resume_residual
from headwork.model.transformer import Transformer

# Copies of the batch that one resumed pass holds: enough rows to keep the matrix products busy, few enough to stay in
# cache. The result does not depend on it.
_TOKENS_PER_PASS = 8192


def sweep(
    model: Transformer,
    base: Trace,
    variants: Sequence[Sequence[Edit] | Edit],
    metric: Metric,
    progress: Callable[[int], None] | None = None,
) -> Float[Tensor, "variant batch"]:
    """The metric of each example under each variant (an edit, or several at once), against the run in `base`.

    Variants that bite at the same place share a pass. `progress` is called with the number of variants done since the
    last call. Raises `UserError` for edits that do not exist, before any work.
    """
    length = base.tokens.shape[1]
    read = metric.reads(length)
    checked = [[edit.checked(model.config, length) for edit in ([v] if isinstance(v, Edit) else v)] for v in variants]
    groups: dict[Entry, list[int]] = {}
    for i, edits in enumerate(checked):
        groups.setdefault(_reading(entry(model.config, edits), read), []).append(i)
    result = torch.empty(len(variants), len(base.tokens), dtype=model.dtype, device=model.device)
    with torch.no_grad():
        for where, members in groups.items():
            per_pass = max(1, _TOKENS_PER_PASS // (len(base.tokens) * (length - where.start)))
            for first in range(0, len(members), per_pass):
                chunk = members[first : first + per_pass]
                resid = resume_residual(model, base, [checked[i] for i in chunk], where)
                for i, one in zip(chunk, resid.unflatten(0, (len(chunk), -1))):
                    result[i] = metric(model, one, where.start)
                if progress:
                    progress(len(chunk))
    return result


def _reading(where: Entry, read: int) -> Entry:
    """The same entry, early enough that every position the metric reads is computed."""
    return Entry(where.layer, min(where.start, read), where.valid, where.embeds)
