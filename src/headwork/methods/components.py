"""Components by name, alone or in groups: writers (`embed`, `3.5`, `m3`) and readers (`3.5<k>`, `m3`, `logits`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from headwork.errors import UserError, unknown
from headwork.methods.graph import Reader, Writer, graph
from headwork.model.config import TransformerConfig
from headwork.model.sites import Head

Name = str | Head
Group = Name | Sequence[Name]
_Node = TypeVar("_Node", Reader, Writer)


def writers_named(
    config: TransformerConfig,
    given: Group | Sequence[Group],
    what: str,
    kinds: Sequence[str] = ("embed", "head", "mlp"),
) -> dict[str, tuple[Writer, ...]]:
    """Groups of writers by label; a name stands for a group of one, and `0.1+m2` is the label of a larger one.

    Raises `UserError` for what the network does not have or is none of `kinds`, empty groups, and names given twice.
    """
    known = {str(w): w for w in graph(config).writers if w.kind in kinds}
    found: dict[str, tuple[Writer, ...]] = {}
    for group in _groups(given, what):
        names = sorted({_known(known, name, what) for name in group})
        if len(names) < len(group):
            raise UserError(f"The {what} {_label(group)} names something twice; each may be named once.")
        _put(found, names, what)
    return found


def readers_named(
    config: TransformerConfig, given: Group | Sequence[Group], routes: Sequence[str]
) -> dict[str, tuple[Reader, ...]]:
    """Groups of readers by label; a head's name (`3.5`) stands for its input by each of `routes` in turn.

    Under grouped-query attention keys and values are those of the head's group: `3.5` by k is the reader of the
    key–value head that it shares, and heads that share one are one reader. Raises `UserError` as `writers_named` does.
    """
    known = {str(r): r for r in graph(config).readers}
    heads = {str(w): w for w in graph(config).writers if w.kind == "head"}
    shared = config.n_heads // config.kv_heads
    found: dict[str, tuple[Reader, ...]] = {}
    for group in _groups(given, "receiver"):
        if len({str(name) for name in group}) < len(group):
            raise UserError(f"The receiver {_label(group)} names something twice; each may be named once.")
        bare = [str(name) for name in group if str(name) in heads]
        for route in routes if bare else routes[:1]:
            names = set()
            for name in map(str, group):
                if name in heads:
                    head = heads[name]
                    names.add(Reader(head.layer, route, head.index if route == "q" else head.index // shared))
                else:
                    names.add(_known(known, name, "receiver"))
            label = "+".join(str(reader) for reader in sorted(names))
            if label not in found or shared == 1 or not bare:
                _put(found, sorted(names), "receiver")
    return found


def _groups(given: Group | Sequence[Group], what: str) -> list[tuple[Name, ...]]:
    each = [given] if isinstance(given, str | Head) else list(given)
    groups = [(one,) if isinstance(one, str | Head) else tuple(one) for one in each]
    if not groups or not all(groups):
        raise UserError(f"A {what} is missing: each must be a name, or a group of at least one.")
    return groups


def _known(known: dict[str, _Node], name: Name, what: str) -> _Node:
    if str(name) not in known:
        raise unknown(what, str(name), known)
    return known[str(name)]


def _put(found: dict[str, tuple[_Node, ...]], names: Iterable[_Node], what: str) -> None:
    label = "+".join(map(str, names))
    if label in found:
        raise UserError(f"The {what} {label} is given twice; each may be given once.")
    found[label] = tuple(names)


def _label(group: Sequence[Name]) -> str:
    return "+".join(map(str, group))
