"""Training settings as they stand on networks' cards. Needs no torch, so that a study is planned quickly."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from headwork.model.config import TransformerConfig


def with_defaults(stated: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a card states them, with what later versions added to architectures at its defaults."""
    plain = {f"architecture.{f.name}": f.default for f in dataclasses.fields(TransformerConfig)}
    added = {key: value for key, value in plain.items() if value is not dataclasses.MISSING}
    return {key: list(v) if isinstance(v, tuple) else v for key, v in {**added, **stated}.items()}
