"""Other people's layouts as slow, hand-written forward passes that read sizes off the tensors, and random checkpoints.

Nothing here uses the package: these are the oracles of the converters.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable

import torch
from torch import Tensor

State = dict[str, Tensor]
Activation = Callable[[Tensor], Tensor]

ACTIVATIONS: dict[str, Activation] = {
    "relu": lambda x: x.clamp(min=0),
    "gelu": lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
    "gelu_new": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "solu": lambda x: x * torch.exp(x) / torch.exp(x).sum(-1, keepdim=True),
}


def draw(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> State:
    """Random float64 tensors that round to float32 without loss, so that a checkpoint of either type is the same."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).double() for name, shape in shapes.items()}


def layer_norm(x: Tensor, w: Tensor | float, b: Tensor | float, eps: float) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    return x / torch.sqrt((x**2).mean(-1, keepdim=True) + eps) * w + b


def attention(q: Tensor, k: Tensor, v: Tensor, divisor: float, causal: bool, window: int = 1000) -> Tensor:
    """Each of `[batch, pos, head, d_head]`; a query sees the last `window` keys."""
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / divisor
    if causal:
        length = scores.shape[-1]
        hidden = torch.ones(length, length).triu(1) + torch.ones(length, length).tril(-window)
        scores = scores.masked_fill(hidden.bool(), -math.inf)
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)


# --- TransformerLens -------------------------------------------------------------------------------------------------


def lens_state(
    *,
    layers: int = 2,
    d: int = 8,
    heads: int = 2,
    d_head: int = 4,
    vocab: int = 11,
    out: int = 11,
    ctx: int = 7,
    mlp: int = 0,
    gated: bool = False,
    neuron_norm: bool = False,
    qk_norm: bool = False,
    norm: str | None = None,
    kv: int | None = None,
    table: bool = True,
    rotary: tuple[int, float, bool] | None = None,
    seed: int = 0,
) -> State:
    """A random HookedTransformer state dict; `rotary` is (rotary_dim, base, adjacent pairs)."""
    shapes: dict[str, tuple[int, ...]] = {"embed.W_E": (vocab, d)}
    if table:
        shapes["pos_embed.W_pos"] = (ctx, d)
    mark, kv_heads = ("", heads) if kv is None else ("_", kv)
    for layer in range(layers):
        a = f"blocks.{layer}.attn"
        shapes |= {f"{a}.W_Q": (heads, d, d_head), f"{a}.b_Q": (heads, d_head)}
        for which in "KV":
            shapes |= {f"{a}.{mark}W_{which}": (kv_heads, d, d_head), f"{a}.{mark}b_{which}": (kv_heads, d_head)}
        shapes |= {f"{a}.W_O": (heads, d_head, d), f"{a}.b_O": (d,)}
        if qk_norm:
            shapes |= {f"{a}.q_norm.w": (d_head,), f"{a}.k_norm.w": (d_head,)}
        if mlp:
            m = f"blocks.{layer}.mlp"
            shapes |= {f"{m}.W_in": (d, mlp), f"{m}.b_in": (mlp,), f"{m}.W_out": (mlp, d), f"{m}.b_out": (d,)}
            if gated:
                shapes[f"{m}.W_gate"] = (d, mlp)
            if neuron_norm:
                shapes |= {f"{m}.ln.w": (mlp,), f"{m}.ln.b": (mlp,)}
    if norm:
        places = [f"blocks.{layer}.ln{n}" for layer in range(layers) for n in ((1, 2) if mlp else (1,))]
        for place in [*places, "ln_final"]:
            shapes |= {f"{place}.w": (d,)} | ({f"{place}.b": (d,)} if norm == "LN" else {})
    state = draw(shapes | {"unembed.W_U": (d, out), "unembed.b_U": (out,)}, seed)
    for layer in range(layers):
        a = f"blocks.{layer}.attn"
        mask = torch.ones(ctx, ctx, dtype=torch.bool).tril()
        state |= {f"{a}.mask": mask, f"{a}.IGNORE": torch.tensor(-math.inf)}
        if rotary:
            state |= dict(zip((f"{a}.rotary_sin", f"{a}.rotary_cos"), rotary_tables(ctx, *rotary)))
    return state


def rotary_tables(ctx: int, r: int, base: float, adjacent: bool) -> tuple[Tensor, Tensor]:
    angles = torch.tensor([[p / base ** (2 * i / r) for i in range(r // 2)] for p in range(ctx)], dtype=torch.float64)
    angles = angles.repeat_interleave(2, 1) if adjacent else torch.cat([angles, angles], 1)
    return angles.sin().float(), angles.cos().float()


def lens_logits(
    state: State,
    tokens: Tensor,
    *,
    act: str = "relu",
    norm: str | None = None,
    eps: float = 1e-5,
    causal: bool = True,
    shortformer: bool = False,
    parallel: bool = False,
    rotary: tuple[int, float, bool] | None = None,
    divisor: float | None = None,
    windows: tuple[int, ...] = (),
) -> Tensor:
    def normed(x: Tensor, place: str) -> Tensor:
        w = state.get(f"{place}.w", torch.ones(1, dtype=torch.float64))
        if norm in ("LN", "LNPre"):
            return layer_norm(x, w, state.get(f"{place}.b", torch.zeros(1)), eps)
        return x / torch.sqrt((x**2).mean(-1, keepdim=True) + eps) * w if norm else x

    length = tokens.shape[1]
    x = state["embed.W_E"][tokens]
    places = state["pos_embed.W_pos"][:length] if "pos_embed.W_pos" in state else 0.0
    x = x if shortformer else x + places
    layers = 1 + max((int(name.split(".")[1]) for name in state if name.startswith("blocks.")), default=-1)
    for layer in range(layers):
        a, m = f"blocks.{layer}.attn", f"blocks.{layer}.mlp"
        grouped = "_" if f"{a}._W_K" in state else ""
        marks = {"Q": "", "K": grouped, "V": grouped}
        value_input = normed(x, f"blocks.{layer}.ln1")
        inputs = {"Q": value_input + places, "K": value_input + places} if shortformer else {}
        q, k, v = (
            torch.einsum("bpd,hde->bphe", inputs.get(which, value_input), state[f"{a}.{mark}W_{which}"])
            + state[f"{a}.{mark}b_{which}"]
            for which, mark in marks.items()
        )
        if f"{a}.q_norm.w" in state:
            q, k = (
                t / torch.sqrt((t**2).mean(-1, keepdim=True) + eps) * state[f"{a}.{which}_norm.w"]
                for t, which in ((q, "q"), (k, "k"))
            )
        if rotary:
            q, k = turned(q, *rotary), turned(k, *rotary)
        k, v = (t.repeat_interleave(q.shape[2] // t.shape[2], 2) for t in (k, v))
        z = attention(q, k, v, divisor or math.sqrt(q.shape[-1]), causal, windows[layer] if windows else length)
        attn_out = torch.einsum("bphe,hed->bpd", z, state[f"{a}.W_O"]) + state[f"{a}.b_O"]
        middle = x if parallel else x + attn_out
        if f"{m}.W_in" in state:
            y = normed(middle, f"blocks.{layer}.ln2")
            if f"{m}.W_gate" in state:
                post = ACTIVATIONS[act](y @ state[f"{m}.W_gate"]) * (y @ state[f"{m}.W_in"]) + state[f"{m}.b_in"]
            else:
                post = ACTIVATIONS[act.removesuffix("_ln")](y @ state[f"{m}.W_in"] + state[f"{m}.b_in"])
            if act.endswith("_ln"):
                post = layer_norm(post, state.get(f"{m}.ln.w", 1.0), state.get(f"{m}.ln.b", 0.0), eps)
            middle = middle + post @ state[f"{m}.W_out"] + state[f"{m}.b_out"]
        x = middle + attn_out if parallel else middle
    return normed(x, "ln_final") @ state["unembed.W_U"] + state["unembed.b_U"]


def turned(x: Tensor, r: int, base: float, adjacent: bool) -> Tensor:
    """`[batch, pos, head, d_head]` with the first r entries of each head rotated."""
    out = x.clone()
    for p in range(x.shape[1]):
        for i in range(r // 2):
            a, b = (2 * i, 2 * i + 1) if adjacent else (i, i + r // 2)
            angle = p / base ** (2 * i / r)
            out[:, p, :, a] = x[:, p, :, a] * math.cos(angle) - x[:, p, :, b] * math.sin(angle)
            out[:, p, :, b] = x[:, p, :, b] * math.cos(angle) + x[:, p, :, a] * math.sin(angle)
    return out


# --- Nanda -----------------------------------------------------------------------------------------------------------


def nanda_state(*, mlp: int = 12, prefix: str = "blocks", seed: int = 0) -> State:
    d, heads, d_head, vocab, ctx = 8, 2, 3, 11, 7
    shapes: dict[str, tuple[int, ...]] = {"embed.W_E": (d, vocab), "pos_embed.W_pos": (ctx, d)}
    for layer in range(2):
        a, m = f"{prefix}.{layer}.attn", f"{prefix}.{layer}.mlp"
        shapes |= {f"{a}.W_{which}": (heads, d_head, d) for which in "QKV"} | {f"{a}.W_O": (d, heads * d_head)}
        if mlp:
            shapes |= {f"{m}.W_in": (mlp, d), f"{m}.b_in": (mlp,), f"{m}.W_out": (d, mlp), f"{m}.b_out": (d,)}
    state = draw(shapes | {"unembed.W_U": (d, vocab)}, seed)
    return state | {f"{prefix}.{layer}.attn.mask": torch.ones(ctx, ctx).tril() for layer in range(2)}


def nanda_logits(state: State, tokens: Tensor, prefix: str = "blocks", act: str = "relu") -> Tensor:
    x = torch.stack([state["embed.W_E"][:, row].T for row in tokens]) + state["pos_embed.W_pos"][: tokens.shape[1]]
    for layer in range(2):
        a, m = f"{prefix}.{layer}.attn", f"{prefix}.{layer}.mlp"
        q, k, v = (torch.einsum("hed,bpd->bphe", state[f"{a}.W_{which}"], x) for which in "QKV")
        z = attention(q, k, v, math.sqrt(q.shape[-1]), causal=True)
        x = x + torch.einsum("df,bpf->bpd", state[f"{a}.W_O"], z.flatten(2))
        if f"{m}.W_in" in state:
            post = ACTIVATIONS[act](torch.einsum("md,bpd->bpm", state[f"{m}.W_in"], x) + state[f"{m}.b_in"])
            x = x + torch.einsum("dm,bpm->bpd", state[f"{m}.W_out"], post) + state[f"{m}.b_out"]
    return x @ state["unembed.W_U"]


# --- GPT-2 -----------------------------------------------------------------------------------------------------------

GPT2_CONFIG = {
    "model_type": "gpt2",
    "vocab_size": 11,
    "n_positions": 7,
    "n_embd": 8,
    "n_layer": 2,
    "n_head": 2,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-3,
}


def gpt2_state(*, prefix: str = "", seed: int = 0) -> State:
    d, vocab, ctx = 8, 11, 7
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (vocab, d), "wpe.weight": (ctx, d)}
    for layer in range(2):
        h = f"h.{layer}"
        shapes |= {f"{h}.{norm}.{part}": (d,) for norm in ("ln_1", "ln_2") for part in ("weight", "bias")}
        linear = {"attn.c_attn": (d, 3 * d), "attn.c_proj": (d, d), "mlp.c_fc": (d, 4 * d), "mlp.c_proj": (4 * d, d)}
        for name, (inputs, outputs) in linear.items():
            shapes |= {f"{h}.{name}.weight": (inputs, outputs), f"{h}.{name}.bias": (outputs,)}
    state = draw(shapes | {"ln_f.weight": (d,), "ln_f.bias": (d,)}, seed)
    for layer in range(2):
        state |= {f"h.{layer}.attn.bias": torch.ones(1, 1, ctx, ctx).tril()}
    return {prefix + name: tensor for name, tensor in state.items()}


def gpt2_logits(state: State, tokens: Tensor, heads: int = 2, eps: float = 1e-3, act: str = "gelu_new") -> Tensor:
    state = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}

    def linear(x: Tensor, name: str) -> Tensor:
        return torch.einsum("bpi,io->bpo", x, state[f"{name}.weight"]) + state[f"{name}.bias"]

    def normed(x: Tensor, name: str) -> Tensor:
        return layer_norm(x, state[f"{name}.weight"], state[f"{name}.bias"], eps)

    x = state["wte.weight"][tokens] + state["wpe.weight"][: tokens.shape[1]]
    for layer in range(2):
        h = f"h.{layer}"
        parts = linear(normed(x, f"{h}.ln_1"), f"{h}.attn.c_attn").chunk(3, -1)
        q, k, v = (part.unflatten(-1, (heads, -1)) for part in parts)
        x = x + linear(attention(q, k, v, math.sqrt(q.shape[-1]), causal=True).flatten(2), f"{h}.attn.c_proj")
        x = x + linear(ACTIVATIONS[act](linear(normed(x, f"{h}.ln_2"), f"{h}.mlp.c_fc")), f"{h}.mlp.c_proj")
    return normed(x, "ln_f") @ state.get("lm_head.weight", state["wte.weight"]).T


# --- llama2.c --------------------------------------------------------------------------------------------------------

LLAMA2C_ARGS = {
    "dim": 12,
    "hidden_dim": 10,
    "n_layers": 2,
    "n_heads": 6,
    "n_kv_heads": 3,
    "vocab_size": 11,
    "max_seq_len": 7,
}


def llama2c_state(*, tied: bool = True, seed: int = 0) -> State:
    """The state dict of llama2.c's `.pt` checkpoint."""
    d, wide, vocab, kv = 12, 10, 11, 6
    shapes: dict[str, tuple[int, ...]] = {"tok_embeddings.weight": (vocab, d)}
    for layer in range(2):
        a, f = f"layers.{layer}.attention", f"layers.{layer}.feed_forward"
        shapes |= {f"{a}.wq.weight": (d, d), f"{a}.wk.weight": (kv, d), f"{a}.wv.weight": (kv, d)}
        shapes |= {f"{a}.wo.weight": (d, d), f"{f}.w1.weight": (wide, d), f"{f}.w2.weight": (d, wide)}
        shapes |= {f"{f}.w3.weight": (wide, d), f"{a}_norm.weight": (d,), f"layers.{layer}.ffn_norm.weight": (d,)}
    state = draw(shapes | {"norm.weight": (d,), "output.weight": (vocab, d)}, seed)
    return state | ({"output.weight": state["tok_embeddings.weight"].clone()} if tied else {})


def llama2c_bin(state: State, tied: bool = True) -> bytes:
    """The `.bin` export of such a state dict: kind by kind, in float32, with rotary tables of zeros."""
    args = LLAMA2C_ARGS | {"vocab_size": 11 if tied else -11}
    kinds = ["attention_norm", "attention.wq", "attention.wk", "attention.wv", "attention.wo", "ffn_norm"]
    kinds += ["feed_forward.w1", "feed_forward.w2", "feed_forward.w3"]
    parts = [state["tok_embeddings.weight"]]
    parts += [state[f"layers.{layer}.{kind}.weight"] for kind in kinds for layer in range(2)]
    parts += [state["norm.weight"], torch.zeros(2, 7, 1), *([] if tied else [state["output.weight"]])]
    return struct.pack("<7i", *args.values()) + b"".join(part.float().numpy().tobytes() for part in parts)


def llama2c_logits(state: State, tokens: Tensor) -> Tensor:
    def rms(x: Tensor, name: str) -> Tensor:
        return x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-5) * state[f"{name}.weight"]

    x = state["tok_embeddings.weight"][tokens]
    for layer in range(2):
        a, f = f"layers.{layer}.attention", f"layers.{layer}.feed_forward"
        y = rms(x, f"{a}_norm")
        q, k, v = ((y @ state[f"{a}.w{which}.weight"].T).unflatten(-1, (-1, 2)) for which in "qkv")
        q, k = (turned(t, 2, 10000.0, adjacent=True) for t in (q, k))
        k, v = (t.repeat_interleave(2, 2) for t in (k, v))
        x = x + attention(q, k, v, math.sqrt(2), causal=True).flatten(2) @ state[f"{a}.wo.weight"].T
        y = rms(x, f"layers.{layer}.ffn_norm")
        post = ACTIVATIONS["silu"](y @ state[f"{f}.w1.weight"].T) * (y @ state[f"{f}.w3.weight"].T)
        x = x + post @ state[f"{f}.w2.weight"].T
    return rms(x, "norm") @ state["output.weight"].T
