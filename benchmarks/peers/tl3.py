"""TransformerLens 3: a HookedTransformer, with its default processing of the weights.

`HookedTransformer.from_pretrained` takes published names only, so the same steps are taken here one by one.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.peers.works import WORKS
from benchmarks.serve import serve
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
from transformers import AutoModelForCausalLM


def load(folder: Path, device: str) -> Any:
    """The network of a folder in the hub's format."""
    held = AutoModelForCausalLM.from_pretrained(folder)
    c = held.config
    config = HookedTransformerConfig(
        n_layers=c.n_layer,
        d_model=c.n_embd,
        n_ctx=c.n_positions,
        n_heads=c.n_head,
        d_head=c.n_embd // c.n_head,
        d_mlp=c.n_inner,
        d_vocab=c.vocab_size,
        act_fn=c.activation_function,
        eps=c.layer_norm_epsilon,
        normalization_type="LNPre",
        original_architecture="GPT2LMHeadModel",
        device=device,
    )
    model = HookedTransformer(config)
    model.load_and_process_state_dict(convert_gpt2_weights(held, config))
    return model.eval()


if __name__ == "__main__":
    serve(load, WORKS, {name: version(name) for name in ("transformer-lens", "transformers")})
