"""What a transformer is, as data: a frozen configuration that fixes the forward pass and the shapes of the weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from headwork.errors import UserError, unknown

Positions = Literal["learned", "shortformer", "rotary", "none"]
Norm = Literal["none", "layernorm", "rmsnorm"]
Activation = Literal["relu", "gelu", "gelu_tanh", "silu", "solu", "solu_ln"]
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


def _increasing(value: object) -> bool:
    return isinstance(value, tuple) and all(map(_whole, value)) and list(value) == sorted({n for n in value if n >= 0})


# Fields, what each must be on its own, and that in words.
_TYPES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("n_layers d_mlp", lambda n: _whole(n) and n >= 0, "a whole number, 0 or more"),
    ("d_model n_heads d_head d_vocab n_ctx", lambda n: _whole(n) and n >= 1, "a whole number, 1 or more"),
    ("d_vocab_out n_kv_heads", lambda n: n is None or (_whole(n) and n >= 1), "a whole number, 1 or more, or left out"),
    ("rotary_dim", lambda n: n is None or (_whole(n) and n >= 2), "a whole number, 2 or more, or left out"),
    ("pad_token", lambda n: n is None or (_whole(n) and n >= 0), "a whole number, 0 or more, or left out"),
    ("window", lambda n: n is None or (_whole(n) and n >= 1), "a whole number, 1 or more, or left out"),
    ("local_layers", _increasing, "a list of layers, each once and in order"),
    ("rotary_trained_ctx", lambda n: _whole(n) and n >= 1, "a whole number, 1 or more"),
    ("rotary_base rotary_low_factor rotary_high_factor", lambda x: _number(x) and x > 0, "a number above 0"),
    ("rotary_factor", lambda x: x is None or (_number(x) and x > 0), "a number above 0, or left out"),
    ("norm_eps", lambda x: _number(x) and x >= 0, "a number, 0 or more"),
    ("attention_scale", lambda x: x is None or (_number(x) and x > 0), "a number above 0, or left out"),
    ("attention_mix", lambda x: _number(x) and 0 <= x <= 1, "a number from 0 to 1"),
    (
        "gated_mlp parallel causal qk_norm qkv_bias out_bias mlp_bias unembed_bias tied",
        lambda flag: isinstance(flag, bool),
        "true or false",
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """The architecture of a `Transformer`; sizes are counts of units unless said otherwise.

    `positions`: `learned` adds a table to the embeddings; `shortformer` (Press et al. 2021) adds it to what queries and
    keys read only; `rotary` (Su et al. 2021) turns the first `rotary_dim` of the `d_head` entries of queries and keys.
    With a `rotary_factor` the slow turns are slowed further, as in Llama 3.1 (Grattafiori et al. 2024): see
    `headwork.model.rotary`.
    In `local_layers` a query sees only keys less than `window` positions away, its own included.
    `activation`: `solu` is x · softmax(x) over the neurons, `solu_ln` the same with a LayerNorm over the neurons behind
    it (Elhage et al. 2022). `qk_norm`: queries and keys pass an RMSNorm, head by head, before they are turned.
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
    rotary_factor: float | None = None
    rotary_low_factor: float = 1.0
    rotary_high_factor: float = 4.0
    rotary_trained_ctx: int = 8192
    window: int | None = None
    local_layers: tuple[int, ...] = ()
    norm: Norm = "none"
    norm_eps: float = 1e-5
    activation: Activation = "gelu_tanh"
    gated_mlp: bool = False
    parallel: bool = False
    causal: bool = True
    pad_token: int | None = None
    qk_norm: bool = False
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
        ordered = self.rotary_low_factor < self.rotary_high_factor
        self._require("rotary_high_factor", ordered, f"above rotary_low_factor = {self.rotary_low_factor}")
        below = all(layer < self.n_layers for layer in self.local_layers)
        self._require("local_layers", below, f"below n_layers = {self.n_layers}")
        self._require("window", not self.local_layers or self.window is not None, "stated where there are local_layers")
        plain = self.activation != "solu_ln" or not self.gated_mlp
        self._require("gated_mlp", plain, "false where activation is solu_ln")
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
    def neuron_norm(self) -> bool:
        """Whether a LayerNorm follows the activation."""
        return self.activation == "solu_ln" and not self.attention_only

    @property
    def attention_only(self) -> bool:
        """Whether the blocks have no MLP."""
        return self.d_mlp == 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, those that differ from the defaults only; `from_dict` is the inverse."""
        differing = {f.name: v for f in dataclasses.fields(self) if (v := getattr(self, f.name)) != f.default}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in differing.items()}

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
        layers = values.get("local_layers", ())
        return cls(**{**values, "local_layers": tuple(layers) if isinstance(layers, list) else layers})
