"""`headwork tasks`: the tasks that prompts can be drawn from."""

from __future__ import annotations

from headwork.cli.options import AsJson
from headwork.cli.output import print_json, print_lines, print_table


def tasks(as_json: AsJson = False) -> None:
    """List the tasks: prompts with counterfactuals and a metric."""
    from headwork.tasks.registry import tasks as all_tasks

    found = list(all_tasks().values())
    if as_json:
        print_json(
            {
                "tasks": [
                    {
                        "id": t.id,
                        "summary": t.summary,
                        "needs": t.needs,
                        "paper": t.paper,
                        "counterfactuals": list(t.counterfactuals),
                    }
                    for t in found
                ]
            }
        )
        return
    print_table(
        ("task", "example", "needs", "counterfactuals", "paper"),
        [(t.id, t.summary, t.needs, ", ".join(t.counterfactuals), t.paper) for t in found],
    )
    print_lines("Use one: headwork patch SPEC --task TASK")
