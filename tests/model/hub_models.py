"""The oracle of the hub's families: `transformers` itself, on small random networks, with its activations by our names.

It computes rotary tables, norms and softmaxes in float32 even where the network is in float64; `lifted` gives its
modules a `torch` in which that type is float64.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

logging.getLogger("transformers").setLevel(logging.ERROR)

Reshape = Callable[[Tensor], Tensor]
Exposed = dict[str, tuple[str, str, Reshape]]
"""Our site → their module, whether its input or output is meant, and how that becomes our shape."""


@dataclass(frozen=True)
class Family:
    """A configuration of the hub, where its activations are, and the module that holds its code."""

    config: transformers.PretrainedConfig
    blocks: str
    per_layer: Exposed
    outside: Exposed

    @property
    def code(self) -> ModuleType:
        kind = self.config.model_type
        return importlib.import_module(f"transformers.models.{kind}.modeling_{kind}")


def write(family: Family, folder: Path, dtype: torch.dtype = torch.float32, **how: Any) -> None:
    """A network of this family with every parameter random, in the hub's format."""
    generator = torch.Generator().manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(family.config)
    with torch.no_grad():
        for parameter in model.parameters():
            centre = 1.0 if parameter.dim() == 1 and bool((parameter == 1).all()) else 0.0
            parameter.copy_(centre + 0.3 * torch.randn(parameter.shape, generator=generator))
    model.to(dtype).save_pretrained(folder, **how)


def read(folder: Path, dtype: torch.dtype) -> nn.Module:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


class _Lifted(ModuleType):
    """torch, but for one type."""

    float32 = float = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@contextmanager
def lifted(family: Family) -> Iterator[None]:
    """Within this, the family's code has no float32."""
    from transformers import modeling_rope_utils

    with pytest.MonkeyPatch.context() as patch:
        for module in (family.code, modeling_rope_utils):
            patch.setattr(module, "torch", _Lifted("torch"))
        patch.setattr(Tensor, "float", Tensor.double)
        yield


def activations(family: Family, model: nn.Module, tokens: Tensor) -> dict[str, Tensor]:
    """Every site that the model exposes, on `tokens [batch, pos]`."""
    found: dict[str, Tensor] = {}
    hooks = []
    modules = dict(model.named_modules())
    for name, (module, which, reshape) in _places(family).items():
        hooks.append(modules[module].register_forward_hook(_keeper(found, name, which, reshape), with_kwargs=True))
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        if hasattr(family.code, "apply_rotary_pos_emb"):
            patch.setattr(family.code, "apply_rotary_pos_emb", _keeping_rotated(family, found))
        found["logits"] = model(tokens, output_attentions=True).logits
    for hook in hooks:
        hook.remove()
    return found


def _places(family: Family) -> Exposed:
    layers = range(family.config.num_hidden_layers)
    inside = {
        f"blocks.{n}.{site}": (".".join(filter(None, (f"{family.blocks}.{n}", module))), which, reshape)
        for n in layers
        for site, (module, which, reshape) in family.per_layer.items()
    }
    return inside | family.outside


def _keeper(found: dict[str, Tensor], name: str, which: str, reshape: Reshape) -> Callable[..., None]:
    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given = args[0] if args else kwargs["hidden_states"]
        outputs = output if isinstance(output, tuple) else (output,)
        found[name] = reshape({"in": given, "out": outputs[0], "pattern": outputs[-1]}[which])

    return keep


def _keeping_rotated(family: Family, found: dict[str, Tensor]) -> Callable[..., Any]:
    original = family.code.apply_rotary_pos_emb
    layers = iter(range(family.config.num_hidden_layers))

    def keep(*args: Any, **kwargs: Any) -> Any:
        layer = next(layers)
        rotated = original(*args, **kwargs)
        for which, value in zip("qk", rotated):
            found[f"blocks.{layer}.attn.rot_{which}"] = value.transpose(1, 2)
        return rotated

    return keep


def same(x: Tensor) -> Tensor:
    return x


def split(heads: int) -> Reshape:
    return lambda x: x.unflatten(-1, (heads, -1))


def part(which: int, heads: int, headwise: bool) -> Reshape:
    """One of queries, keys and values in a fused product, whose heads go first or last."""
    shape = (heads, 3, -1) if headwise else (3, heads, -1)
    return lambda x: x.unflatten(-1, shape).select(-2 if headwise else -3, which)


def _around(norms: tuple[str, str], attention: str, mlp: str, stages: bool = True) -> Exposed:
    """What a block has in every family; `stages`: one sub-block follows the other."""
    found: Exposed = {
        "resid_pre": ("", "in", same),
        "ln1.normalized": (norms[0], "out", same),
        "attn.pattern": (attention, "pattern", same),
        "attn_out": (attention, "out", same),
        "ln2.normalized": (norms[1], "out", same),
        "mlp_out": (mlp, "out", same),
        "resid_post": ("", "out", same),
    }
    return found | ({"resid_mid": (norms[1], "in", same)} if stages else {})


def _outside(embed: str, norm: str, positions: str | None = None) -> Exposed:
    found: Exposed = {"embed": (embed, "out", same), "ln_final.normalized": (norm, "out", same)}
    return found | ({"pos_embed": (positions, "out", lambda x: x.expand(2, -1, -1))} if positions else {})


def _gpt2() -> Family:
    config = transformers.GPT2Config(
        vocab_size=13, n_positions=10, n_embd=12, n_layer=3, n_head=3, bos_token_id=0, eos_token_id=0
    )
    inside = _around(("ln_1", "ln_2"), "attn", "mlp")
    inside |= {f"attn.{which}": ("attn.c_attn", "out", part(i, 3, headwise=False)) for i, which in enumerate("qkv")}
    inside |= {
        "attn.z": ("attn.c_proj", "in", split(3)),
        "mlp.pre": ("mlp.c_fc", "out", same),
        "mlp.post": ("mlp.c_proj", "in", same),
    }
    return Family(config, "transformer.h", inside, _outside("transformer.wte", "transformer.ln_f", "transformer.wpe"))


def _gpt_neo() -> Family:
    config = transformers.GPTNeoConfig(
        vocab_size=13,
        max_position_embeddings=10,
        hidden_size=12,
        num_layers=4,
        num_heads=3,
        attention_types=[[["global", "local"], 1], [["local"], 1], [["global"], 1]],
        window_size=3,
        intermediate_size=20,
        bos_token_id=0,
        eos_token_id=0,
    )
    inside = _around(("ln_1", "ln_2"), "attn.attention", "mlp")
    inside |= {f"attn.{which}": (f"attn.attention.{which}_proj", "out", split(3)) for which in "qkv"}
    inside |= {
        "attn.z": ("attn.attention.out_proj", "in", split(3)),
        "mlp.pre": ("mlp.c_fc", "out", same),
        "mlp.post": ("mlp.c_proj", "in", same),
    }
    return Family(config, "transformer.h", inside, _outside("transformer.wte", "transformer.ln_f", "transformer.wpe"))


def _gpt_neox(parallel: bool, bias: bool = True) -> Family:
    config = transformers.GPTNeoXConfig(
        vocab_size=13,
        max_position_embeddings=10,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=20,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5},
        use_parallel_residual=parallel,
        attention_bias=bias,
        bos_token_id=0,
        eos_token_id=0,
    )
    inside = _around(("input_layernorm", "post_attention_layernorm"), "attention", "mlp", stages=not parallel)
    for i, which in enumerate("qkv"):
        inside[f"attn.{which}"] = ("attention.query_key_value", "out", part(i, 3, headwise=True))
    inside |= {
        "attn.z": ("attention.dense", "in", split(3)),
        "mlp.pre": ("mlp.dense_h_to_4h", "out", same),
        "mlp.post": ("mlp.dense_4h_to_h", "in", same),
    }
    return Family(config, "gpt_neox.layers", inside, _outside("gpt_neox.embed_in", "gpt_neox.final_layer_norm"))


def _llama(kind: type[transformers.PretrainedConfig], qk_norm: bool = False, **fields: Any) -> Family:
    config = kind(
        **{
            "vocab_size": 13,
            "max_position_embeddings": 10,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 4,
            "intermediate_size": 20,
            "bos_token_id": 0,
            "eos_token_id": 0,
            **fields,
        }
    )
    kv = fields.get("num_key_value_heads", 2)
    inside = _around(("input_layernorm", "post_attention_layernorm"), "self_attn", "mlp")
    for which, heads in (("q", 4), ("k", kv), ("v", kv)):
        inside[f"attn.{which}"] = (f"self_attn.{which}_proj", "out", split(heads))
    if qk_norm:
        inside |= {f"attn.{which}_norm.normalized": (f"self_attn.{which}_norm", "out", same) for which in "qk"}
    inside |= {
        "attn.z": ("self_attn.o_proj", "in", split(4)),
        "mlp.pre": ("mlp.gate_proj", "out", same),
        "mlp.pre_linear": ("mlp.up_proj", "out", same),
        "mlp.post": ("mlp.down_proj", "in", same),
    }
    return Family(config, "model.layers", inside, _outside("model.embed_tokens", "model.norm"))


_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 50.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 20,
}
_WINDOW = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}

FAMILIES: dict[str, Callable[[], Family]] = {
    "gpt2": _gpt2,
    "gpt-neo": _gpt_neo,
    "gpt-neox": lambda: _gpt_neox(parallel=True),
    "gpt-neox-sequential": lambda: _gpt_neox(parallel=False, bias=False),
    "llama": lambda: _llama(transformers.LlamaConfig),
    "llama3": lambda: _llama(transformers.LlamaConfig, rope_parameters=_LLAMA3, head_dim=12, tie_word_embeddings=True),
    "llama-biases": lambda: _llama(
        transformers.LlamaConfig, attention_bias=True, mlp_bias=True, num_key_value_heads=4, rms_norm_eps=0.01
    ),
    "mistral": lambda: _llama(transformers.MistralConfig, sliding_window=None),
    "mistral-window": lambda: _llama(transformers.MistralConfig, sliding_window=4, head_dim=6),
    "qwen2": lambda: _llama(transformers.Qwen2Config, tie_word_embeddings=True),
    "qwen2-window": lambda: _llama(transformers.Qwen2Config, **_WINDOW),
    "qwen3": lambda: _llama(transformers.Qwen3Config, qk_norm=True, head_dim=8),
    "qwen3-window": lambda: _llama(transformers.Qwen3Config, qk_norm=True, attention_bias=True, **_WINDOW),
}
