"""Verdicts as a reader sees them: a word, a symbol that works without colour, and whether it was expected."""

from __future__ import annotations

from headwork.report.document import Badge
from headwork.studies.record import ControlResult, Level, Record

SYMBOLS = {
    "reproduced": "✓",
    "partially reproduced": "◐",
    "analogue only": "≈",
    "not reproduced": "✗",
    "inconclusive": "?",
    "not attempted": "–",
}


def tone(badge: Badge) -> str:
    """The name of a badge's colours: a verdict with dashes for spaces, `expected` or `unexpected`."""
    name = badge.tone or badge.verdict
    return name.replace(" ", "-") if name in SYMBOLS or badge.tone else "not-attempted"


def headline_badge(record: Record) -> Badge:
    """The overall verdict; an expected failure reads as one."""
    if record.expected is None:
        return Badge(record.verdict)
    if record.expected != record.verdict:
        return Badge(record.verdict, f"not as expected: {record.expected} was expected")
    expected_failure = record.verdict == "not reproduced"
    return Badge(record.verdict, "as expected", "expected" if expected_failure else "")


def expectation(record: Record) -> str:
    """One sentence on what was expected of this network; empty where nothing was."""
    if record.expected is None:
        return ""
    if record.expected != record.verdict:
        return f"This network was expected to come out as {record.expected}, and did not."
    if record.verdict == "not reproduced":
        return "This is an expected failure: the network is known to lack the mechanism, and the measurement says so."
    return f"This network was expected to come out as {record.expected}, and did."


def level_badge(level: Level) -> Badge:
    """A follow-up level's verdict; one that fails as the claim predicts is good news too."""
    if level.expected is None:
        return Badge(level.verdict)
    if level.expected != level.verdict:
        return Badge(level.verdict, f"not as predicted: {level.expected} was expected", "unexpected")
    return Badge(level.verdict, "as expected", "expected" if level.verdict == "not reproduced" else "")


def control_badge(control: ControlResult) -> Badge:
    """A control's verdict, which is good news where it fails as it should."""
    if control.as_expected:
        return Badge(control.verdict, "as expected", "expected")
    return Badge(control.verdict, f"not as expected: {control.expected} was expected", "unexpected")
