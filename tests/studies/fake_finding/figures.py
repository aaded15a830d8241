"""One figure, as small as can be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import xarray

from headwork.draw.picture import Picture
from headwork.findings.figure import Figure, ShownLevel, Summary


def figures(
    data: xarray.Dataset, heads: Mapping[str, Sequence[str]], levels: Sequence[ShownLevel], summary: Summary
) -> list[Figure]:
    interval = summary(data["effect"].values)
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><title>{interval.value}</title></svg>'
    basis = f"n = {data.sizes['sequence']}; {len(levels)} levels"
    return [
        Figure(name="effect", slot="main", title="Effect", caption="Effect.", basis=basis, picture=Picture(svg, "A"))
    ]
