"""What the source of one module says that it imports, read by ``ast``; nothing is run."""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Import:
    """A module imported by its full name: the module itself (``names`` is None), or only the names asked of it."""

    module: str
    names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Source:
    """What the source of one module says, without the tree, which would be a hundred times as large.

    ``imports`` that can run, with full names. For a package that hands out names by a ``__getattr__`` (``is_lazy``):
    the names that it ``defined`` at its top level all the same, and the full names of modules that its strings may have
    ``mentioned`` (written as ``"a.b"``, ``".b"``, ``"b"`` or ``"a.b:name"``).
    """

    digest: str
    imports: frozenset[Import]
    is_lazy: bool = False
    defined: frozenset[str] = frozenset()
    mentioned: frozenset[str] = frozenset()


@functools.lru_cache(maxsize=4096)
def read_source(name: str, is_package: bool, text: bytes) -> Source:
    """Reads the source of the module ``name``, an ``__init__`` where ``is_package``. Raises SyntaxError.

    Answers for a source that was seen before come from memory.
    """
    text = text.replace(b"\r\n", b"\n")
    digest = hashlib.sha256(text).hexdigest()
    body = ast.parse(text).body
    base = name if is_package else name.rpartition(".")[0]
    imports = {item for statement in _statements(body) for item in _imported(statement, base)}
    if b"import_module" in text:
        imports |= {Import(_absolute(found, base)) for node in _nodes(body) for found in _literal_import(node)}
    defined = (
        frozenset(found for s in _statements(body, nested=False) for found in _bound_names(s)) if is_package else ()
    )
    if "__getattr__" not in defined:
        return Source(digest, frozenset(imports))
    texts = {n.value for n in _nodes(body) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    words = {text.partition(":")[0] for text in texts}
    mentioned = words | {f"{name}.{word.lstrip('.')}" for word in words}
    return Source(digest, frozenset(imports), True, frozenset(defined), frozenset(mentioned))


def _imported(statement: ast.stmt, base: str) -> Iterator[Import]:
    """What an import statement imports; ``base`` is the package that a leading dot means."""
    if isinstance(statement, ast.ImportFrom):
        module = _absolute("." * statement.level + (statement.module or ""), base)
        yield Import(module, tuple(alias.name for alias in statement.names))
    elif isinstance(statement, ast.Import):
        for alias in statement.names:
            parts = alias.name.split(".")
            # `import a.b` binds a, and through it a.b; `import a.b as c` binds a.b only.
            shortest = len(parts) if alias.asname else 1
            yield from (Import(".".join(parts[:n])) for n in range(shortest, len(parts) + 1))


def _absolute(name: str, base: str) -> str:
    """The full name of one that may begin with dots: one dot is ``base``, each further one the package above."""
    bare = name.lstrip(".")
    level = len(name) - len(bare)
    if level == 0:
        return name
    parts = base.split(".")
    return ".".join(parts[: len(parts) - level + 1] + ([bare] if bare else []))


def _nodes(body: Sequence[ast.stmt]) -> Iterator[ast.AST]:
    return (node for statement in body for node in ast.walk(statement))


def _statements(body: Sequence[ast.stmt], *, nested: bool = True) -> Iterator[ast.stmt]:
    """The statements of a body that can run, with those inside functions and classes where ``nested``.

    Walks statements only: expressions hold no imports, and are most of the tree.
    """
    for statement in body:
        yield statement
        if not nested and isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        if not (isinstance(statement, ast.If) and _is_type_checking(statement.test)):
            yield from _statements(getattr(statement, "body", ()), nested=nested)
        for field in ("orelse", "finalbody"):
            yield from _statements(getattr(statement, field, ()), nested=nested)
        for field in ("handlers", "cases"):
            for branch in getattr(statement, field, ()):
                yield from _statements(branch.body, nested=nested)


def _is_type_checking(test: ast.expr) -> bool:
    name = test.attr if isinstance(test, ast.Attribute) else test.id if isinstance(test, ast.Name) else ""
    return name == "TYPE_CHECKING"


def _bound_names(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield statement.name
    elif isinstance(statement, (ast.Import, ast.ImportFrom)):
        yield from (alias.asname or alias.name.partition(".")[0] for alias in statement.names)
    elif isinstance(statement, ast.Assign):
        names = (node for target in statement.targets for node in ast.walk(target))
        yield from (node.id for node in names if isinstance(node, ast.Name))
    elif (
        isinstance(statement, ast.AnnAssign) and statement.value is not None and isinstance(statement.target, ast.Name)
    ):
        yield statement.target.id


def _literal_import(node: ast.AST) -> Iterator[str]:
    """The name in ``import_module("name")``."""
    if not (isinstance(node, ast.Call) and node.args):
        return
    called, first = node.func, node.args[0]
    name = called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""
    if name == "import_module" and isinstance(first, ast.Constant) and isinstance(first.value, str):
        yield first.value
