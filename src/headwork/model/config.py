"""What a transformer is, as data: a frozen configuration that fixes the forward pass and the shapes of the weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from headwork.errors import UserError, unknown

Positions = Literal["learned", "shortformer", "rotary", "none"]
Norm = Literal["none", "layernorm", "rmsnorm"]
Activation = Literal["relu", "gelu", "gelu_tanh", "silu"]
RotaryStyle = Literal["half", "adjacent"]

_CHOICES = {
    "positions": get_args(Positions),
    "norm": get_args(Norm),
    "activation": get_args(Activation),
    "rotary_style": get_args(RotaryStyle),
}


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# Fields, what each must be on its own, and that in words.
_TYPES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("n_layers d_mlp", lambda n: _whole(n) and n >= 0, "a whole number, 0 or more"),
    ("d_model n_heads d_head d_vocab n_ctx", lambda n: _whole(n) and n >= 1, "a whole number, 1 or more"),
    ("d_vocab_out n_kv_heads", lambda n: n is None or (_whole(n) and n >= 1), "a whole number, 1 or more, or left out"),
    ("rotary_dim", lambda n: n is None or (_whole(n) and n >= 2), "a whole number, 2 or more, or left out"),
    ("pad_token", lambda n: n is None or (_whole(n) and n >= 0), "a whole number, 0 or more, or left out"),
    ("rotary_base", lambda x: _number(x) and x > 0, "a number above 0"),
    ("norm_eps", lambda x: _number(x) and x >= 0, "a number, 0 or more"),
    ("attention_scale", lambda x: x is None or (_number(x) and x > 0), "a number above 0, or left out"),
    ("attention_mix", lambda x: _number(x) and 0 <= x <= 1, "a number from 0 to 1"),
    (
        "gated_mlp parallel causal qkv_bias out_bias mlp_bias unembed_bias tied",
        lambda flag: isinstance(flag, bool),
        "true or false",
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """The architecture of a `Transformer`; sizes are counts of units unless said otherwise.

    `positions`: `learned` adds a table to the embeddings; `shortformer` (Press et al. 2021) adds it to what queries and
    keys read only; `rotary` (Su et al. 2021) turns the first `rotary_dim` of the `d_head` entries of queries and keys.
    `attention_mix` is the coefficient c of Zhong et al. 2023: pattern = c · softmax + (1 − c).
    `pad_token` marks keys that no query sees. Fields of parts that the architecture lacks (`rotary_dim` without rotary
    positions, `parallel` without MLPs) have no effect. Raises `UserError` where fields contradict each other.
    """

    n_layers: int
    d_model: int
    n_heads: int
    d_head: int
    d_vocab: int
    n_ctx: int
    d_mlp: int = 0
    d_vocab_out: int | None = None
    n_kv_heads: int | None = None
    positions: Positions = "learned"
    rotary_dim: int | None = None
    rotary_base: float = 10_000.0
    rotary_style: RotaryStyle = "half"
    norm: Norm = "none"
    norm_eps: float = 1e-5
    activation: Activation = "gelu_tanh"
    gated_mlp: bool = False
    parallel: bool = False
    causal: bool = True
    pad_token: int | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    unembed_bias: bool = False
    tied: bool = False
    attention_scale: float | None = None
    attention_mix: float = 1.0

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise unknown(f"{name} in the model's configuration:", str(getattr(self, name)), choices)
        for names, holds, accepted in _TYPES:
            for name in names.split():
                self._require(name, holds(getattr(self, name)), accepted)
        self._require("n_kv_heads", self.n_heads % self.kv_heads == 0, f"a divisor of n_heads = {self.n_heads}")
        turned = "d_head" if self.rotary_dim is None else "rotary_dim"
        self._require(turned, self.turned % 2 == 0, "even, since rotation turns pairs of entries")
        self._require(turned, self.turned <= self.d_head, f"at most d_head = {self.d_head}")
        self._require("d_vocab_out", not self.tied or self.outputs == self.d_vocab, "d_vocab where tied is true")
        in_vocabulary = self.pad_token is None or self.pad_token < self.d_vocab
        self._require("pad_token", in_vocabulary, f"below d_vocab = {self.d_vocab}")

    def _require(self, name: str, holds: bool, accepted: str) -> None:
        if not holds:
            value = getattr(self, name)
            raise UserError(f"The model's configuration has {name} = {value!r}; it must be {accepted}.")

    @property
    def outputs(self) -> int:
        """How many logits a position has."""
        return self.d_vocab if self.d_vocab_out is None else self.d_vocab_out

    @property
    def kv_heads(self) -> int:
        """Key–value heads; fewer than `n_heads` under grouped-query attention (Ainslie et al. 2023)."""
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def turned(self) -> int:
        """How many entries of each query and key are rotated; 0 without rotary positions."""
        if self.positions != "rotary":
            return 0
        return self.d_head if self.rotary_dim is None else self.rotary_dim

    @property
    def scale(self) -> float:
        """What query–key products are multiplied with: 1/√d_head unless the architecture says otherwise."""
        return self.d_head**-0.5 if self.attention_scale is None else self.attention_scale

    @property
    def attention_only(self) -> bool:
        """Whether the blocks have no MLP."""
        return self.d_mlp == 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, those that differ from the defaults only; `from_dict` is the inverse."""
        fields = dataclasses.fields(self)
        return {f.name: v for f in fields if (v := getattr(self, f.name)) != f.default}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TransformerConfig:
        """Read a configuration; unknown and missing keys are named in a `UserError`."""
        names = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            if key not in names:
                raise unknown("key in the model's configuration:", key, names)
        missing = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING and f.name not in values]
        if missing:
            raise UserError(f"The model's configuration lacks {', '.join(missing)}.")
        return cls(**values)
