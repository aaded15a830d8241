"""ACDC finds, edge by edge, what one whole run of the current circuit for every edge finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.architectures import ARCHITECTURES, BATCH, network, prompts
from tests.methods.masked_edges import outputs, slow_logits
from torch import Tensor

from headwork.engine.metrics import kl_from
from headwork.methods.acdc import acdc
from headwork.methods.graph import graph
from headwork.model.transformer import Transformer
from headwork.tasks.prompt_pairs import PromptPairs

POSITIONS = torch.tensor([4, 2, 3])
NETWORKS = ("attention-only-rotary-half", "gpt2", "neox", "llama", "qwen3", "shortformer", "one-kv-head", "causal-pad")


def case(name: str, shared: int = 0) -> tuple[Transformer, PromptPairs]:
    clean, corrupt = prompts(name, 1), prompts(name, 2)
    corrupt[:, :shared] = clean[:, :shared]
    corrupt[:, -1] = clean[:, -1] % (ARCHITECTURES[name].d_vocab - 1) + 1
    if ARCHITECTURES[name].pad_token is not None:
        corrupt[clean == ARCHITECTURES[name].pad_token] = ARCHITECTURES[name].pad_token
        corrupt[1, 0] = clean[1, 0] % 10 + 1
    return network(name), PromptPairs(clean, corrupt)


def slow_kl(clean: Tensor, positions: Tensor, logits: Tensor) -> float:
    rows = torch.arange(BATCH)
    said, other = (x[rows, positions].log_softmax(-1) for x in (clean, logits))
    return float((said.exp() * (said - other)).sum(-1).mean())


def slow_acdc(
    model: Transformer, pairs: PromptPairs, ablated: dict[str, Tensor], positions: Tensor, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Kept edges and effects, by one pass by hand for every edge."""
    edges = graph(model.config)
    mask, effects = torch.as_tensor(edges.visible.copy()), np.full(edges.visible.shape, np.nan)
    whole = slow_logits(model, pairs.clean, ablated, mask)
    current = slow_kl(whole, positions, whole)
    for reader in range(len(edges.readers) - 1, -1, -1):
        for writer in range(len(edges.writers) - 1, -1, -1):
            if edges.visible[writer, reader]:
                mask[writer, reader] = False
                after = slow_kl(whole, positions, slow_logits(model, pairs.clean, ablated, mask))
                effects[writer, reader] = after - current
                if after - current < threshold:
                    current = after
                else:
                    mask[writer, reader] = True
    return mask.numpy(), effects


@pytest.mark.parametrize("name, shared, threshold", [(n, 3 * (i % 2), 0.02) for i, n in enumerate(NETWORKS)])
def test_the_same_edges_as_a_whole_run_for_every_edge(name: str, shared: int, threshold: float) -> None:
    model, pairs = case(name, shared)
    found = acdc(model, pairs, kl_from(model, pairs.clean, POSITIONS), threshold)
    mask, effects = slow_acdc(model, pairs, outputs(model, pairs.corrupt), POSITIONS, threshold)
    assert 0 < mask.sum() < 0.9 * graph(model.config).edges
    np.testing.assert_array_equal(found.mask, mask)
    np.testing.assert_allclose(found.effects, effects, rtol=1e-8, atol=1e-10)
