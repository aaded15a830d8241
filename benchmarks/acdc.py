"""ACDC against the plain way, a whole forward pass of the circuit for every edge: same edges, how much faster.

A randomly initialised network of 4 layers, 8 heads, d_model 256, d_mlp 1024, vocabulary 4,000; 32 prompt pairs of 20
tokens, all different; KL at the last position; float32; a threshold that keeps about a tenth of the edges.

    python benchmarks/acdc.py [--threads 2] [--device cpu] [--edges 200]

`--edges` stops the plain way after so many edges, counted from the output backwards; its time for all of them is then
scaled up, and the output says so. "Bare" is the network's own forward pass for each edge, which cannot cut edges: the
least that any way with a pass per edge could take.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from headwork.engine.metrics import KLDivergence, kl_from
from headwork.methods.ablated_outputs import counterfactual
from headwork.methods.acdc import Acdc, acdc
from headwork.methods.circuit_runs import CircuitRuns
from headwork.methods.graph import graph
from headwork.model.config import TransformerConfig
from headwork.model.initialise import initialise
from headwork.model.transformer import Transformer
from headwork.tasks.prompt_pairs import PromptPairs

PAIRS, LENGTH, THRESHOLD = 32, 20, 9e-4

SHAPE = TransformerConfig(
    n_layers=4,
    d_model=256,
    n_heads=8,
    d_head=32,
    d_mlp=1024,
    d_vocab=4000,
    n_ctx=32,
    norm="layernorm",
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
)


def case(device: str = "cpu") -> tuple[Transformer, PromptPairs, KLDivergence]:
    """The network, the pairs and the metric."""
    model = initialise(SHAPE, 0).to(device)
    clean, corrupt = torch.randint(0, SHAPE.d_vocab, (2, PAIRS, LENGTH), generator=torch.Generator().manual_seed(1))
    corrupt = torch.where(corrupt == clean, (clean + 1) % SHAPE.d_vocab, corrupt)
    pairs = PromptPairs(clean, corrupt).on(model)
    return model, pairs, kl_from(model, pairs.clean, torch.full((PAIRS,), LENGTH - 1))


def plain_acdc(
    model: Transformer, pairs: PromptPairs, metric: KLDivergence, threshold: float, at_most: int | None = None
) -> tuple[np.ndarray, int]:
    """The edges kept (all later ones too, where `at_most` edges are tried), and how many were tried."""
    edges, runs = graph(model.config), CircuitRuns(model, pairs.clean, metric, counterfactual(model, pairs.corrupt))
    mask = torch.as_tensor(edges.visible.copy())
    current, tried = float(runs(mask[None]).double().mean()), 0
    for reader in reversed(range(len(edges.readers))):
        for writer in reversed(edges.visible[:, reader].nonzero()[0].tolist()):
            if at_most is not None and tried >= at_most:
                return mask.numpy(), tried
            mask[writer, reader] = False
            after = float(runs(mask[None]).double().mean())
            tried += 1
            if after - current < threshold:
                current = after
            else:
                mask[writer, reader] = True
    return mask.numpy(), tried


def same_edges(ours: np.ndarray, plain: np.ndarray, tried: int) -> bool:
    """Whether both decided alike about the edges that were tried, in the order they were."""
    visible = graph(SHAPE).visible
    order = [(w, r) for r in reversed(range(visible.shape[1])) for w in reversed(visible[:, r].nonzero()[0].tolist())]
    return all(ours[edge] == plain[edge] for edge in order[:tried])


def seconds_of_a_bare_pass(model: Transformer, pairs: PromptPairs, repeats: int = 10) -> float:
    """The network's own forward pass on the clean prompts, the best of several."""
    found = []
    with torch.no_grad():
        for _ in range(repeats):
            since = time.perf_counter()
            model(pairs.clean)
            _settled(model)
            found.append(time.perf_counter() - since)
    return min(found)


def timed_acdc(model: Transformer, pairs: PromptPairs, metric: KLDivergence) -> tuple[Acdc, float]:
    """Ours, and its seconds."""
    since = time.perf_counter()
    found = acdc(model, pairs, metric, THRESHOLD)
    _settled(model)
    return found, time.perf_counter() - since


def _settled(model: Transformer) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--edges", type=int)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model, pairs, metric = case(given.device)
    edges = graph(SHAPE).edges
    print(f"{edges:,} edges, {PAIRS} pairs of {LENGTH} tokens, {given.threads} threads, {given.device}")
    timed_acdc(model, pairs, metric)  # libraries set themselves up on the first products
    bare = seconds_of_a_bare_pass(model, pairs) * edges
    found, ours = timed_acdc(model, pairs, metric)
    since = time.perf_counter()
    plain, tried = plain_acdc(model, pairs, metric, THRESHOLD, given.edges)
    whole = (time.perf_counter() - since) * edges / tried
    alike = same_edges(found.mask, plain, tried)
    print(f"kept {int(found.mask.sum())} of {edges:,}; KL {found.metric:.4f} at threshold {THRESHOLD}")
    print(f"tried {found.evaluations} cuts, {found.confirmed} confirmed by whole runs; margin {found.margin:.1e}")
    print(f"ours                       {ours:8.2f} s")
    scaled = "" if tried == edges else f" (scaled up from {tried} edges)"
    print(f"a whole run for each edge  {whole:8.2f} s  {whole / ours:6.1f} times{scaled}; same edges: {alike}")
    print(f"a bare pass for each edge  {bare:8.2f} s  {bare / ours:6.1f} times")


if __name__ == "__main__":
    main()
