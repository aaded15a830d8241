"""What is known about a network's weights: where they come from, how they were trained and on what."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from headwork.errors import UserError, unknown


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelCard:
    """The provenance of one network.

    `sha256` is that of the weights file; `training` is plain data (recipe, seed, steps, tokens, loss, …); `data`
    describes the training distribution as plain data that `headwork.tasks` interprets, None where it is not known;
    `inferred` lists, one sentence each, what the weights' file does not say and an importer had to assume. `tokenizer`
    is the sha256 of the `tokenizer.json` in its model folder, empty where there is none. `folded` lists, one sentence
    each, what has been folded into the weights since.
    """

    name: str
    spec: str = ""
    sha256: str = ""
    description: str = ""
    source: str = ""
    licence: str = ""
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    data: Mapping[str, Any] | None = None
    inferred: tuple[str, ...] = ()
    tokenizer: str = ""
    folded: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` is the inverse."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelCard:
        """Read a card. Raises `UserError` that names an unknown key, a missing name or a value of the wrong kind."""
        names = [f.name for f in dataclasses.fields(cls)]
        for key, value in values.items():
            if key not in names:
                raise unknown("key in the model's card:", key, names)
            if not isinstance(value, _KINDS.get(key, (str,))):
                raise UserError(f"The model's card has {key} = {value!r}; it must be {_ACCEPTED.get(key, 'a text')}.")
        if "name" not in values:
            raise UserError("The model's card lacks name.")
        return cls(**{**values, **{key: tuple(values.get(key, ())) for key in ("inferred", "folded")}})


_KINDS: dict[str, tuple[type, ...]] = {
    "training": (Mapping,),
    "data": (Mapping, type(None)),
    "inferred": (list, tuple),
    "folded": (list, tuple),
}
_ACCEPTED = {
    "training": "an object",
    "data": "an object or null",
    "inferred": "a list of texts",
    "folded": "a list of texts",
}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value
