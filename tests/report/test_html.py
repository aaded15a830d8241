"""The HTML stands alone, can be heard as well as seen, and loads nothing."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from itertools import pairwise

from tests.report.conftest import Case

VOID = {"wbr", "meta", "img", "br", "link", "input", "hr"}


class Reader(HTMLParser):
    """Every element with its attributes; fails on a tag that closes what is not open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_nothing_is_loaded(case: Case) -> None:
    page = Reader(case.html)
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        for name in ("src", "srcset", "data", "poster", "action", "background"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert not re.search(r"url\(|@import", case.html)
    targets = [attributes["href"] or "" for attributes in page.of("a")]
    assert all(target.startswith(("#", "https://")) for target in targets)


def test_the_policy_forbids_loading_and_lets_only_our_scripts_run(case: Case) -> None:
    policy = next(
        a["content"] for a in Reader(case.html).of("meta") if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    scripts = re.findall(r"<script>(.*?)</script>", case.html, re.DOTALL)
    digests = {base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts}
    assert rules["script-src"].split() == [f"'sha256-{digest}'" for digest in digests]


def test_tables_headings_and_targets_are_marked_up(case: Case) -> None:
    page = Reader(case.html)
    assert all(attributes.get("scope") in ("col", "row") for attributes in page.of("th"))
    assert len(page.of("caption")) == len(page.of("table")) - 1
    assert all(attributes.get("alt") for attributes in page.of("img"))
    assert len(page.of("h1")) == 1
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in pairwise(levels))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {(attributes["href"] or "")[1:] for attributes in page.of("a") if (attributes["href"] or "#")[0] == "#"}
    assert targets <= set(ids)


def test_the_way_past_the_navigation_comes_first_and_the_verdict_before_the_rest(case: Case) -> None:
    body = case.html[case.html.index("<body>") :]
    assert body.index('class="skip"') < body.index("<header>") < body.index('class="banner') < body.index("<table")
    assert case.html.startswith('<!doctype html>\n<html lang="en">')
