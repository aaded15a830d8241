"""What is measured: the rows of the table, who does each, and what is aimed at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.setting import Setting, late

from benchmarks import products

PLAIN = "plain"  # Headwork again, by the obvious way
PEERS = {"tl4": "TransformerLens 4.3.0", "tl3": "TransformerLens 3.9.0"}


@dataclass(frozen=True)
class Target:
    """What is aimed at. `times`: at least so many times as fast as the fastest peer; the others are upper bounds
    (`memory`, `overhead`) or lower ones (`rate`, a fraction of the machine's)."""

    times: float | None = None
    then: float | None = None
    memory: float | None = None
    rate: float | None = None
    overhead: float | None = None


@dataclass(frozen=True)
class Row:
    """One piece of work. `work` is its name with the workers, `sides` who does it.

    `fastest_of` names a row whose fastest peer alone is measured here; `beside` one whose peers' times, and `ours_of`
    one whose own, stand for this row's, since the work is the same.
    """

    name: str
    title: str
    work: str
    sides: tuple[str, ...]
    target: Target
    needed: Callable[[Setting], int] | None = None
    late: bool = False
    fastest_of: str | None = None
    beside: str | None = None
    ours_of: str | None = None
    options: dict[str, dict[str, object]] = field(default_factory=dict)
    compare: str = "patched"

    def work_of(self, side: str) -> str:
        """What a side's worker calls it."""
        return f"{self.work}-{side}" if side == PLAIN else self.work

    def setting(self, base: Setting) -> Setting:
        """The prompts that it is measured on."""
        return late(base) if self.late else base


# Of 1,519 edges; all of them the plain way took 15 minutes (`python benchmarks/acdc.py`).
PLAIN_EDGES = 250

ROWS = (
    Row(
        "heads",
        "head output sweep, all positions",
        "heads",
        ("headwork", "tl4", "tl3"),
        Target(times=5, rate=0.8),
        products.head_sweep,
    ),
    Row(
        "residual",
        "residual sweep, layer × position",
        "residual",
        ("headwork", "tl4", "tl3"),
        Target(times=8, then=11, rate=0.6),
        products.residual_sweep,
    ),
    Row(
        "heads-late",
        "head output sweep, only the last 7 positions differ",
        "heads",
        ("headwork", "tl4", "tl3"),
        Target(times=7),
        products.head_sweep,
        late=True,
        fastest_of="heads",
    ),
    Row(
        "residual-late",
        "residual sweep, only the last 7 positions differ",
        "residual",
        ("headwork", "tl4", "tl3"),
        Target(times=13),
        products.residual_sweep,
        late=True,
        fastest_of="residual",
    ),
    Row(
        "screened",
        "head output sweep, screened in bfloat16, the top confirmed in float32",
        "screened",
        ("headwork",),
        Target(times=12),
        beside="heads",
    ),
    Row(
        "eap",
        "EAP, all edges",
        "eap",
        ("headwork", "tl3", "tl4"),
        Target(times=28, memory=0.4),
        products.edge_attribution,
        compare="scores",
    ),
    Row(
        "eap-frozen",
        "EAP, the peer's weights frozen",
        "eap",
        ("tl3", "tl4"),
        Target(),
        fastest_of="eap",
        ours_of="eap",
        options={side: {"frozen": True} for side in PEERS},
        compare="scores",
    ),
    Row(
        "eap-ig",
        "EAP-IG over inputs, 5 steps",
        "eap-ig",
        ("headwork", "tl3", "tl4"),
        Target(times=33, memory=1 / 3),
        lambda s: products.edge_attribution(s, 5),
        fastest_of="eap",
        compare="scores",
    ),
    Row(
        "acdc",
        "ACDC, against a whole forward pass for every edge",
        "acdc",
        ("headwork", PLAIN),
        Target(times=10),
        compare="mask",
        options={PLAIN: {"at_most": PLAIN_EDGES}},
    ),
    Row("cache", "forward pass with a full cache", "cache", ("headwork", "tl4", "tl3"), Target(overhead=1.1)),
)


@dataclass(frozen=True)
class Cell:
    """One cell of the growth table, measured in a process of its own under a limit in bytes."""

    work: str
    layers: int
    pairs: int
    memory: int

    @property
    def name(self) -> str:
        return f"growth-{self.work}-{self.layers}-{self.pairs}-{self.memory // 1_000_000}"


def growth(quick: bool) -> list[Cell]:
    """Head sweep and EAP: 16 to 256 prompts with 6 layers, 2 to 12 layers with 64, under 500 MB; some under 2 GB."""
    low, high = 500_000_000, 2_000_000_000
    if quick:
        return [Cell("heads", 2, 3, low), Cell("eap", 2, 3, low)]
    sizes = [(6, 16), (6, 64), (6, 256), (2, 64), (12, 64)]
    cells = [Cell(work, layers, pairs, low) for work in ("heads", "eap") for layers, pairs in sizes]
    return [*cells, Cell("eap", 12, 256, low), *(Cell(work, 12, 64, high) for work in ("heads", "eap"))]
