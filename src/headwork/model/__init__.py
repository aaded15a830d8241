"""What a network is: configuration, forward pass, sites, checkpoints, and where models come from.

Names are imported when they are first asked for, so that importing this package does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headwork.model.card import ModelCard as ModelCard
    from headwork.model.checkpoints import save as save
    from headwork.model.config import TransformerConfig as TransformerConfig
    from headwork.model.folder import read_card as read_card
    from headwork.model.folding import centre_unembedding as centre_unembedding
    from headwork.model.folding import centre_writing_weights as centre_writing_weights
    from headwork.model.folding import fold_norms as fold_norms
    from headwork.model.importing import import_checkpoint as import_checkpoint
    from headwork.model.sources import Located as Located
    from headwork.model.sources import load as load
    from headwork.model.sources import locate as locate
    from headwork.model.sources import zoo_names as zoo_names
    from headwork.model.tokenizer import Tokenizer as Tokenizer
    from headwork.model.tokenizer import read_tokenizer as read_tokenizer
    from headwork.model.transformer import Transformer as Transformer

_HOMES = {
    "Located": "sources",
    "ModelCard": "card",
    "Tokenizer": "tokenizer",
    "Transformer": "transformer",
    "TransformerConfig": "config",
    "centre_unembedding": "folding",
    "centre_writing_weights": "folding",
    "fold_norms": "folding",
    "import_checkpoint": "importing",
    "load": "sources",
    "locate": "sources",
    "read_card": "folder",
    "read_tokenizer": "tokenizer",
    "save": "checkpoints",
    "zoo_names": "sources",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
