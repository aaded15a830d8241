"""Time and memory of edge attribution on a randomly initialised network of GPT-2 small's shape.

16 prompt pairs of 15 tokens that differ from the fifth token on; float32; EAP, then EAP-IG with 5 steps.

    python benchmarks/edge_attribution.py [--threads 2] [--device cpu]

Peak memory is the whole process's, weights and libraries included (on a GPU: the tensors'); it only grows, so that each
row shows the most of all rows so far.
"""

from __future__ import annotations

import argparse
import resource
import time

import torch

from headwork.engine.metrics import LogitDifference
from headwork.methods.edge_attribution import Variant, bytes_per_pair, edge_attribution
from headwork.methods.graph import graph
from headwork.model.config import TransformerConfig
from headwork.model.initialise import initialise

PAIRS, LENGTH, SHARED = 16, 15, 4

GPT2_SMALL = TransformerConfig(
    n_layers=12,
    d_model=768,
    n_heads=12,
    d_head=64,
    d_mlp=3072,
    d_vocab=50257,
    n_ctx=1024,
    norm="layernorm",
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
    tied=True,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model = initialise(GPT2_SMALL, 0, std=0.02).to(given.device)
    generator = torch.Generator().manual_seed(1)
    clean, corrupt = torch.randint(0, GPT2_SMALL.d_vocab, (2, PAIRS, LENGTH), generator=generator)
    corrupt[:, :SHARED] = clean[:, :SHARED]
    answers = torch.randint(0, GPT2_SMALL.d_vocab, (2, PAIRS), generator=generator)
    metric = LogitDifference(torch.full((PAIRS,), LENGTH - 1), *answers)
    with torch.no_grad():
        model(clean.to(given.device))  # libraries set themselves up on the first product
    per_pair = bytes_per_pair(model, LENGTH, SHARED, LENGTH - 1) / 1e6
    print(f"{graph(GPT2_SMALL).edges:,} edges, {PAIRS} pairs, {given.threads} threads, {given.device}")
    print(f"before: {peak(given.device)}; reckoned with {per_pair:.0f} MB for a pair")
    rows: tuple[tuple[str, Variant], ...] = (("EAP", "eap"), ("EAP-IG, 5 steps", "inputs"))
    for name, variant in rows:
        begun = time.perf_counter()
        scores = edge_attribution(model, clean, corrupt, metric, variant=variant, steps=5)
        taken = time.perf_counter() - begun
        print(f"{name:16} {taken:6.2f} s   peak {peak(given.device)}   sum of |scores| {float(abs(scores).sum()):.6g}")


def peak(device: str) -> str:
    if device == "cpu":
        return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9:.2f} GB"
    return f"{torch.cuda.max_memory_allocated() / 1e9:.2f} GB"


if __name__ == "__main__":
    main()
