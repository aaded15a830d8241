"""Networks in the authors' own layouts, of sizes that none of theirs has, and slow forward passes written for them."""

from __future__ import annotations

import base64
import io
import itertools
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.foreign import ACTIVATIONS, State, attention, draw, layer_norm
from torch import Tensor

# --- Zhong -----------------------------------------------------------------------------------------------------------


def pizza_state(vocab: int, ctx: int, layers: int = 1, d: int = 8, heads: int = 2, mlp: int = 12) -> State:
    shapes: dict[str, tuple[int, ...]] = {
        "embed.W_E": (d, vocab),
        "pos_embed.W_pos": (ctx, d),
        "unembed.W_U": (d, vocab),
    }
    for layer in range(layers):
        here = f"blocks.{layer}"
        shapes |= {f"{here}.attn.W_{which}": (heads, d // heads, d) for which in "KQV"}
        shapes |= {f"{here}.attn.W_O": (d, d), f"{here}.attn.mask": (ctx, ctx)}
        shapes |= {f"{here}.mlp.W_in": (mlp, d), f"{here}.mlp.b_in": (mlp,)}
        shapes |= {f"{here}.mlp.W_out": (d, mlp), f"{here}.mlp.b_out": (d,)}
    return draw(shapes)


def pizza_config(modulus: int, **other: Any) -> dict[str, Any]:
    """Settings as the authors write them, their word for the direction included."""
    usual = {"attn_coeff": 1, "diff_vocab": 0, "eqn_sign": 0, "n_layers": 1, "n_heads": 2, "d_model": 8}
    usual |= {"act_fn": "ReLU", "attention_dir": "casual", "lr": 0.001, "func": None}
    return {"C": modulus, "funcs": f"lambda x: (x[0]+x[1])%{modulus}", **usual, **other}


def pizza_logits(state: State, config: dict[str, Any], tokens: Tensor) -> Tensor:
    """Every position mixes all others, with a part `1 − attn_coeff` that is the same for all."""
    x = state["embed.W_E"].T[tokens] + state["pos_embed.W_pos"]
    rate = config["attn_coeff"]
    for layer in range(config["n_layers"]):
        a, m = f"blocks.{layer}.attn", f"blocks.{layer}.mlp"
        q, k, v = (torch.einsum("bpd,hed->bphe", x, state[f"{a}.W_{which}"]) for which in "QKV")
        mixed = rate * attention(q, k, v, q.shape[-1] ** 0.5, causal=False) + (1 - rate) * v.sum(1, keepdim=True)
        x = x + mixed.flatten(2) @ state[f"{a}.W_O"].T
        act = ACTIVATIONS[{"ReLU": "relu", "GeLU": "gelu"}[config["act_fn"]]]
        x = x + act(x @ state[f"{m}.W_in"].T + state[f"{m}.b_in"]) @ state[f"{m}.W_out"].T + state[f"{m}.b_out"]
    return x @ state["unembed.W_U"]


# --- Chughtai --------------------------------------------------------------------------------------------------------


def pair_state(elements: int, embed: int = 6, hidden: int = 5) -> State:
    return draw(
        {"W_x": (elements, embed), "W_y": (elements, embed), "W": (2 * embed, hidden), "W_U": (hidden, elements)}
    )


def pair_logits(state: State, pairs: Tensor) -> Tensor:
    rows = [torch.cat([state["W_x"][x], state["W_y"][y]]) @ state["W"] for x, y in pairs.tolist()]
    return torch.stack(rows).clamp(min=0) @ state["W_U"]


# --- Gross -----------------------------------------------------------------------------------------------------------


def max_state(vocab: int = 9, ctx: int = 3, d: int = 6, norm: bool = False, layers: int = 1) -> State:
    shapes: dict[str, tuple[int, ...]] = {"W_E": (vocab, d), "W_pos": (ctx, d), "W_U": (d, vocab), "b_U": (vocab,)}
    for layer in range(layers):
        here = f"L{layer}_attn"
        shapes |= {f"{here}_W_{which}": (1, d, d) for which in "QKVO"}
        shapes |= {f"{here}_b_{which}": (1, d) for which in "QKV"} | {f"{here}_b_O": (d,)}
        shapes |= {f"L{layer}_ln1_w": (d,), f"L{layer}_ln1_b": (d,)} if norm else {}
    shapes |= {"ln_final_w": (d,), "ln_final_b": (d,)} if norm else {}
    state = draw(shapes)
    again = {f"{kind}_{which}" for kind in "Wb" for which in "QKVO"}
    return state | {name: torch.stack([state[f"L{layer}_attn_{name}"] for layer in range(layers)]) for name in again}


def max_logits(state: State, tokens: Tensor, eps: float = 1e-5) -> Tensor:
    def normed(x: Tensor, name: str) -> Tensor:
        return layer_norm(x, state[f"{name}_w"], state[f"{name}_b"], eps) if f"{name}_w" in state else x

    x = state["W_E"][tokens] + state["W_pos"]
    layers = itertools.takewhile(lambda layer: f"L{layer}_attn_W_Q" in state, itertools.count())
    for layer in layers:
        here, y = f"L{layer}_attn", normed(x, f"L{layer}_ln1")
        q, k, v = (
            torch.einsum("bpd,hde->bphe", y, state[f"{here}_W_{which}"]) + state[f"{here}_b_{which}"] for which in "QKV"
        )
        z = attention(q, k, v, q.shape[-1] ** 0.5, causal=True)
        x = x + torch.einsum("bphe,hed->bpd", z, state[f"{here}_W_O"]) + state[f"{here}_b_O"]
    return normed(x, "ln_final") @ state["W_U"] + state["b_U"]


def write_npz(path: Path, state: State) -> Path:
    np.savez(path, **{name: value.float().numpy() for name, value in state.items()})  # type: ignore[arg-type]
    return path


def write_coq(path: Path, state: State, eps: float = 1e-5) -> Path:
    """Nested lists of hexadecimal floats behind settings, as the authors export them."""

    def nested(value: Any) -> str:
        return float(value).hex() if not isinstance(value, list) else "[" + "\n;".join(map(nested, value)) + "]"

    lines = [
        "From Coq Require Import String Floats NArith.",
        "Module cfg <: CommonConfig.",
        "  Definition n_layers := 1%N.",
        f"  Definition eps := {eps.hex()}.",
        "  Definition d_mlp := @None Z.",
        '  Definition attention_dir := "causal".',
        "End cfg.",
    ]
    lines += [f"Definition {name} :=\n{nested(value.float().tolist())}." for name, value in state.items()]
    path.write_text("\n".join(lines) + "\n")
    return path


# --- minGPT in llm-viz -----------------------------------------------------------------------------------------------


def letters_file(path: Path, state: State, heads: int = 2) -> Path:
    """GPT-2 weights as that JSON file has them: linear maps turned over, everything in base64."""
    d = state["wte.weight"].shape[1]
    turned = {
        name: value.T if value.dim() == 2 and ".c_" in name else value for name, value in state.items() if value.dim()
    }
    entries: dict[str, Any] = {
        "config": {
            "model_type": "gpt-toy",
            "n_layer": 2,
            "n_head": heads,
            "n_embd": d,
            "vocab_size": len(state["wte.weight"]),
            "block_size": len(state["wpe.weight"]),
            "attn_pdrop": 0.1,
        }
    }
    for name, value in turned.items():
        data = value.float().contiguous().numpy().astype("<f4").tobytes()
        full = name if name.startswith("lm_head") else f"transformer.{name}"
        entries[full] = {
            "shape": list(value.shape),
            "dtype": "torch.float32",
            "data": base64.b64encode(data).decode(),
        }
    path.write_text(json.dumps(entries))
    return path


# --- Casper ----------------------------------------------------------------------------------------------------------


def cnn_state(a: int = 3, b: int = 4, side: int = 2, hidden: int = 6, labels: int = 3, colours: int = 1) -> State:
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (a, colours, 3, 3), "conv2.weight": (b, a, 3, 3)}
    shapes |= {"fc1.weight": (hidden, b * side * side), "fc2.weight": (labels, hidden)}
    biases: dict[str, tuple[int, ...]] = {name.replace("weight", "bias"): shape[:1] for name, shape in shapes.items()}
    return draw(shapes | biases)


def cnn_logits(state: State, images: Tensor) -> Tensor:
    def convolved(x: Tensor, name: str) -> Tensor:
        w, height = state[f"{name}.weight"], x.shape[-1] - 2
        out = torch.zeros(len(x), len(w), height, height, dtype=x.dtype)
        for i, j in itertools.product(range(height), range(height)):
            out[:, :, i, j] = torch.einsum("bchw,ochw->bo", x[:, :, i : i + 3, j : j + 3], w)
        return (out + state[f"{name}.bias"][:, None, None]).clamp(min=0)

    def pooled(x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        blocks = x[..., : 2 * half, : 2 * half].unflatten(-1, (half, 2)).unflatten(-3, (half, 2))
        return blocks.amax((-1, -3))

    x = pooled(convolved(pooled(convolved(images, "conv1")), "conv2")).flatten(1)
    x = (x @ state["fc1.weight"].T + state["fc1.bias"]).clamp(min=0)
    return x @ state["fc2.weight"].T + state["fc2.bias"]


def hostile_npz(path: Path) -> Path:
    """A `.npz` file whose array is pickled code."""

    class Code:
        def __reduce__(self) -> tuple[Any, tuple[str, ...]]:
            return print, ("code ran",)

    buffer = io.BytesIO()
    np.save(buffer, np.array([Code()], dtype=object), allow_pickle=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("W_E.npy", buffer.getvalue())
    return path
