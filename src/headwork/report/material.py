"""What the pages are made from, and the small phrases that several of them need."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headwork.findings.figure import Figure, Slot
from headwork.report import numbers
from headwork.report.document import (
    Block,
    Figures,
    Inline,
    Inlines,
    Part,
    Shown,
    Side,
    Source,
    Strong,
    Text,
    Value,
    words_in,
)
from headwork.report.notes import Notes
from headwork.report.sources import HEADLINE, RECORD
from headwork.studies.record import Estimate, Record

# The order in which figures stand in the report, and so in which they are numbered.
SLOTS: tuple[Slot, ...] = ("circuit", "main", "attention", "secondary", "followups", "robustness")
_LONG_PART = 200
_LONG_LIST = 6
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Material:
    record: Record
    figures: tuple[Shown, ...]
    notes: Notes
    sources: Mapping[str, Source]
    rebuild_command: str

    def key(self, source: str) -> str:
        return self.sources[source].key

    def value(self, text: str, source: str = HEADLINE, *, marked: bool = True) -> Value:
        """A number of the record with its key, which is not printed again where a row or column has it (`marked`)."""
        return Value(text, self.key(source), marked=marked)

    def estimate(self, estimate: Estimate | None, source: str = HEADLINE, *, marked: bool = True) -> Inlines:
        """An estimate with its interval; a dash where there is none, the bare words where nothing was measured."""
        if estimate is None:
            return (Text("–"),)
        if estimate.value is None:
            return (Text(numbers.MISSING),)
        return (self.value(numbers.estimate(estimate), source, marked=marked),)

    def count(self, number: int, source: str = RECORD, *, marked: bool = True) -> Value:
        return self.value(numbers.whole(number), source, marked=marked)

    def figures_in(self, *slots: Slot) -> tuple[Figures, ...]:
        """The figures of these slots; nothing where there are none."""
        found = tuple(shown for shown in self.figures if shown.figure.slot in slots)
        return (Figures(found),) if found else ()


def numbered(figures: Sequence[Figure]) -> tuple[Shown, ...]:
    """The figures in the order of the pages, numbered from 1."""
    ordered = sorted(figures, key=lambda figure: SLOTS.index(figure.slot))
    return tuple(Shown(i + 1, figure) for i, figure in enumerate(ordered))


def grouped(data: Mapping[str, Any], name: str = "") -> dict[str, str]:
    """Nested settings, one line for each group: `architecture` → `n_layers 2, d_model 64`. Empty ones are left out."""
    data = _nested(data)
    plain = {key: printed(value) for key, value in data.items() if not isinstance(value, Mapping)}
    plain = {key: text for key, text in plain.items() if text}
    found = {name: ", ".join(f"{key} {text}" for key, text in plain.items())} if name and plain else plain
    for key, value in data.items():
        if isinstance(value, Mapping):
            found |= grouped(value, f"{name} {key}".strip())
    return found


def _nested(data: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with `architecture.n_layers` inside `architecture`."""
    found: dict[str, Any] = {}
    for key, value in data.items():
        group, dot, rest = key.partition(".")
        if dot and group and rest and isinstance(found.get(group, {}), Mapping):
            found[group] = {**found.get(group, {}), rest: value}
        else:
            found[key] = value
    return found


def printed(value: Any) -> str:
    """A setting as it is printed: lists in brackets, long ones by their length, hashes by their beginning."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return numbers.exact(value)
    if isinstance(value, (list, tuple)):
        if len(value) > _LONG_LIST:
            return f"({len(value)} values)"
        return f"({', '.join(printed(part) for part in value)})" if value else ""
    text = str(value)
    return text[:12] if _SHA256.fullmatch(text) else text


def beside(left: Part, right: Part) -> tuple[Block, ...]:
    """Two parts side by side; one under the other where one is so long that its column would run on alone."""
    short, long = sorted((words_in(left), words_in(right)))
    return (left, right) if long > _LONG_PART and long > 3 * short else (Side((left,), (right,)),)


def words(*parts: str | Inline) -> Inlines:
    """Inline parts, with plain strings as text."""
    return tuple(Text(part) if isinstance(part, str) else part for part in parts)


def strong(text: str) -> Strong:
    return Strong((Text(text),))


def joined(parts: Iterable[Inlines], separator: str = ", ") -> Inlines:
    """Inline parts with a separator between them."""
    found: list[Inline] = []
    for part in parts:
        found += [*([Text(separator)] if found else []), *part]
    return tuple(found)


def sentence(text: str) -> str:
    """The text with a full stop, unless it ends like a sentence already."""
    text = text.strip()
    return text if not text or text[-1] in ".!?…" else f"{text}."


def plural(number: int, one: str, many: str = "") -> str:
    return one if number == 1 else many or f"{one}s"
