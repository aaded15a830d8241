"""docs/performance.md from benchmarks/results.json: `python -m benchmarks.report`. Every number is in that file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.measure import fastest_peer, seconds
from benchmarks.rows import PEERS, PLAIN, ROWS, Row
from benchmarks.workers import ROOT

Results = Mapping[str, Any]

_HEAD = """# Performance

Measured by `make bench` and written by it; every number here is in `benchmarks/results.json`. The peers are released
versions in environments of their own, and every side reads the same weights and prompts from the same files.
"""


def page(results: Results) -> str:
    """The whole page."""
    parts = [_HEAD]
    if results["quick"]:
        parts.append("**A trial run on a tiny network: its times mean nothing.**\n")
    parts += [_machine(results), "## Beside the peers\n", cells(results), _notes(results)]
    parts += ["## Every round\n", _rounds(results), "## Growth\n", _growth(results)]
    return "\n".join(parts)


def cells(results: Results) -> str:
    """The table of ratios."""
    header = ["work", "Headwork", *PEERS.values(), "times as fast", "memory", "of the rate", "largest difference"]
    lines = [_line(results, row) for row in ROWS if row.name in results["rows"]]
    return _table([*header, "aimed at"], lines)


def _line(results: Results, row: Row) -> list[str]:
    rows, found = results["rows"], results["rows"][row.name]
    ours = _side(rows, row, "headwork")
    peers = {side: _side(rows, row, side) for side in PEERS}
    if row.name == "cache":
        return _cache_line(row, found)
    plain = found["sides"].get(PLAIN)
    ratio, memory, rate = _ratio(row, ours, peers, plain), _memory(ours, peers), _rate(results, row, ours)
    return [
        row.title,
        _seconds(ours),
        *(_seconds(peers[side]) for side in PEERS),
        _ratios(ratio, ours, peers),
        f"{memory:.2f}" if memory and row.compare == "scores" else "–",
        f"{rate:.0%}" if rate else "–",
        _difference(found["differences"]),
        _aims(row, ratio, memory, rate),
    ]


def _side(rows: Mapping[str, Any], row: Row, side: str) -> Mapping[str, Any] | None:
    """A side's own measurement, or that of the row that stands for it."""
    own = rows[row.name]["sides"].get(side)
    other = row.ours_of if side == "headwork" else row.beside
    if own is None and other is not None and other in rows:
        return rows[other]["sides"].get(side)
    return own


def _ratio(row: Row, ours: Any, peers: Mapping[str, Any], plain: Any) -> float | None:
    best = fastest_peer({side: found for side, found in peers.items() if found})
    other = seconds(plain) if PLAIN in row.sides else seconds(peers[best]) if best else None
    mine = seconds(ours)
    return other / mine if other and mine else None


def _ratios(ratio: float | None, ours: Any, peers: Mapping[str, Any]) -> str:
    """Against the faster peer, and in brackets against the other where it was measured."""
    mine = seconds(ours)
    if not ratio or not mine:
        return "–"
    best = fastest_peer({side: found for side, found in peers.items() if found})
    others = [seconds(found) for side, found in peers.items() if found and side != best]
    slower = [f"{other / mine:.1f}" for other in others if other and best]
    return f"{ratio:.1f}" + (f" ({', '.join(slower)})" if slower else "")


def _memory(ours: Any, peers: Mapping[str, Any]) -> float | None:
    """Peak of our whole process over the least peer's."""
    theirs = [found["peak"] for found in peers.values() if seconds(found)]
    return ours["peak"] / min(theirs) if theirs and seconds(ours) else None


def _rate(results: Results, row: Row, ours: Any) -> float | None:
    """Operations that the answer needs ÷ (time × the rate of float32 matrix products)."""
    needed, mine, fastest = results["rows"][row.name].get("needed"), seconds(ours), _fastest(results, "float32")
    return needed / (mine * fastest) if needed and mine and fastest and not row.ours_of else None


def _fastest(results: Results, dtype: str) -> float:
    return max((held[dtype] for held in results["rates"].values() if dtype in held), default=0.0)


def _aims(row: Row, ratio: float | None, memory: float | None, rate: float | None) -> str:
    """Each aim, and whether it is reached."""
    said = []
    for words, aim, value, least in (
        ("{:g} ×", row.target.times, ratio, True),
        ("then {:g} ×", row.target.then, ratio, True),
        ("memory ≤ {:.2f}", row.target.memory, memory, False),
        ("{:.0%} of the rate", row.target.rate, rate, True),
    ):
        if aim is not None:
            said.append(f"{words.format(aim)}: {_reached(aim, value, least)}{_limit(aim, value, rate, words)}")
    return "; ".join(said) or "–"


def _limit(aim: float, value: float | None, rate: float | None, words: str) -> str:
    """Where the aim is more than the rate of products allows anyone beside this peer: what it does allow."""
    if "×" not in words or not value or not rate or value / rate >= aim:
        return ""
    return f" ({value / rate:.0f} × is all that the rate allows)"


def _reached(aim: float, value: float | None, least: bool) -> str:
    if value is None:
        return "not measured"
    return "reached" if (value >= aim if least else value <= aim) else "not reached"


def _cache_line(row: Row, found: Mapping[str, Any]) -> list[str]:
    """Times as much as the bare pass, per side; every site's too for ours."""
    over: dict[str, str] = {}
    ratio = None
    for side in ("headwork", *PEERS):
        held = found["sides"].get(side, {})
        medians = held.get("notes", {}).get("medians")
        if not medians:
            over[side] = _seconds(held)
            continue
        more = medians["cached"] / medians["bare"]
        ratio = more if side == "headwork" else ratio
        over[side] = f"{more:.2f} × {medians['bare'] * 1e3:.0f} ms ({held['notes']['sites']['cached']} sites)"
    aim = row.target.overhead or 0.0
    held = _reached(aim, ratio, False)
    return [
        row.title,
        over["headwork"],
        *(over[s] for s in PEERS),
        "–",
        "–",
        "–",
        "–",
        f"≤ {aim:g} × the bare pass: {held}",
    ]


def _seconds(side: Mapping[str, Any] | None) -> str:
    if side is None:
        return "–"
    for key in ("failed", "left_out"):
        if key in side:
            return "not measured" if key == "failed" else "slower, left out"
    value = seconds(side)
    return "–" if value is None else f"{value:.2f} s, {side['peak'] / 1e9:.2f} GB"


def _difference(differences: Mapping[str, Any]) -> str:
    said = []
    for found in (differences[side] for side in ("headwork", *PEERS, PLAIN) if side in differences):
        if "differing" in found:
            said.append(f"{found['differing']} edges" if found["differing"] else "same edges")
        elif "shapes" in found:
            said.append("shapes differ")
        else:
            said.append(f"{found['largest']:.0e} of {found['scale']:.2g}")
    return ", ".join(said) or "–"


def _machine(results: Results) -> str:
    m, s, r = results["machine"], results["setting"], results["rates"]
    size = s["size"]
    loads = [f"{held['load']}" for held in r.values() if "load" in held]
    other = f"; {m['gpu']}" if "gpu" in m else ""
    rates = ", ".join(f"{_fastest(results, d) / 1e9:,.0f} GFLOP/s in {d}" for d in ("float32", "bfloat16"))
    apart = [abs(r["before"][d] / r["after"][d] - 1) for d in ("float32",) if d in r["before"] and d in r["after"]]
    spread = f" Before and after the rows the float32 rate differed by {apart[0]:.0%}." if apart else ""
    sides = [found for row in results["rows"].values() for found in row["sides"].values()]
    versions = sorted({f"{name} {v}" for found in sides for name, v in found.get("versions", {}).items()})
    return (
        f"{results['date']}, {results['minutes']} minutes: {m['processor']}, {m['cores']} cores{other}, "
        f"{m['memory_gb']} GB, {m['system']}, Python {m['python']}, torch {m['torch']}; {m['threads']} threads, "
        f"device {m['device']}. "
        f"Matrix products run at {rates}.{spread} Load average when the run began and after the rows (which are a load "
        f"themselves): {', '.join(loads) or '–'}. Versions: {', '.join(versions) or '–'}.\n\n"
        f"The network is random, of GPT-2's architecture: {size['layers']} layers, {size['heads']} heads, "
        f"d_model {size['d_model']}, {size['vocabulary']:,} tokens; float32. {s['pairs']} prompt pairs of "
        f"{s['length']} tokens, different from token {s['shared'] + 1} on; metric: logit difference at the last "
        "position; denoising.\n"
    )


def _notes(results: Results) -> str:
    rows = results["rows"]
    notes = [
        "Seconds are the median of three rounds, the sides taking turns (one round where it takes over 30 s); "
        "gigabytes the peak of the whole process, weights and libraries included. *Times as fast* is against the "
        "faster peer, and against the other in brackets; aims are judged against the faster. "
        "*Memory* is our peak over the smaller peer's.",
        "*Of the rate*: floating-point operations that the answer needs, counted by `benchmarks/products.py` from "
        "the matrix products alone, ÷ (time × the float32 rate above).",
        "*Largest difference* from Headwork's numbers, side by side in the order of the columns, beside the "
        "largest number: over every patch and prompt, or every edge, in units of the logit difference.",
        "TransformerLens 4 is a `TransformerBridge` in compatibility mode, 3 a `HookedTransformer`, both with "
        "their default processing of the weights and under `torch.no_grad`; the sweeps are "
        "`transformer_lens.patching`'s own. They run the whole prompt for every patch, and patch also the "
        "positions before the first difference, where that changes nothing; a caller who leaves those out of the "
        "residual sweep saves their share of the time.",
        "With only the last 7 positions different, weights frozen, or EAP-IG, only the peer that was faster in the "
        "first sweep, or in EAP, is measured.",
        "EAP on the peers is our rewriting of the reference's algorithm on their hooks "
        "(`benchmarks/peers/eap.py`): the reference, hannamw/EAP-IG, is not on PyPI in the version that its "
        "repository states, and asks for a GPU. As there, the weights take gradients too; one row spares the peer "
        "that.",
        _screened(rows.get("screened")),
        _acdc(rows.get("acdc")),
        _cache(rows.get("cache")),
        *_failures(rows),
    ]
    return "\n".join(f"- {note}" for note in notes if note) + "\n"


def _screened(row: Mapping[str, Any] | None) -> str:
    side = (row or {}).get("sides", {}).get("headwork", {})
    notes = side.get("notes", {})
    top = (row or {}).get("differences", {}).get("headwork", {}).get("top")
    if not top:
        return ""
    return (
        f"Screening in bfloat16: {top[0]} of the {top[1]} heads with the largest mean effects are those of the float32 "
        f"sweep; {notes['confirmed']} are confirmed in float32, where the rough mean was off by at most "
        f"{notes['screening_error']:.2g}: the largest {notes['certain_top']} are certain if no other is further off. "
        "The difference shown is over all patches, confirmed and not."
    )


def _acdc(row: Mapping[str, Any] | None) -> str:
    sides = (row or {}).get("sides", {})
    ours, plain = (sides.get(side, {}).get("notes") for side in ("headwork", PLAIN))
    if not ours or not plain:
        return ""
    scaled = "" if plain["tried"] == ours["edges"] else f" (scaled up from {plain['tried']})"
    return (
        f"ACDC keeps {ours['kept']} of {ours['edges']:,} edges, after {ours['evaluations']:,} cuts computed. The plain "
        f"way, a whole run of the circuit for every edge, takes {seconds(sides[PLAIN]) or 0:.1f} s{scaled}; the "
        f"network's own bare pass, once for every edge, {plain['bare']:.1f} s. Setting: `benchmarks/acdc.py`."
    )


def _cache(row: Mapping[str, Any] | None) -> str:
    notes = (row or {}).get("sides", {}).get("headwork", {}).get("notes", {})
    if "medians" not in notes:
        return ""
    medians, sites = notes["medians"], notes["sites"]
    return (
        f"A full cache is everything that `HookedTransformer` caches ({sites['cached']} sites). With every declared "
        f"site, each head's output in the stream included ({sites['all']} sites), Headwork takes "
        f"{medians['all'] / medians['bare']:.2f} × the bare pass."
    )


def _failures(rows: Mapping[str, Any]) -> list[str]:
    return [
        f"Not measured: {row.title}, {PEERS.get(side, side)}: {found['failed']}."
        for row in ROWS
        for side, found in rows.get(row.name, {}).get("sides", {}).items()
        if "failed" in found
    ]


def _rounds(results: Results) -> str:
    lines = []
    for row in ROWS:
        for side, found in results["rows"].get(row.name, {}).get("sides", {}).items():
            if seconds(found) is not None:
                taken = ", ".join(f"{t:.2f}" for t in found["seconds"])
                grown = found["peak"] - found["before"]
                needed = results["rows"][row.name].get("needed")
                work = f"{needed / 1e9:,.1f}" if needed and side == "headwork" else "–"
                name = PEERS.get(side, "Headwork" if side == "headwork" else "the plain way")
                lines.append([row.title, name, taken, f"{min(found['seconds']):.2f}", f"{grown / 1e6:,.0f}", work])
    return _table(["work", "side", "seconds", "least", "MB above the weights, first round", "GFLOP needed"], lines)


def _growth(results: Results) -> str:
    named = {"heads": "head output sweep", "eap": "EAP"}
    lines = []
    for cell in results["growth"]:
        start = [named[cell["work"]], str(cell["layers"]), str(cell["pairs"]), f"{cell['memory'] / 1e6:,.0f}"]
        if "failed" in cell:
            lines.append([*start, "–", "–", f"not measured: {cell['failed']}"])
            continue
        used = cell["peak"] - cell["before"]
        lines.append(
            [*start, f"{cell['seconds']:.2f}", f"{used / 1e6:,.0f}", "yes" if used <= cell["memory"] else "**no**"]
        )
    said = "Each line is a fresh process; MB are the peak above what it held with the weights loaded and warmed up.\n\n"
    return said + _table(
        ["work", "layers", "prompt pairs", "limit, MB", "seconds", "MB used", "under the limit"], lines
    )


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def main() -> None:
    """Write the page again."""
    results = json.loads((ROOT / "benchmarks" / "results.json").read_text())
    (ROOT / "docs" / "performance.md").write_text(page(results).rstrip("\n") + "\n")


if __name__ == "__main__":
    main()
