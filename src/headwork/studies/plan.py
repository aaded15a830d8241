"""The plan of a reproduction: headline, controls, and follow-ups that differ from the headline in exactly one key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headwork.errors import UserError
from headwork.findings.registry import Factor, Finding
from headwork.model.sources import Located, locate, zoo_names
from headwork.train.settings import with_defaults


@dataclass(frozen=True)
class Task:
    """One network to measure; `untrained` stands for fresh weights in the same architecture."""

    name: str
    located: Located
    untrained: bool = False

    @property
    def diverged_at(self) -> int | None:
        """The step at which this network's training diverged, if it did: then there is nothing to measure."""
        return self._stated("diverged_at")

    @property
    def seed(self) -> int | None:
        """The seed from which this network was trained, None where its card does not say."""
        return self._stated("seed")

    def _stated(self, key: str) -> int | None:
        value = self.located.card.training.get(key)
        return value if type(value) is int else None


@dataclass(frozen=True)
class PlannedLevel:
    """One value of a factor: a network for each seed, and how their settings differ from the headline's."""

    value: Any
    baseline: bool
    tasks: tuple[Task, ...]
    diff: tuple[str, str] | None


@dataclass(frozen=True)
class PlannedFollowUp:
    """A factor with its levels; `unavailable` says which values have no network, and how to get one."""

    factor: Factor
    levels: tuple[PlannedLevel, ...]
    unavailable: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """Everything that will be measured, known before anything runs.

    `unavailable` says which follow-ups have nothing to compare, and why.
    """

    finding: Finding
    headline: Task
    controls: Mapping[str, Task]
    followups: tuple[PlannedFollowUp, ...]
    seeds: int
    expected: str | None
    unavailable: tuple[str, ...] = ()

    def tasks(self) -> dict[str, Task]:
        """Every run by name; a network that serves twice is measured once."""
        found = {"headline": self.headline}
        found |= {task.name: task for task in self.controls.values()}
        for followup in self.followups:
            for level in followup.levels:
                found |= {task.name: task for task in level.tasks}
        return found


def plan(finding: Finding, spec: str | None, seeds: int) -> Plan:
    """Plan a reproduction on `spec` (the finding's default where None), with `seeds` networks for each follow-up level.

    Raises `UserError` for an unknown model, one whose training diverged, or a number of seeds that the zoo does not
    have.
    """
    if seeds < 1:
        raise UserError(f"--seeds is {seeds}; it must be 1 or more.")
    headline = Task("headline", locate(finding.model if spec is None else spec))
    if headline.diverged_at is not None:
        raise UserError(
            f"The training of {headline.located.spec} diverged at step {headline.diverged_at}: there is nothing to "
            "measure; choose another network."
        )
    controls = {"untrained": Task("control/untrained", headline.located, untrained=True)}
    expected = None
    for name, control in finding.controls.items():
        located = locate(control)
        if located.sha256 == headline.located.sha256:
            expected = "not reproduced"
        else:
            controls[name] = Task(f"control/{name}", located)
    zoo = [locate(f"zoo:{name}") for name in zoo_names()]
    followups = [_followup(factor, headline, zoo, seeds) for factor in finding.factors]
    return Plan(
        finding,
        headline,
        controls,
        tuple(f for f in followups if len(f.levels) > 1),
        seeds,
        expected,
        tuple(line for f in followups if len(f.levels) < 2 for line in f.unavailable),
    )


def differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The keys in which two settings differ, with both values: the machine-made configuration diff."""
    missing = object()
    return {
        key: (repr(a.get(key)), repr(b.get(key)))
        for key in sorted({*a, *b})
        if a.get(key, missing) != b.get(key, missing)
    }


def require_one_key(baseline: Mapping[str, Any], changed: Mapping[str, Any], key: str) -> tuple[str, str]:
    """The change of `key`; `UserError` where anything else differs too, or nothing does."""
    diff = differing(baseline, changed)
    if set(diff) != {key}:
        others = ", ".join(k for k in diff if k != key)
        raise UserError(
            f"A follow-up on {key} may change {key} alone; "
            + (f"it changes {others} too." if key in diff and others else f"it changes {others or 'nothing'}.")
        )
    return diff[key]


def _followup(factor: Factor, headline: Task, zoo: Sequence[Located], seeds: int) -> PlannedFollowUp:
    """Levels from the networks whose settings are the headline's but for the factor's key, one for each seed."""
    baseline = _settings(headline.located)
    levels: list[PlannedLevel] = []
    unavailable: list[str] = []
    short: list[str] = []
    if baseline is None:
        why = f"{factor.name}: the network's card states no training settings of which one could be changed"
        return PlannedFollowUp(factor, (), (why,))
    for value in factor.expects:
        wanted = {**baseline, factor.key: value}
        same = [one for one in zoo if _settings(one) == with_defaults(wanted)]
        chosen = sorted(same, key=lambda one: int(one.card.training["seed"]))[:seeds]
        if not chosen:
            unavailable.append(
                f"{factor.name} = {value}: the zoo has no network with these settings and only this change"
            )
            continue
        if len(chosen) < seeds:
            short.append(f"--seeds is {seeds}; the zoo has {len(chosen)} of {factor.name} = {value}.")
        tasks = tuple(Task(f"followup/{one.card.name}", one) for one in chosen)
        is_baseline = value == baseline.get(factor.key)
        changes = {require_one_key(baseline, _settings(one) or {}, factor.key) for one in chosen if not is_baseline}
        levels.append(PlannedLevel(value, is_baseline, tasks, next(iter(changes), None)))
    if short and len(levels) > 1:  # with one level there is nothing to compare, and no follow-up
        raise UserError(short[0])
    return PlannedFollowUp(factor, tuple(levels), tuple(unavailable))


def _settings(model: Located) -> dict[str, Any] | None:
    """The training settings on a network's card, complete; None where it states none."""
    stated = model.card.training.get("settings")
    return with_defaults(stated) if isinstance(stated, Mapping) else None
