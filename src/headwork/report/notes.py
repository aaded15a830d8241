"""The author's notes: a Markdown file of fixed `## ` sections, each answering one question of the report."""

from __future__ import annotations

import re
from dataclasses import dataclass

from headwork.errors import UserError, unknown
from headwork.report import markdown
from headwork.report.document import Blocks, Draft, Part
from headwork.report.refs import Resolve


@dataclass(frozen=True)
class NoteSection:
    """`name` is the heading in the notes file, `title` the one in the report."""

    name: str
    title: str
    question: str


SECTIONS = (
    NoteSection("Motivation", "Motivation", "why does this claim matter, and to whom?"),
    NoteSection("Background", "Background", "what must a reader know to follow the claim and the circuit?"),
    NoteSection(
        "Deviations",
        "Remarks on the deviations",
        "what follows the paper, what was inferred, what was changed, and why?",
    ),
    NoteSection("Clean", "What reproduced cleanly", "what came out without any choice of yours?"),
    NoteSection("Interpretation", "What needed interpretation", "where did you have to choose, and on what grounds?"),
    NoteSection("Shows", "What this shows", "what may a reader conclude from these results?"),
    NoteSection("Does not show", "What this does not show", "what would be wrong to conclude from these results?"),
    NoteSection("Alignment", "What this says about alignment", "what follows for larger systems and their safety?"),
    NoteSection("Change our mind", "What would change our mind", "which result would make you give the conclusion up?"),
)
_BY_NAME = {section.name.lower(): section for section in SECTIONS}
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_HEADING = re.compile(r"^##(?!#)[ \t]*(.*?)[ \t]*#*[ \t]*$", re.MULTILINE)
_TITLE = re.compile(r"\A\s*#(?!#)[^\n]*(?:\n|\Z)")


@dataclass(frozen=True)
class Notes:
    """What the author wrote, by section name; a section without prose is not among them."""

    written: dict[str, Blocks]

    def part(self, name: str) -> Part:
        """The section as a part of a page; a draft box with its question where it is not written yet."""
        section = _BY_NAME[name.lower()]
        draft = (Draft(section.name, section.question),)
        return Part(section.title, self.written.get(section.name, draft))

    @property
    def missing(self) -> tuple[str, ...]:
        """The sections that are not written yet, in the order of the report."""
        return tuple(section.name for section in SECTIONS if section.name not in self.written)


def parse(text: str | None, resolve: Resolve) -> Notes:
    """Read a notes file. HTML comments are the author's own and are left out, and so is a `# ` title.

    Raises UserError for an unknown or repeated section, text before the first section, or an unknown reference.
    """
    if text is None:
        return Notes({})
    text = _TITLE.sub("", _COMMENT.sub("", text.replace("\r\n", "\n")))
    before, *rest = _HEADING.split(text)
    if before.strip():
        raise UserError(
            f"The notes begin with {_start(before)!r} outside of any section; "
            f"put it under a heading such as '## {SECTIONS[0].name}'."
        )
    written: dict[str, Blocks] = {}
    seen: set[str] = set()
    for heading, body in zip(rest[::2], rest[1::2]):
        section = _BY_NAME.get(heading.strip().lower())
        if section is None:
            raise unknown("section of the notes", heading.strip(), [s.name for s in SECTIONS])
        if section.name in seen:
            raise UserError(f"The notes have the section {section.name!r} twice; join the two into one.")
        seen.add(section.name)
        blocks = markdown.blocks(body, resolve)
        if blocks:
            written[section.name] = blocks
    return Notes(written)


def _start(text: str) -> str:
    line = text.strip().splitlines()[0]
    return line if len(line) <= 40 else line[:39] + "…"
