"""`headwork tasks` lists what can be asked."""

from __future__ import annotations

from tests.cli.conftest import Cli

from headwork.tasks.registry import tasks


def test_every_task_is_listed_with_its_counterfactuals(cli: Cli) -> None:
    found = cli("tasks", "--json").json["tasks"]
    assert [(t["id"], tuple(t["counterfactuals"])) for t in found] == [
        (t.id, t.counterfactuals) for t in tasks().values()
    ]
    shown = cli("tasks").out
    assert all(task.id in shown and task.paper in shown for task in tasks().values())
