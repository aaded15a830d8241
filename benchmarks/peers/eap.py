"""Edge attribution patching on TransformerLens, written from the papers' algorithm as its reference does it.

Syed et al. 2023; Hanna et al. 2024. Every head gets its own copy of the stream for queries, keys and values
(`use_split_qkv_input`), head outputs are kept apart (`use_attn_result`), one array holds corrupt − clean of all writers
at all positions, and a backward hook on each reader's input multiplies its gradient with the writers before it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from benchmarks.setting import Prompts
from torch import Tensor


def scores(model: Any, prompts: Prompts, steps: int | None, frozen: bool = False) -> np.ndarray:
    """[writer, reader], mean over prompts, NaN where there is no edge; EAP, or EAP-IG over inputs with `steps`.

    The reference leaves the weights as they are loaded, so that they take gradients too; `frozen` spares that.
    Writers: embedding, then each layer's heads and MLP. Readers: each layer's q, k and v by head, then its MLP; logits.
    """
    c = model.cfg
    batch, length = prompts.clean.shape
    writers, readers = 1 + c.n_layers * (c.n_heads + 1), c.n_layers * (3 * c.n_heads + 1) + 1
    change = torch.zeros(batch, length, writers, c.d_model)
    found = torch.zeros(writers, readers)

    def note(rows: slice, sign: float) -> Callable[..., None]:
        def hook(value: Tensor, hook: Any) -> None:
            change[:, :, rows] += sign * (value if value.dim() == 4 else value[:, :, None]).detach()

        return hook

    def noting(sign: float) -> list[tuple[str, Callable[..., None]]]:
        return [(name, note(rows, sign)) for name, rows in writing(c)]

    def score(before: int, columns: slice) -> Callable[..., None]:
        def hook(gradient: Tensor, hook: Any) -> None:
            slope = gradient.detach() if gradient.dim() == 4 else gradient.detach()[:, :, None]
            found[:before, columns] += torch.einsum("bpwd,bprd->wr", change[:, :, :before], slope)

        return hook

    backward = [(name, score(before, columns)) for name, before, columns in reading(c)]
    rows = torch.arange(batch)

    def metric(logits: Tensor) -> Tensor:
        return (logits[rows, -1, prompts.correct] - logits[rows, -1, prompts.wrong]).sum()

    def leaf(value: Tensor, hook: Any) -> Tensor:
        return value.detach().requires_grad_()

    model.requires_grad_(not frozen)
    with torch.inference_mode(), model.hooks(fwd_hooks=noting(1.0)):
        model(prompts.corrupt)
    if steps is None:
        start = [("hook_embed", leaf)] if frozen else []
        with model.hooks(fwd_hooks=noting(-1.0) + start, bwd_hooks=backward):
            metric(model(prompts.clean)).backward()
    else:
        corrupt = change[:, :, 0].clone()
        with torch.inference_mode(), model.hooks(fwd_hooks=noting(-1.0)):
            model(prompts.clean)
        other = change[:, :, 0].clone()

        def between(k: int) -> Callable[..., Tensor]:
            def hook(value: Tensor, hook: Any) -> Tensor:
                # corrupt at 0, clean (corrupt − change) at 1
                return (corrupt - (k / steps) * other).requires_grad_()

            return hook

        for k in range(1, steps + 1):
            with model.hooks(fwd_hooks=[("hook_embed", between(k))], bwd_hooks=backward):
                metric(model(prompts.clean)).backward()
    model.zero_grad()
    found /= batch * (steps or 1)
    visible = torch.zeros_like(found, dtype=torch.bool)
    for _, before, columns in reading(c):
        visible[:before, columns] = True
    return torch.where(visible, found, torch.nan).numpy()


def writing(c: Any) -> list[tuple[str, slice]]:
    """Hook and rows of every writer."""
    found, row = [("hook_embed", slice(0, 1))], 1
    for layer in range(c.n_layers):
        found += [(f"blocks.{layer}.attn.hook_result", slice(row, row + c.n_heads))]
        found += [(f"blocks.{layer}.hook_mlp_out", slice(row + c.n_heads, row + c.n_heads + 1))]
        row += c.n_heads + 1
    return found


def reading(c: Any) -> list[tuple[str, int, slice]]:
    """Hook, number of writers before it, and columns of every reader."""
    found, column, before = [], 0, 1
    for layer in range(c.n_layers):
        for part in "qkv":
            found.append((f"blocks.{layer}.hook_{part}_input", before, slice(column, column + c.n_heads)))
            column += c.n_heads
        before += c.n_heads
        found.append((f"blocks.{layer}.hook_mlp_in", before, slice(column, column + 1)))
        column, before = column + 1, before + 1
    return [*found, (f"blocks.{c.n_layers - 1}.hook_resid_post", before, slice(column, column + 1))]


def prepare(model: Any) -> None:
    """Let every reader have an input of its own."""
    model.set_use_attn_result(True)
    model.set_use_split_qkv_input(True)
    model.set_use_hook_mlp_in(True)
