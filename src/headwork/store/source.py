"""What code a result depends on: the source of a module and of all it imports, found without importing anything.

Followed are ``import a.b``, ``from a.b import c`` (where ``c`` may be a submodule) and relative imports, wherever they
stand, also inside functions; and ``import_module("a.b")`` with a literal name. The ``__init__`` of every parent package
counts, because Python runs it; what stands under ``if TYPE_CHECKING`` does not, because it never runs.

A package whose ``__init__`` has a ``__getattr__`` hands out names lazily. Where such a package itself is imported
(``import a``), or is asked for a name that it does not define (``from a import name``), every module that its
``__init__`` names in a string counts: rather too many than a stale result. Just being the parent of an imported module
does not make it so. A module whose name is put together at run time cannot be seen: whoever loads one must name it in
``code_hash``.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from headwork.errors import UserError, unknown
from headwork.store.imports import Import, Source, read_source

NOT_INSTALLED = "not installed"


def source_closure(module: str) -> dict[str, str]:
    """SHA-256 (hex) of the source of ``module`` and of all that it imports of its package, directly or not, by name.

    Line endings do not count. Raises UserError where there is no such module, SyntaxError where one cannot be parsed.
    """
    return _Package.of(module).closure([module])


def code_hash(modules: Sequence[str], data: Sequence[Path] = ()) -> str:
    """One SHA-256 (hex) of the source of ``modules`` and all they import, and of the bytes of the files ``data``.

    A data file inside the package counts under its place there, another one under its name: the place of the package
    on this machine changes nothing. Raises UserError where a module or a file does not exist.
    """
    packages = {name: _Package.of(name) for name in sorted({module.partition(".")[0] for module in modules})}
    lines: list[str] = []
    for name, package in packages.items():
        own = [module for module in modules if module.partition(".")[0] == name]
        lines += [f"module {found} {digest}" for found, digest in sorted(package.closure(own).items())]
    folders = [package.folder for package in packages.values()]
    lines += sorted(f"data {_place(path, folders)} {_data_hash(path)}" for path in data)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def library_versions(names: Sequence[str]) -> dict[str, str]:
    """Version of each installed distribution, without importing it; ``"not installed"`` for one that is not."""
    from importlib import metadata  # slow to import, and needed only here

    versions: dict[str, str] = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = NOT_INSTALLED
    return versions


@dataclass(frozen=True)
class _Package:
    """The source of one top-level package on disk."""

    name: str
    folder: Path

    @classmethod
    def of(cls, module: str) -> _Package:
        name = module.partition(".")[0]
        spec = importlib.util.find_spec(name) if name else None
        locations = list(spec.submodule_search_locations or ()) if spec else []
        if not locations:
            raise UserError(f"There is no package {name!r} to read {module!r} from; give the full name of a module.")
        return cls(name, Path(locations[0]))

    @cached_property
    def files(self) -> dict[str, Path | None]:
        """The file of every module, by full name; None for a folder without ``__init__``."""
        found: dict[str, Path | None] = {}
        for path in sorted(self.folder.rglob("*.py")):
            parts = (self.name, *path.relative_to(self.folder).with_suffix("").parts)
            for depth in range(1, len(parts)):
                found.setdefault(".".join(parts[:depth]), None)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
        return found

    def source(self, module: str) -> Source:
        """What the source of a module says; nothing for a folder without ``__init__``."""
        path = self.files[module]
        return read_source(module, path is None or path.name == "__init__.py", path.read_bytes() if path else b"")

    def closure(self, modules: Sequence[str]) -> dict[str, str]:
        for module in modules:
            if module not in self.files:
                raise unknown("module", module, self.files)
        sources: dict[str, Source] = {}
        seen: set[Import] = set()
        waiting = [Import(module) for module in modules]
        while waiting:
            item = waiting.pop()
            if item not in seen and item.module in self.files:
                seen.add(item)
                if item.module not in sources:
                    sources[item.module] = self.source(item.module)
                waiting += self._consequences(item, sources[item.module])
        return {name: sources[name].digest for name in sorted(sources) if self.files[name]}

    def _consequences(self, item: Import, source: Source) -> Iterator[Import]:
        """What else is imported when ``item`` is: its parent, what its source imports, submodules and lazy names."""
        yield Import(item.module.rpartition(".")[0], ())
        yield from source.imports
        names = item.names or ()
        submodules = {name for name in names if f"{item.module}.{name}" in self.files}
        yield from (Import(f"{item.module}.{name}") for name in submodules)
        if source.is_lazy and (item.names is None or not source.defined.union(submodules).issuperset(names)):
            yield from (Import(self._module_of(name)) for name in source.mentioned)

    def _module_of(self, name: str) -> str:
        """``a.b`` where ``name`` is ``a.b.c``, something in it; but never the top-level package, for that is all."""
        parent = name.rpartition(".")[0]
        return parent if name not in self.files and parent != self.name else name


def _place(path: Path, folders: Sequence[Path]) -> str:
    """The name under which a data file counts: relative to the folder above its package, or the bare name."""
    inside = [folder.parent for folder in folders if path.absolute().is_relative_to(folder)]
    return path.absolute().relative_to(inside[0]).as_posix() if inside else path.name


def _data_hash(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"Cannot read {path}: {(error.strerror or str(error)).lower()}.") from error
