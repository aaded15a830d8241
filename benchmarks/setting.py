"""What is measured on: a random network in the hub's format, and pairs of prompts, in files that every side reads.

Needs torch, numpy and safetensors only, since the peers' environments have no Headwork.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor


@dataclass(frozen=True)
class Size:
    """A network of GPT-2's architecture: learned positions, LayerNorm, biases, tied embeddings."""

    layers: int = 12
    d_model: int = 768
    heads: int = 12
    d_mlp: int = 3072
    vocabulary: int = 50257
    context: int = 1024

    @property
    def d_head(self) -> int:
        return self.d_model // self.heads


@dataclass(frozen=True)
class Setting:
    """A network and pairs of `length` tokens that share the first `shared` ones."""

    size: Size = Size()
    pairs: int = 16
    length: int = 15
    shared: int = 4

    @property
    def name(self) -> str:
        """The folder that holds it."""
        s = self.size
        return f"l{s.layers}-d{s.d_model}-h{s.heads}-v{s.vocabulary}-p{self.pairs}-t{self.length}-s{self.shared}"


FULL = Setting()
QUICK = Setting(Size(layers=2, d_model=32, heads=2, d_mlp=64, vocabulary=97, context=32), pairs=3, length=6, shared=2)


def late(setting: Setting) -> Setting:
    """The same, but only the last 7 positions differ (in a short prompt, the last 2)."""
    return replace(setting, shared=setting.length - (7 if setting.length > 7 else 2))


def write(setting: Setting, work: Path) -> None:
    """Write network and prompts under `work`, unless they are there."""
    folder = work / network_name(setting.size)
    if not (folder / "config.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        save_file(_weights(setting.size), folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(_hub_configuration(setting.size), indent=1))
    prompts = work / f"{setting.name}.npz"
    if not prompts.is_file():
        new = prompts.with_suffix(".new.npz")
        np.savez(new, **_prompts(setting))
        new.replace(prompts)


def network_name(size: Size) -> str:
    """The folder of a network."""
    return "network-" + "-".join(str(v) for v in asdict(size).values())


@dataclass(frozen=True, eq=False)
class Prompts:
    """Clean and corrupt tokens `[pair, position]`; the metric is logit[correct] − logit[wrong] at the last one."""

    clean: Tensor
    corrupt: Tensor
    correct: Tensor
    wrong: Tensor


def read_prompts(setting: Setting, work: Path, device: str = "cpu") -> Prompts:
    """The pairs that `write` wrote."""
    with np.load(work / f"{setting.name}.npz") as held:
        return Prompts(**{name: torch.from_numpy(held[name]).to(device) for name in held.files})


def _prompts(setting: Setting) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(1)
    shape, top = (setting.pairs, setting.length), setting.size.vocabulary
    clean = draw.integers(0, top, shape)
    # Another token at every position that is not shared.
    corrupt = (clean + draw.integers(1, top, shape)) % top
    corrupt[:, : setting.shared] = clean[:, : setting.shared]
    correct = draw.integers(0, top, setting.pairs)
    wrong = (correct + draw.integers(1, top, setting.pairs)) % top
    return {"clean": clean, "corrupt": corrupt, "correct": correct, "wrong": wrong}


def _weights(size: Size) -> dict[str, Tensor]:
    """GPT-2's layout; gains and biases are random too, so that a difference in how they are used would show."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.02

    d, m = size.d_model, size.d_mlp
    found = {"wte.weight": drawn(size.vocabulary, d), "wpe.weight": drawn(size.context, d)}
    norms = ["ln_f", *(f"h.{layer}.ln_{i}" for layer in range(size.layers) for i in (1, 2))]
    for name in norms:
        found |= {f"{name}.weight": 1 + drawn(d), f"{name}.bias": drawn(d)}
    for layer in range(size.layers):
        maps = {"attn.c_attn": (d, 3 * d), "attn.c_proj": (d, d), "mlp.c_fc": (d, m), "mlp.c_proj": (m, d)}
        for name, (rows, columns) in maps.items():
            found |= {f"h.{layer}.{name}.weight": drawn(rows, columns), f"h.{layer}.{name}.bias": drawn(columns)}
    return {f"transformer.{name}": value for name, value in found.items()}


def _hub_configuration(size: Size) -> dict[str, object]:
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_layer": size.layers,
        "n_head": size.heads,
        "n_embd": size.d_model,
        "n_inner": size.d_mlp,
        "n_positions": size.context,
        "n_ctx": size.context,
        "vocab_size": size.vocabulary,
        "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu_new",
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    }
