"""Sweeps: the effect of many interventions, batched into few resumed passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from headwork.engine.edits import Edit
from headwork.engine.metrics import Metric
from headwork.engine.packing import packed_resume
from headwork.engine.resume import Entry, Trace, entry
from headwork.errors import UserError
from headwork.model.config import TransformerConfig
from headwork.model.sites import layer_of
from headwork.model.transformer import Transformer

# Numbers in the widest activation of one resumed pass: enough rows to keep the matrix products busy, few enough that
# memory is reused from pass to pass instead of being fetched anew. The result does not depend on it.
_WIDEST = 6_000_000
# A graphics card takes as much as it has room for: a pass holds about this many arrays as large as the widest.
_ARRAYS_AT_ONCE = 16


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
    entries = [_reaching(entry(model.config, edits), read) for edits in checked]
    result = torch.empty(len(variants), batch, dtype=model.dtype, device=model.device)
    with torch.no_grad():
        for chunk in _passes(model.config, entries, batch, length, _widest(model)):
            resid = packed_resume(model, base, [checked[i] for i in chunk], [entries[i] for i in chunk], read)
            for i, one in zip(chunk, resid):
                values = metric(model, one, length - one.shape[1])
                if values.shape != (batch,):
                    raise UserError(f"The metric gave {list(values.shape)} for {batch} examples; one each is needed.")
                result[i] = values
            if progress:
                progress(len(chunk))
    return result


def _widest(model: Transformer) -> int:
    if model.device.type != "cuda":
        return _WIDEST
    free, _ = torch.cuda.mem_get_info(model.device)
    return max(_WIDEST, free // (_ARRAYS_AT_ONCE * model.embed.weight.element_size()))


def _passes(
    config: TransformerConfig, entries: Sequence[Entry], batch: int, length: int, widest: int
) -> Iterator[list[int]]:
    """Variants that enter the same layer in the same way, in order of their starts, a bounded number at a time."""
    attention = (config.n_heads + 2 * config.kv_heads) * config.d_head + config.n_heads * length
    rows_per_pass = widest // max(config.d_mlp * (2 if config.gated_mlp else 1), attention, config.d_model)
    groups: dict[tuple[int, bool, frozenset[str]], list[int]] = {}
    for i, where in enumerate(entries):
        groups.setdefault((where.layer, where.embeds, where.valid), []).append(i)
    for members in groups.values():
        chunk: list[int] = []
        rows = 0
        for i in sorted(members, key=lambda i: entries[i].start):
            own = batch * (length - entries[i].start)
            if chunk and rows + own > rows_per_pass:
                yield chunk
                chunk, rows = [], 0
            chunk.append(i)
            rows += own
        yield chunk


def _before_the_end(edit: Edit) -> Edit:
    if layer_of(edit.site) is None and edit.site not in ("embed", "pos_embed"):
        raise UserError(
            f"A sweep cannot edit {edit.site}: its metric reads the residual stream after the last block. Resume each "
            "variant on its own instead."
        )
    return edit


def _reaching(where: Entry, read: int) -> Entry:
    """The same entry, early enough that every position the metric reads is computed."""
    return Entry(where.layer, min(where.start, read), where.valid, where.embeds)
