"""What every layout works with: tensors checked as they are taken, settings stated or inferred, and the result."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from headwork.errors import UserError, unknown
from headwork.model.checkpoints import check_tensor
from headwork.model.config import TransformerConfig

_OWN = {f.name for f in fields(TransformerConfig)}


@dataclass(frozen=True)
class Converted:
    """A network read from another layout: `state` has our parameter names; the rest goes on its card."""

    architecture: TransformerConfig
    state: dict[str, Tensor]
    training: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] | None = None
    inferred: tuple[str, ...] = ()


class Tensors:
    """The tensors of a checkpoint by name, each checked as it is taken; `finish` objects to what nobody took."""

    def __init__(self, state: Mapping[str, Any], layout: str, ignored: str) -> None:
        """`ignored` is a regular expression for the names of buffers that hold no weights."""
        self.layout = layout
        for name, value in state.items():
            if not isinstance(value, Tensor):
                raise UserError(f"The {layout} checkpoint has {name}, a {type(value).__name__}, where tensors belong.")
        self._state: dict[str, Tensor] = dict(state)
        self._left = {name for name in state if not re.fullmatch(ignored, name)}

    def __contains__(self, name: str) -> bool:
        return name in self._state

    def peek(self, name: str) -> Tensor | None:
        """A tensor that is no weight to be kept, such as a mask; None where there is none."""
        self._left.discard(name)
        return self._state.get(name)

    def shape(self, name: str, axes: int) -> tuple[int, ...]:
        """The shape of a tensor that must be there with so many axes."""
        shape = self._get(name).shape
        if len(shape) != axes:
            raise UserError(f"The {self.layout} checkpoint: {name} has shape {list(shape)}, but {axes} axes belong.")
        return tuple(shape)

    def take(self, name: str, *shape: int) -> Tensor:
        """A weight of exactly this shape, floating-point and finite."""
        tensor = self._get(name)
        check_tensor(name, tensor, shape, f"The {self.layout} checkpoint")
        self._left.discard(name)
        return tensor

    def layers(self, pattern: str) -> int:
        """One more than the highest number that the group in `pattern` matches at the start of a name."""
        found = [int(match[1]) for name in self._state if (match := re.match(pattern, name))]
        return max(found, default=-1) + 1

    def finish(self) -> None:
        """Raise `UserError` if a tensor has not been taken: the network would not be the one in the file."""
        if self._left:
            names = sorted(self._left)
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            raise UserError(
                f"The {self.layout} checkpoint holds tensors that its configuration leaves no place for: "
                f"{', '.join(names[:4])}{more}."
            )

    def _get(self, name: str) -> Tensor:
        if name not in self._state:
            raise UserError(f"The {self.layout} checkpoint lacks the tensor {name}; it holds {_some(self._state)}.")
        return self._state[name]


class Settings:
    """Settings from beside a checkpoint, in our names or its layout's; what is stated nowhere is noted as inferred."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        self._read: set[str] = set()
        self.inferred: list[str] = []

    def raw(self, key: str, otherwise: Any = None) -> Any:
        """A setting as it stands, or `otherwise`."""
        self._read.add(key)
        return self._config.get(key, otherwise)

    def choose(
        self,
        name: str,
        otherwise: Any,
        why: str,
        key: str = "",
        translate: Mapping[Any, Any] | Callable[[Any], Any] | None = None,
    ) -> Any:
        """A field of our configuration: under our `name`, under their `key` (then translated), or `otherwise`.

        `why` ends the sentence that goes on the card in the last case; without it nothing is noted.
        """
        if name in self._config and name != key:
            return self.raw(name)
        if key in self._config:
            value = self.raw(key)
            if translate is None:
                return value
            if callable(translate):
                return translate(value)
            if not isinstance(value, str | None) or value not in translate:
                raise unknown(f"{key} in the checkpoint's configuration:", str(value), map(str, translate))
            return translate[value]
        if why:
            self.inferred.append(f"{name}: {why}" if otherwise is None else f"{name} = {otherwise}: {why}")
        return otherwise

    def number(self, key: str, otherwise: float) -> float:
        """A number above 0, or −1 where the layout uses it for "not stated". Raises `UserError` for anything else."""
        value = self.raw(key, otherwise)
        if not isinstance(value, int | float) or isinstance(value, bool) or not (value > 0 or value == -1):
            raise UserError(f"The checkpoint's configuration has {key} = {value!r}; it must be a number above 0.")
        return float(value)

    def agree(self, **sizes: int) -> None:
        """Raise `UserError` if a size that is stated differs from the one that the tensors have."""
        for name, size in sizes.items():
            stated = self.raw(name)
            if stated not in (None, -1, size):
                raise UserError(
                    f"The checkpoint's configuration says {name} = {stated!r}, but its tensors have {size}."
                )

    def refuse(self, **harmless: tuple[Any, ...]) -> None:
        """Raise `UserError` for a setting that changes the network in a way that is not implemented."""
        for name, values in harmless.items():
            if self.raw(name, values[0]) not in values:
                raise UserError(
                    f"The checkpoint's configuration has {name} = {self.raw(name)!r}, which is not supported."
                )

    def rest(self) -> dict[str, Any]:
        """The settings that decided nothing: kept on the card as a record of the training."""
        return {key: value for key, value in self._config.items() if key not in self._read and key not in _OWN}


def fuse(parts: Iterable[Tensor]) -> Tensor:
    """The fused matrix of queries, keys and values from three of shape `[head, d_head, d_model]`, or their biases."""
    return torch.cat([part.flatten(0, 1) for part in parts])


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "none"


@dataclass(frozen=True)
class Built:
    """A network that is no transformer, read from another layout: a module, and inputs that it can be run on."""

    module: nn.Module
    example: Tensor
    training: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] | None = None
    inferred: tuple[str, ...] = ()
