"""Reading what `torch.save` wrote, without ever running what a pickle asks to be run."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from headwork.errors import UserError


def read_state(path: Path) -> dict[str, Any]:
    """The mapping in a PyTorch file, on the CPU. Raises `UserError` where it is damaged, or needs code to be run."""
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # old formats, of which nobody need know
            found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"There is no file {path}.") from None
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is not a checkpoint of plain tensors: it is damaged, or holds pickled code, which Headwork never "
            "runs; save the network's state_dict() instead."
        ) from error
    except Exception as error:  # a damaged archive can fail in any way inside torch's reader
        raise UserError(f"{path} is truncated or corrupt, or not a PyTorch checkpoint.") from error
    if not isinstance(found, Mapping) or not all(isinstance(key, str) for key in found):
        raise UserError(f"{path} holds a {type(found).__name__}; a mapping of names to tensors is expected.")
    return dict(found)
