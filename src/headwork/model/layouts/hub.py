"""What the layouts of the Hugging Face hub share: names of activations, heads, rotary settings, plain linear maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from headwork.errors import UserError
from headwork.model.layouts.converted import Settings, Tensors

ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


def unprefixed(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The tensors by their names in the bare model: files hold it with and without its head."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def n_heads(settings: Settings, key: str, width: int, what: str) -> int:
    """How many heads share `width` entries. Raises `UserError` unless the configuration gives a divisor of it."""
    heads = settings.choose("n_heads", None, "", key)
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise UserError(f"The configuration has {key} = {heads!r}; it must be a divisor of {what} = {width}.")
    return heads


def n_ctx(settings: Settings) -> int:
    """How many positions a network without a position table reads. Raises `UserError` where that is not stated."""
    positions = settings.choose("n_ctx", None, "", "max_position_embeddings")
    if not isinstance(positions, int) or positions < 1:
        raise UserError(
            f"The configuration has max_position_embeddings = {positions!r}; it must be a whole number, 1 or more."
        )
    return positions


def rotary(
    settings: Settings, d_head: int, base: str = "rope_theta", part: str = "partial_rotary_factor", turned: float = 1.0
) -> dict[str, Any]:
    """Our rotary fields. `base` and `part` are the older keys, beside `rope_parameters` and `rope_scaling`.

    `turned` is the share of each head's entries that the family turns where nothing is stated. Raises `UserError` for
    a kind of scaling that is not supported.
    """
    stated: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):
        given = settings.raw(key)
        if given is not None and not isinstance(given, Mapping):
            raise UserError(f"The configuration has {key} = {given!r}; it must be an object or null.")
        stated |= given or {}
    kind = stated.get("rope_type", stated.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise UserError(
            f"The configuration has the rotary scaling {kind!r}, which is not supported; default and llama3 are."
        )
    theta = stated.get("rope_theta", settings.raw(base))
    share = _number("partial_rotary_factor", stated.get("partial_rotary_factor", settings.raw(part, turned)))
    found: dict[str, Any] = {
        "positions": "rotary",
        "rotary_dim": settings.choose("rotary_dim", int(d_head * share), ""),
        "rotary_base": settings.choose(
            "rotary_base",
            10_000.0 if theta is None else _number("rope_theta", theta),
            "the configuration does not say, this is the family's default" if theta is None else "",
        ),
    }
    if kind == "llama3":
        trained = stated.get("original_max_position_embeddings", settings.raw("max_position_embeddings"))
        found |= {
            "rotary_factor": _number("factor", stated.get("factor")),
            "rotary_low_factor": _number("low_freq_factor", stated.get("low_freq_factor")),
            "rotary_high_factor": _number("high_freq_factor", stated.get("high_freq_factor")),
            "rotary_trained_ctx": int(_number("original_max_position_embeddings", trained)),
        }
    return found


def linear(tensors: Tensors, theirs: str, ours: str, inputs: int, outputs: int, bias: bool) -> dict[str, Tensor]:
    """A linear map that is stored as `[out, in]`, as ours are."""
    found = {f"{ours}.weight": tensors.take(f"{theirs}.weight", outputs, inputs)}
    return found | ({f"{ours}.bias": tensors.take(f"{theirs}.bias", outputs)} if bias else {})


def norm(tensors: Tensors, theirs: str, ours: str, width: int, bias: bool) -> dict[str, Tensor]:
    """A norm's gain, and its bias where it has one."""
    found = {f"{ours}.w": tensors.take(f"{theirs}.weight", width)}
    return found | ({f"{ours}.b": tensors.take(f"{theirs}.bias", width)} if bias else {})


def unembedding(tensors: Tensors, name: str, tied: bool, d_vocab: int, d_model: int) -> dict[str, Tensor]:
    """The unembedding; nothing where it is the embedding, of which some files hold a copy under this name."""
    if tied:
        tensors.peek(name)
        return {}
    return {"unembed.weight": tensors.take(name, d_vocab, d_model)}


def _number(key: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise UserError(f"The configuration has {key} = {value!r}; it must be a number above 0.")
    return float(value)
