"""What a report says, apart from how it looks: sections of blocks of inline parts, for the PDF and the HTML."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from headwork.findings.figure import Figure


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Strong:
    parts: Inlines


@dataclass(frozen=True)
class Emph:
    parts: Inlines


@dataclass(frozen=True)
class Code:
    text: str


@dataclass(frozen=True)
class Link:
    parts: Inlines
    url: str


@dataclass(frozen=True)
class Value:
    """A number or word from the record, with the key of its source; `ref` is the name by which notes asked for it.

    Without `marked` the key is not repeated here: it stands at the head of the row, column or part.
    """

    text: str
    key: str
    ref: str = ""
    marked: bool = True


@dataclass(frozen=True)
class Badge:
    """A verdict. `note` says whether it was expected; `tone` chooses the colour, and is the verdict by default."""

    verdict: str
    note: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Paragraph:
    parts: Inlines
    small: bool = False


@dataclass(frozen=True)
class Listing:
    items: tuple[Blocks, ...]
    ordered: bool = False


@dataclass(frozen=True)
class Column:
    """A column that takes `share` of the width; `key` is the source of all that stands in it."""

    title: str
    share: float = 1.0
    key: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells; the first cell of a row is its heading."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Inlines, ...], ...]


@dataclass(frozen=True)
class Facts:
    """Terms with what they are, in so many columns."""

    pairs: tuple[tuple[str, Inlines], ...]
    columns: int = 1


@dataclass(frozen=True)
class Shown:
    """A figure with its number."""

    number: int
    figure: Figure


@dataclass(frozen=True)
class Figures:
    """Figures in order; as many stand side by side as their widths allow."""

    figures: tuple[Shown, ...]


@dataclass(frozen=True)
class Draft:
    """The place of prose that is not written yet."""

    section: str
    question: str


@dataclass(frozen=True)
class Banner:
    """The overall verdict with what decided it."""

    badge: Badge
    parts: Inlines


@dataclass(frozen=True)
class Command:
    text: str


@dataclass(frozen=True)
class Part:
    """A named part of a section; `key` is the source of all that the tool printed in it."""

    title: str
    blocks: Blocks
    key: str = ""


@dataclass(frozen=True)
class Side:
    """Blocks beside each other where there is room."""

    left: Blocks
    right: Blocks


@dataclass(frozen=True)
class Section:
    """One page of the plan."""

    id: str
    title: str
    blocks: Blocks


Inline: TypeAlias = Text | Strong | Emph | Code | Link | Value | Badge
Inlines: TypeAlias = tuple[Inline, ...]
Block: TypeAlias = Paragraph | Listing | Table | Facts | Figures | Draft | Banner | Command | Part | Side
Blocks: TypeAlias = tuple[Block, ...]


@dataclass(frozen=True)
class Source:
    """Where numbers come from: `key` stands beside each of them, `addresses` lead to the results in the store."""

    key: str
    name: str
    settings: str
    addresses: tuple[str, ...]
    kind: Literal["run", "card", "record"] = "run"

    @property
    def short(self) -> str:
        """The addresses, as far as they are printed."""
        return " ".join(address[:12] for address in self.addresses)


@dataclass(frozen=True)
class Report:
    """The whole report. `created` is the moment of the record (ISO 8601)."""

    title: str
    finding: str
    model: str
    created: str
    badge: Badge
    sections: tuple[Section, ...]
    sources: tuple[Source, ...]


def walk(node: Any) -> Iterator[Any]:
    """A node and everything in it, in reading order. Figures are not entered."""
    yield node
    if isinstance(node, (tuple, list)):
        for child in node:
            yield from walk(child)
    elif dataclasses.is_dataclass(node) and not isinstance(node, Figure):
        for field in dataclasses.fields(node):
            yield from walk(getattr(node, field.name))


def keys_in(node: Any) -> list[str]:
    """The keys of the sources that a node names, in order of first use."""
    found = (part.key for part in walk(node) if isinstance(part, (Value, Column, Part)))
    return list(dict.fromkeys(key for key in found if key))


def words_in(node: Any) -> int:
    """How many words a node has."""
    return sum(len(part.text.split()) for part in walk(node) if isinstance(part, (Text, Code, Value, Command)))


def text_of(parts: Sequence[Inline]) -> str:
    """The bare text of inline parts."""
    return "".join(part.text for part in walk(tuple(parts)) if isinstance(part, (Text, Code, Value)))
