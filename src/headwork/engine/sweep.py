"""Sweeps: the effect of many interventions, batched into few resumed passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from headwork.engine.edits import Edit
from headwork.engine.metrics import Metric
from headwork.engine.resume import Entry, Trace, entry, resume_residual
from headwork.errors import UserError
from headwork.model.sites import layer_of
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
    last call. Raises `UserError`, before any work, for edits that do not exist or that bite after the last block, where
    metrics do not look: `resume` takes those.
    """
    base.require(model)
    batch, length = base.tokens.shape
    read = metric.reads(length)
    checked = [
        [_before_the_end(edit.checked(model.config, batch, length)) for edit in ([v] if isinstance(v, Edit) else v)]
        for v in variants
    ]
    groups: dict[Entry, list[int]] = {}
    for i, edits in enumerate(checked):
        groups.setdefault(_reading(entry(model.config, edits), read), []).append(i)
    result = torch.empty(len(variants), batch, dtype=model.dtype, device=model.device)
    with torch.no_grad():
        for where, members in groups.items():
            per_pass = max(1, _TOKENS_PER_PASS // (batch * (length - where.start)))
            for first in range(0, len(members), per_pass):
                chunk = members[first : first + per_pass]
                resid = resume_residual(model, base, [checked[i] for i in chunk], where)
                for i, one in zip(chunk, resid.unflatten(0, (len(chunk), -1))):
                    values = metric(model, one, where.start)
                    if values.shape != (batch,):
                        raise UserError(
                            f"The metric gave {list(values.shape)} for {batch} examples; one each is needed."
                        )
                    result[i] = values
                if progress:
                    progress(len(chunk))
    return result


def _before_the_end(edit: Edit) -> Edit:
    if layer_of(edit.site) is None and edit.site not in ("embed", "pos_embed"):
        raise UserError(
            f"A sweep cannot edit {edit.site}: its metric reads the residual stream after the last block. Resume each "
            "variant on its own instead."
        )
    return edit


def _reading(where: Entry, read: int) -> Entry:
    """The same entry, early enough that every position the metric reads is computed."""
    return Entry(where.layer, min(where.start, read), where.valid, where.embeds)
