"""Measuring how many bytes a computation holds at once."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Peak(TorchDispatchMode):
    """The most bytes of new tensors that are alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.alive, self.most, self.known = 0, 0, weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        old = {id(x.untyped_storage()) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and (s := x.untyped_storage()) not in self.known and id(s) not in old:
                self.known.add(s)
                self.alive += s.nbytes()
                weakref.finalize(s, self._freed, s.nbytes())
        self.most = max(self.most, self.alive)
        return out

    def _freed(self, size: int) -> None:
        self.alive -= size
