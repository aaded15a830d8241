"""The address of a result changes with everything that can change the result, and with nothing else."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwork.store.address import address, canonical

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)
)
INPUTS = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)


def exact(value: object) -> object:
    """A second, independent account of when two inputs are the same: by type, value and sign, whatever the order."""
    if isinstance(value, dict):
        return ("dict", frozenset((key, exact(item)) for key, item in value.items()))
    if isinstance(value, (list, tuple)):
        return ("list", tuple(exact(item) for item in value))
    return (type(value).__name__, value.hex() if isinstance(value, float) else value)


@given(INPUTS, INPUTS)
def test_two_inputs_have_one_text_exactly_if_they_are_the_same(a: object, b: object) -> None:
    assert (canonical(a) == canonical(b)) == (exact(a) == exact(b))


@given(INPUTS)
def test_the_text_is_json_that_gives_back_the_inputs(inputs: object) -> None:
    assert exact(json.loads(canonical(inputs))) == exact(inputs)


@given(st.dictionaries(st.text(), SCALARS, min_size=2), st.randoms())
def test_the_order_of_keys_is_irrelevant(inputs: dict[str, object], random) -> None:
    keys = list(inputs)
    random.shuffle(keys)
    assert address("run", {key: inputs[key] for key in keys}) == address("run", inputs)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_counts_to_its_last_bit(value: float) -> None:
    following = float(np.nextafter(value, 0.0 if value else 1.0))
    assert canonical([value]) != canonical([following])


def test_values_that_python_calls_equal_are_told_apart() -> None:
    assert len({canonical([value]) for value in (1, 1.0, True, "1")}) == 4
    assert canonical([0.0]) != canonical([-0.0])


def test_tuples_and_other_mappings_are_written_as_lists_and_dicts() -> None:
    assert canonical({"shape": (1, (2, 3))}) == canonical({"shape": [1, [2, 3]]}) == '{"shape":[1,[2,3]]}'
    assert canonical(MappingProxyType({"a": 1})) == canonical({"a": 1})


class _Colour(enum.Enum):
    RED = 1


class _Level(enum.IntEnum):
    LOW = 1


@dataclasses.dataclass(frozen=True)
class _Config:
    depth: int = 2


@pytest.mark.parametrize(
    "value", [_Colour.RED, _Level.LOW, _Config(), Path("a"), {1, 2}, b"a", 1j, np.float64(1), np.arange(2), object]
)
def test_a_type_of_unclear_meaning_is_refused_with_its_place(value: object) -> None:
    with pytest.raises(TypeError, match=rf"^inputs\.model\[1\] is of type {type(value).__name__}; convert it"):
        canonical({"model": ["zoo", value]})


def test_a_key_that_is_not_text_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^inputs\.heads has the key 3 of type int; keys must be plain text\.$"):
        canonical({"heads": {3: "x"}})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match=rf"^inputs\.rate is {value}; only finite"):
        canonical({"rate": value})


def test_text_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(ValueError, match="not valid Unicode"):
        canonical({"path": "\ud83d\ude00"})


def test_an_address_is_64_hex_digits_and_depends_on_the_kind() -> None:
    one, other = address("run", {"a": 1}), address("figure", {"a": 1})
    assert len(one) == 64
    assert int(one, 16) != int(other, 16)


@pytest.mark.parametrize("kind", ["", "Run", "a/b", "..", ".hidden", "a b"])
def test_a_kind_must_be_able_to_name_a_folder(kind: str) -> None:
    with pytest.raises(ValueError, match="kind of a result"):
        address(kind, {})


def test_the_address_of_known_inputs_never_changes() -> None:
    """A change here orphans every stored result."""
    inputs = {"finding": "induction-heads", "seeds": (0, 1), "rate": 0.1, "é": None}
    text = '{"format":1,"inputs":{"finding":"induction-heads","rate":0.1,"seeds":[0,1],"é":null},"kind":"run"}'
    assert address("run", inputs) == hashlib.sha256(text.encode()).hexdigest()


def test_importing_the_store_imports_nothing_heavy() -> None:
    code = "import sys, headwork.store.results, headwork.store.publish, headwork.store.source; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "headwork.store.results" in loaded
    assert not loaded & {"torch", "numpy", "xarray", "pydantic", "platformdirs"}
