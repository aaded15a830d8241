"""The Markdown that notes may use: paragraphs, emphasis, code, lists and web links, and `{{references}}`.

Everything else, HTML above all, stays the text that it is.
"""

from __future__ import annotations

from functools import cache

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

from headwork.draw.picture import xml_safe
from headwork.report.document import Block, Blocks, Code, Emph, Inline, Inlines, Link, Listing, Paragraph, Strong, Text
from headwork.report.refs import Resolve

_WEB = ("http://", "https://")


def blocks(markdown: str, resolve: Resolve) -> Blocks:
    """The blocks of a text. Raises what `resolve` raises for an unknown reference."""
    return _blocks(_parser().parse(xml_safe(markdown)), resolve)


@cache
def _parser() -> MarkdownIt:
    parser = MarkdownIt("zero", {"html": False}).enable(["emphasis", "backticks", "list", "link", "escape", "entity"])
    parser.validateLink = lambda url: url.lower().startswith(_WEB)  # pyright: ignore[reportAttributeAccessIssue]
    parser.inline.ruler.before("emphasis", "reference", _reference)
    return parser


def _reference(state: StateInline, silent: bool) -> bool:
    """`{{name}}` as a token of its own, so that no other rule sees what is inside."""
    if not state.src.startswith("{{", state.pos):
        return False
    end = state.src.find("}}", state.pos)
    if end < 0 or end >= state.posMax:
        return False
    if not silent:
        state.push("reference", "", 0).content = state.src[state.pos + 2 : end].strip()
    state.pos = end + 2
    return True


def _blocks(tokens: list[Token], resolve: Resolve) -> Blocks:
    found: list[Block] = []
    at = 0
    while at < len(tokens):
        token = tokens[at]
        end = _end(tokens, at)
        if token.type in ("bullet_list_open", "ordered_list_open"):
            items = _items(tokens[at + 1 : end], resolve)
            found.append(Listing(items, ordered=token.type == "ordered_list_open"))
        elif token.type == "paragraph_open":
            parts = _inlines(tokens[at + 1].children or [], resolve)
            if parts:
                found.append(Paragraph(parts))
        at = end + 1
    return tuple(found)


def _items(tokens: list[Token], resolve: Resolve) -> tuple[Blocks, ...]:
    items: list[Blocks] = []
    at = 0
    while at < len(tokens):
        end = _end(tokens, at)
        items.append(_blocks(tokens[at + 1 : end], resolve))
        at = end + 1
    return tuple(items)


def _inlines(tokens: list[Token], resolve: Resolve) -> Inlines:
    found: list[Inline] = []
    at = 0
    while at < len(tokens):
        token = tokens[at]
        end = _end(tokens, at)
        inside = tokens[at + 1 : end]
        if token.type == "strong_open":
            found.append(Strong(_inlines(inside, resolve)))
        elif token.type == "em_open":
            found.append(Emph(_inlines(inside, resolve)))
        elif token.type == "link_open":
            found.append(Link(_inlines(inside, resolve), str(token.attrs["href"])))
        elif token.type == "code_inline":
            found.append(Code(token.content))
        elif token.type == "reference":
            found.append(resolve(token.content))
        elif token.content:
            found.append(Text(token.content.replace("\n", " ")))
        at = end + 1
    return tuple(found)


def _end(tokens: list[Token], start: int) -> int:
    """Where the element that opens at `start` closes; `start` itself where it has no inside."""
    depth = 0
    for at in range(start, len(tokens)):
        depth += tokens[at].nesting
        if depth <= 0:
            return at
    return len(tokens) - 1
