"""Arrays in, SVG pictures and self-contained HTML out. Knows nothing of networks; one file per picture."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headwork.draw.attention_explorer import attention_view
    from headwork.draw.attention_maps import AttentionPanel, attention, attention_grid
    from headwork.draw.bars import BarRow, interval_bars
    from headwork.draw.circuit_diagram import circuit
    from headwork.draw.circuit_graph import CircuitEdge, CircuitNode
    from headwork.draw.curve_plot import Reference, Series, Span, curves
    from headwork.draw.forest_plot import ForestRow, forest
    from headwork.draw.heat_map import heatmap
    from headwork.draw.picture import Picture, View

__all__ = [
    "AttentionPanel",
    "BarRow",
    "CircuitEdge",
    "CircuitNode",
    "ForestRow",
    "Picture",
    "Reference",
    "Series",
    "Span",
    "View",
    "attention",
    "attention_grid",
    "attention_view",
    "circuit",
    "curves",
    "forest",
    "heatmap",
    "interval_bars",
]

# Loaded on first use, so that importing this package imports no matplotlib. No module has the name of a function:
# importing a module binds it on the package and would hide the function.
_HOME = {
    "AttentionPanel": "attention_maps",
    "BarRow": "bars",
    "CircuitEdge": "circuit_graph",
    "CircuitNode": "circuit_graph",
    "ForestRow": "forest_plot",
    "Picture": "picture",
    "Reference": "curve_plot",
    "Series": "curve_plot",
    "Span": "curve_plot",
    "View": "picture",
    "attention": "attention_maps",
    "attention_grid": "attention_maps",
    "attention_view": "attention_explorer",
    "circuit": "circuit_diagram",
    "curves": "curve_plot",
    "forest": "forest_plot",
    "heatmap": "heat_map",
    "interval_bars": "bars",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
