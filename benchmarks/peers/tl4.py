"""TransformerLens 4: a TransformerBridge in compatibility mode (its default processing of the weights)."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.peers.works import WORKS
from benchmarks.serve import serve
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM


def load(folder: Path, device: str) -> Any:
    """The network of a folder in the hub's format."""
    held = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    model = TransformerBridge.boot_transformers(str(folder), hf_model=held, device=device)
    model.enable_compatibility_mode(disable_warnings=True)
    return model.eval()


if __name__ == "__main__":
    serve(load, WORKS, {name: version(name) for name in ("transformer-lens", "transformers")})
