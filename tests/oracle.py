"""The slow, obvious twin of the forward pass: one example, one head, one position at a time, nothing fused.

It shares no code with the package but the names under which weights are found.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from headwork.model.config import TransformerConfig
from headwork.model.transformer import Attention, Block, Norm, Transformer


def oracle_sites(model: Transformer, tokens: Tensor) -> dict[str, Tensor]:
    """Every site of the network on `tokens [batch, pos]`, in the network's own dtype."""
    with torch.no_grad():
        examples = [_one(model, row.tolist()) for row in tokens]
    return {name: torch.stack([example[name] for example in examples]) for name in examples[0]}


def _one(model: Transformer, tokens: list[int]) -> dict[str, Tensor]:
    c = model.config
    found: dict[str, Tensor] = {}
    stream = [model.W_E[token] for token in tokens]
    found["embed"] = torch.stack(stream)
    places = [torch.zeros(c.d_model, dtype=model.dtype) for _ in tokens]
    if c.positions in ("learned", "shortformer"):
        table = [model.W_pos[p] for p in range(len(tokens))]
        found["pos_embed"] = torch.stack(table)
        if c.positions == "learned":
            stream = [x + place for x, place in zip(stream, table)]
        else:
            places = table
    for layer, block in enumerate(model.layers):
        sites, stream = _block(c, block, stream, places, tokens)
        found |= {f"blocks.{layer}.{name}": value for name, value in sites.items()}
    final, sites = _normed(c, model.ln_final, stream)
    found |= {f"ln_final.{name}": value for name, value in sites.items()}
    bias = model.unembed.bias if c.unembed_bias else torch.zeros(c.outputs, dtype=model.dtype)
    found["logits"] = torch.stack([x @ model.W_U + bias for x in final])
    return found


def _block(
    c: TransformerConfig, block: Block, stream: list[Tensor], places: list[Tensor], tokens: list[int]
) -> tuple[dict[str, Tensor], list[Tensor]]:
    found = {"resid_pre": torch.stack(stream)}
    normed, sites = _normed(c, block.ln1, stream)
    found |= {f"ln1.{name}": value for name, value in sites.items()}
    sites, attn_out = _attention(c, block.attn, normed, places, tokens, block.layer)
    found |= {f"attn.{name}": value for name, value in sites.items()}
    found["attn_out"] = torch.stack(attn_out)
    after = [x + a for x, a in zip(stream, attn_out)]
    if c.d_mlp > 0:
        read = stream if c.parallel else after
        if not c.parallel:
            found["resid_mid"] = torch.stack(after)
        normed, sites = _normed(c, block.ln2, read)
        found |= {f"ln2.{name}": value for name, value in sites.items()}
        sites, mlp_out = _mlp(c, block, normed)
        found |= {f"mlp.{name}": value for name, value in sites.items()}
        found["mlp_out"] = torch.stack(mlp_out)
        after = [x + m for x, m in zip(after, mlp_out)]
    found["resid_post"] = torch.stack(after)
    return found, after


def _normed(
    c: TransformerConfig, norm: torch.nn.Module, stream: list[Tensor]
) -> tuple[list[Tensor], dict[str, Tensor]]:
    if c.norm == "none":
        return stream, {}
    assert isinstance(norm, Norm)
    outputs, scales = zip(*(_norm_of(x, norm.w, norm.b, c.norm_eps, c.norm == "layernorm") for x in stream))
    return list(outputs), {"scale": torch.stack(scales), "normalized": torch.stack(outputs)}


def _norm_of(x: Tensor, w: Tensor, b: Tensor | None, eps: float, centred: bool) -> tuple[Tensor, Tensor]:
    mean = sum(x.tolist()) / len(x) if centred else 0.0
    variance = sum((value - mean) ** 2 for value in x.tolist()) / len(x)
    divisor = math.sqrt(variance + eps)
    out = (x - mean) / divisor * w
    return (out if b is None else out + b), torch.tensor([divisor], dtype=x.dtype)


def _attention(
    c: TransformerConfig, attn: Attention, normed: list[Tensor], places: list[Tensor], tokens: list[int], layer: int
) -> tuple[dict[str, Tensor], list[Tensor]]:
    length, shared = len(tokens), c.n_heads // (c.n_kv_heads or c.n_heads)
    kv_heads = c.n_heads // shared
    read = [x + place for x, place in zip(normed, places)]
    q = [[read[p] @ attn.W_Q[h] + attn.b_Q[h] for h in range(c.n_heads)] for p in range(length)]
    k = [[read[p] @ attn.W_K[h] + attn.b_K[h] for h in range(kv_heads)] for p in range(length)]
    v = [[normed[p] @ attn.W_V[h] + attn.b_V[h] for h in range(kv_heads)] for p in range(length)]
    found = {"q": _grid(q), "k": _grid(k), "v": _grid(v)}
    if c.qk_norm:
        for which, heads, norm in (("q", q, attn.q_norm), ("k", k, attn.k_norm)):
            both = [[_norm_of(x, norm.w, None, c.norm_eps, False) for x in row] for row in heads]
            heads[:] = [[out for out, _ in row] for row in both]
            found[f"{which}_norm.scale"] = _grid([[scale for _, scale in row] for row in both])
            found[f"{which}_norm.normalized"] = _grid(heads)
    if c.positions == "rotary":
        q = [[_turned(c, x, p) for x in row] for p, row in enumerate(q)]
        k = [[_turned(c, x, p) for x in row] for p, row in enumerate(k)]
        found |= {"rot_q": _grid(q), "rot_k": _grid(k)}
    factor = 1 / math.sqrt(c.d_head) if c.attention_scale is None else c.attention_scale
    scores = torch.full((c.n_heads, length, length), -math.inf, dtype=normed[0].dtype)
    pattern = torch.zeros_like(scores)
    z = [[torch.zeros(c.d_head, dtype=normed[0].dtype) for _ in range(c.n_heads)] for _ in range(length)]
    for h in range(c.n_heads):
        for query in range(length):
            seen = [key for key in range(length) if _sees(c, tokens, query, key, layer)]
            for key in seen:
                scores[h, query, key] = sum((q[query][h] * k[key][h // shared]).tolist()) * factor
            total = sum(math.exp(scores[h, query, key]) for key in seen)
            for key in seen:
                softmax = math.exp(scores[h, query, key]) / total
                pattern[h, query, key] = c.attention_mix * softmax + (1 - c.attention_mix)
                z[query][h] = z[query][h] + pattern[h, query, key] * v[key][h // shared]
    result = [[z[p][h] @ attn.W_O[h] for h in range(c.n_heads)] for p in range(length)]
    bias = attn.out.bias if c.out_bias else torch.zeros(c.d_model, dtype=normed[0].dtype)
    found |= {"attn_scores": scores, "pattern": pattern, "z": _grid(z), "result": _grid(result)}
    return found, [torch.stack(row).sum(0) + bias for row in result]


def _sees(c: TransformerConfig, tokens: list[int], query: int, key: int, layer: int) -> bool:
    if layer in c.local_layers and c.window is not None and abs(query - key) >= c.window:
        return False
    return (key <= query or not c.causal) and (c.pad_token is None or tokens[key] != c.pad_token)


def _turned(c: TransformerConfig, x: Tensor, position: int) -> Tensor:
    r = c.d_head if c.rotary_dim is None else c.rotary_dim
    out = x.clone()
    for i in range(r // 2):
        a, b = (i, i + r // 2) if c.rotary_style == "half" else (2 * i, 2 * i + 1)
        angle = position * _frequency(c, c.rotary_base ** (-2 * i / r))
        out[a] = x[a] * math.cos(angle) - x[b] * math.sin(angle)
        out[b] = x[a] * math.sin(angle) + x[b] * math.cos(angle)
    return out


def _frequency(c: TransformerConfig, plain: float) -> float:
    """Llama 3.1's rule, by wavelength: long waves are stretched, short ones kept, those between interpolated."""
    if c.rotary_factor is None:
        return plain
    wavelength = 2 * math.pi / plain
    longest, shortest = c.rotary_trained_ctx / c.rotary_low_factor, c.rotary_trained_ctx / c.rotary_high_factor
    if wavelength > longest:
        return plain / c.rotary_factor
    if wavelength < shortest:
        return plain
    smooth = (c.rotary_trained_ctx / wavelength - c.rotary_low_factor) / (c.rotary_high_factor - c.rotary_low_factor)
    return (1 - smooth) * plain / c.rotary_factor + smooth * plain


def _mlp(c: TransformerConfig, block: Block, normed: list[Tensor]) -> tuple[dict[str, Tensor], list[Tensor]]:
    inward, outward = block.mlp.inward, block.mlp.outward
    pre = [_affine(inward, x)[: c.d_mlp] for x in normed]
    post = [torch.tensor([_activation(c, value, x.tolist()) for value in x.tolist()], dtype=x.dtype) for x in pre]
    found = {"pre": torch.stack(pre)}
    if c.gated_mlp:
        linear = [_affine(inward, x)[c.d_mlp :] for x in normed]
        post = [gate * x for gate, x in zip(post, linear)]
        found["pre_linear"] = torch.stack(linear)
    if c.activation == "solu_ln":
        found["mid"] = torch.stack(post)
        post, scales = zip(*(_norm_of(x, block.mlp.ln.w, block.mlp.ln.b, c.norm_eps, True) for x in post))
        found |= {"ln.scale": torch.stack(scales), "ln.normalized": torch.stack(post)}
    found["post"] = torch.stack(post)
    return found, [_affine(outward, x) for x in post]


def _affine(linear: torch.nn.Linear, x: Tensor) -> Tensor:
    out = (linear.weight * x).sum(1)
    return out if linear.bias is None else out + linear.bias


def _activation(c: TransformerConfig, x: float, all_neurons: list[float]) -> float:
    if c.activation in ("solu", "solu_ln"):
        return x * math.exp(x) / sum(map(math.exp, all_neurons))
    if c.activation == "relu":
        return max(x, 0.0)
    if c.activation == "silu":
        return x / (1 + math.exp(-x))
    if c.activation == "gelu":
        return x * (1 + math.erf(x / math.sqrt(2))) / 2
    return x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def _grid(rows: list[list[Tensor]]) -> Tensor:
    return torch.stack([torch.stack(row) for row in rows])
