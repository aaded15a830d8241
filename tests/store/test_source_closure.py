"""A result's code hash changes with the source of everything its code imports, and with nothing else."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwork.errors import UserError
from headwork.store.imports import read_source
from headwork.store.source import code_hash, library_versions, source_closure

LAZY = "def __getattr__(name):\n    raise AttributeError(name)\n"
FILES = {
    "__init__.py": "",
    "top.py": "import json\nfrom fakepkg.low import leaf\n",
    "low/__init__.py": "from fakepkg import from_init\n",
    "low/leaf.py": "",
    "low/other.py": "",
    "from_init.py": "",
    "unused.py": "",
    "in_function.py": "def f():\n    class C:\n        def g(self):\n            import fakepkg.low.leaf as x\n",
    "branches.py": "try:\n    import fakepkg.a1\nexcept ImportError:\n    from . import a2\n"
    "else:\n    from .a3 import x\n"
    "finally:\n    from fakepkg import a4\nmatch 1:\n    case 1:\n        from . import a5\n"
    "with open('x'):\n    if 0:\n        pass\n    elif 1:\n        from . import a6\n",
    **{f"a{i}.py": "" for i in range(1, 7)},
    "typed.py": "from typing import TYPE_CHECKING\n"
    "if TYPE_CHECKING:\n    from . import a1\nelse:\n    from . import a2\n",
    "literal.py": "import importlib\n"
    "importlib.import_module('fakepkg.a1')\nimportlib.import_module('.a2', __package__)\n",
    "low/relative.py": "from ..a1 import x\nfrom .other import y\nfrom . import leaf\nfrom .. import a2\n",
    "bare/thing.py": "",
    "uses_bare.py": "from fakepkg.bare import thing\n",
    "cycle_a.py": "from fakepkg import cycle_b\n",
    "cycle_b.py": "from fakepkg import cycle_a\n",
    "lazy/__init__.py": "from .eager import ready\n"
    f"_TABLE = {{'run': 'fakepkg.a1', 'go': '.deep:go', 'x': 'a.b'}}\n{LAZY}",
    "lazy/eager.py": "",
    "lazy/deep.py": "from .. import a2\n",
    "lazy/x.py": "",
    "asks_lazy.py": "from fakepkg.lazy import run\n",
    "asks_eager.py": "from fakepkg.lazy import ready\n",
    "asks_submodule.py": "from fakepkg.lazy import deep\n",
    "asks_star.py": "from fakepkg.lazy import *\n",
    "binds_lazy.py": "import fakepkg.lazy as lazy\nlazy.run()\n",
    "binds_dotted.py": "import fakepkg.lazy.eager\nfakepkg.lazy.run()\n",
    "only_child.py": "import fakepkg.lazy.eager as eager\n",
}
LAZY_ALL = {"lazy", "lazy.eager", "lazy.deep", "lazy.x", "a1", "a2"}


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "fakepkg"
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    return root


def short(module: str) -> set[str]:
    """The closure of fakepkg.<module>, without the package's name and the two that are always there."""
    names = set(source_closure(f"fakepkg.{module}"))
    assert {"fakepkg", f"fakepkg.{module}"} <= names
    return {name.removeprefix("fakepkg.") for name in names} - {"fakepkg", module}


@pytest.mark.parametrize(
    "module, expected",
    [
        ("top", {"low", "low.leaf", "from_init"}),
        ("unused", set()),
        ("in_function", {"low", "low.leaf", "from_init"}),
        ("branches", {"a1", "a2", "a3", "a4", "a5", "a6"}),
        ("typed", {"a2"}),
        ("literal", {"a1", "a2"}),
        ("low.relative", {"low", "low.other", "low.leaf", "a1", "a2", "from_init"}),
        ("uses_bare", {"bare.thing"}),
        ("cycle_a", {"cycle_b"}),
        ("asks_lazy", LAZY_ALL),
        ("asks_star", LAZY_ALL),
        ("binds_lazy", LAZY_ALL),
        ("binds_dotted", LAZY_ALL),
        ("asks_eager", {"lazy", "lazy.eager"}),
        ("only_child", {"lazy", "lazy.eager"}),
        ("asks_submodule", {"lazy", "lazy.eager", "lazy.deep", "a2"}),
    ],
)
def test_the_closure_holds_what_is_imported_and_no_more(fake: Path, module: str, expected: set[str]) -> None:
    assert short(module) == expected


def test_nothing_is_imported_to_find_the_closure(fake: Path) -> None:
    source_closure("fakepkg.top")
    assert not any(name.startswith("fakepkg") for name in sys.modules)


def test_hashes_are_those_of_the_source_whatever_its_line_endings(fake: Path) -> None:
    expected = hashlib.sha256((fake / "top.py").read_bytes()).hexdigest()
    assert source_closure("fakepkg.top")["fakepkg.top"] == expected
    (fake / "top.py").write_bytes((fake / "top.py").read_bytes().replace(b"\n", b"\r\n"))
    assert source_closure("fakepkg.top")["fakepkg.top"] == expected


@pytest.mark.parametrize("name", ["top.py", "low/leaf.py", "low/__init__.py", "from_init.py", "__init__.py"])
def test_the_code_hash_changes_with_every_module_of_the_closure(fake: Path, name: str) -> None:
    before = code_hash(["fakepkg.top"])
    (fake / name).write_text(FILES[name] + "# changed\n")
    assert code_hash(["fakepkg.top"]) != before


@pytest.mark.parametrize("name", ["unused.py", "low/other.py", "lazy/deep.py"])
def test_the_code_hash_ignores_modules_outside_the_closure(fake: Path, name: str) -> None:
    before = code_hash(["fakepkg.top"])
    (fake / name).write_text("# changed\n")
    assert code_hash(["fakepkg.top"]) == before


def test_the_code_hash_is_the_same_in_another_place(fake: Path, tmp_path: Path, monkeypatch) -> None:
    (fake / "notes.md").write_text("notes")
    here = code_hash(["fakepkg.top", "fakepkg.unused"], [fake / "notes.md"])
    monkeypatch.syspath_prepend(str(tmp_path / "moved"))
    (tmp_path / "moved").mkdir()
    moved = fake.rename(tmp_path / "moved" / "fakepkg")
    assert code_hash(["fakepkg.unused", "fakepkg.top"], [moved / "notes.md"]) == here


def test_the_code_hash_changes_with_data_files_and_their_names(fake: Path) -> None:
    for name, text in {"notes.md": "one", "low/notes.md": "one", "page.typ": "two"}.items():
        (fake / name).write_text(text)
    hashes = {
        code_hash(["fakepkg.top"], data)
        for data in ([], [fake / "notes.md"], [fake / "low/notes.md"], [fake / "notes.md", fake / "page.typ"])
    }
    (fake / "notes.md").write_text("edited")
    assert len(hashes | {code_hash(["fakepkg.top"], [fake / "notes.md"])}) == 5
    assert code_hash(["fakepkg.top"], [fake / "page.typ", fake / "notes.md"]) == code_hash(
        ["fakepkg.top"], [fake / "notes.md", fake / "page.typ"]
    )


def test_an_unknown_module_or_file_is_a_plain_error(fake: Path) -> None:
    with pytest.raises(UserError, match=r"Unknown module 'fakepkg.topp': the nearest valid ones are fakepkg.top"):
        source_closure("fakepkg.topp")
    with pytest.raises(UserError, match=r"There is no package 'nopkg' to read 'nopkg.a' from"):
        source_closure("nopkg.a")
    with pytest.raises(UserError, match=r"Cannot read .*missing\.md: no such file"):
        code_hash(["fakepkg.top"], [fake / "missing.md"])


def test_on_this_package_the_closure_is_what_python_loads() -> None:
    """Here all imports are at the top, so running them is the oracle."""
    code = "import sys, headwork.store.publish; print(*(n for n in sys.modules if n.partition('.')[0] == 'headwork'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(source_closure("headwork.store.publish")) == set(done.stdout.split())


MODULES = st.lists(st.sampled_from(["fakepkg", "low", "leaf", "other"]), min_size=1, max_size=3).map(".".join)


@given(st.lists(MODULES, max_size=4), st.integers(0, 3))
def test_imports_are_found_at_any_depth_of_nesting(modules: list[str], depth: int) -> None:
    indent = "    " * depth
    text = "".join("    " * i + f"def f{i}():\n" for i in range(depth))
    text += "".join(f"{indent}import {module} as m\n" for module in modules) + f"{indent}pass\n"
    found = {item.module for item in read_source("fakepkg.x", False, text.encode()).imports}
    assert found == set(modules)


def test_versions_come_from_the_installed_metadata() -> None:
    versions = library_versions(["numpy", "no-such-library"])
    assert versions == {"numpy": metadata.version("numpy"), "no-such-library": "not installed"}
