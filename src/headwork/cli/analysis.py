"""What `patch`, `lens` and `circuit` print: what was read, the numbers, the files, and what to do next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from headwork.cli.output import print_facts, print_json, print_lines

if TYPE_CHECKING:
    from headwork.analyses.published import Published


def as_json(done: Published) -> None:
    """The summary with absolute paths."""
    print_json(done.to_dict())


def head(summary: Mapping[str, Any], split: str = "discovery") -> None:
    """The network, the prompts and the metric."""
    prompts = summary[split]
    example = prompts["example"]
    print_facts(
        {
            "model": summary["model"]["spec"],
            "task": f"{prompts['task']}, counterfactual {prompts['counterfactual']}",
            "prompts": f"{_counted(prompts['prompts'], 'pair')} of {_counted(prompts['tokens'], 'token')}, "
            f"{_counted(prompts['templates'], 'template')}",
            "example": example and repr(example["clean"]),
            "corrupt": example and repr(example["corrupt"]),
            "metric": prompts["metric"],
            "on them": f"clean {interval(prompts['clean'])}, corrupt {interval(prompts['corrupt'])}",
            "notes": "\n".join(prompts["notes"]),
        }
    )


def foot(done: Published) -> None:
    """Where everything is, and the next command."""
    from headwork.report.numbers import duration

    print_lines(
        f"Results: {done.folder}",
        f"         {', '.join(done.files)}",
        f"Took {duration(done.summary['seconds'])}.",
        f"Next: {done.summary['next']}",
    )


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' if count != 1 else ''}"


def interval(estimate: Mapping[str, Any] | None) -> str:
    """`0.92 [0.90, 0.95]`; a dash where there is no number."""
    from headwork.report import numbers
    from headwork.studies.record import Estimate

    if estimate is None or estimate["value"] is None:
        return "–"
    values = {name: estimate[name] for name in ("value", "low", "high")}
    return numbers.estimate(Estimate(**values, method=""))
