"""`headwork sites SPEC`: the activations of a network that can be kept and edited."""

from __future__ import annotations

from headwork.cli.options import AsJson, Spec
from headwork.cli.output import print_json, print_lines, print_table


def sites(spec: Spec, as_json: AsJson = False) -> None:
    """List the activations of a network.

    Each line is a site: its name (layers collapsed), its axes with their sizes, and its formula.
    """
    from headwork.model.catalogue import architecture_of
    from headwork.model.site_groups import site_groups

    groups = site_groups(architecture_of(spec))
    if as_json:
        print_json({"model": spec, "sites": [group.to_dict() for group in groups]})
        return
    print_table(("site", "axes", "formula"), [(g.pattern, g.axes_in_words, g.formula) for g in groups])
    count = sum(len(g.names) for g in groups)
    print_lines(f"{count} sites. Keep some: hw.run(model, tokens, sites=[{groups[len(groups) // 2].names[0]!r}])")
