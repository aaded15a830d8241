"""A network's sites for people: one entry for all layers, with the sizes of its axes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from headwork.model.config import TransformerConfig
from headwork.model.sites import layer_of, sites


@dataclass(frozen=True)
class SiteGroup:
    """Sites that differ by layer only. `axes` pairs names with sizes, None where the prompts decide."""

    pattern: str
    names: tuple[str, ...]
    axes: tuple[tuple[str, int | None], ...]
    formula: str

    @property
    def axes_in_words(self) -> str:
        """`batch, pos, head 4, d_head 16`."""
        return ", ".join(name if size is None else f"{name} {size}" for name, size in self.axes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        axes = [{"name": name, "size": size} for name, size in self.axes]
        return {"pattern": self.pattern, "names": list(self.names), "axes": axes, "formula": self.formula}


def site_groups(config: TransformerConfig) -> list[SiteGroup]:
    """Every site of an architecture in the order of the forward pass, layers collapsed: `blocks.{0–1}.attn.z`."""
    names: dict[str, list[str]] = {}
    for full, site in sites(config).items():
        names.setdefault(site.name, []).append(full)
    described = {site.name: site for site in sites(config).values()}
    return [
        SiteGroup(
            _pattern(declared, group),
            tuple(group),
            tuple((axis, _size(config, axis)) for axis in described[declared].axes),
            described[declared].formula,
        )
        for declared, group in names.items()
    ]


def _pattern(declared: str, group: list[str]) -> str:
    if len(group) == 1:
        return group[0]
    layers = [layer_of(name) for name in group]
    return declared.replace("{l}", f"{{{layers[0]}–{layers[-1]}}}")


def _size(config: TransformerConfig, axis: str) -> int | None:
    sizes = {
        "d_model": config.d_model,
        "head": config.n_heads,
        "kv_head": config.kv_heads,
        "d_head": config.d_head,
        "d_mlp": config.d_mlp,
        "d_vocab_out": config.outputs,
        "one": 1,
    }
    return sizes.get(axis)
