"""Is a circuit enough, all, and no more than what is needed: faithfulness, completeness, minimality.

F(X) is the mean metric of the network with everything outside X ablated, C the circuit, M the whole network. The three
criteria are those of Wang et al. 2022; faithfulness is divided by what there is to recover (Mueller et al. 2025).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from headwork.engine.metrics import Metric
from headwork.engine.run import Tokens
from headwork.errors import UserError, unknown
from headwork.methods.ablation_choices import AblationValue, Direction
from headwork.methods.circuit import Circuit
from headwork.methods.circuit_metric import CircuitMetric, circuit_metric
from headwork.model.transformer import Transformer
from headwork.tasks.prompt_pairs import PromptPairs

if TYPE_CHECKING:
    import xarray

_METRIC = {"units": "units of the metric"}


def faithfulness(
    model: Transformer,
    pairs: PromptPairs,
    metric: Metric,
    circuit: Circuit,
    *,
    value: AblationValue = "counterfactual",
    direction: Direction = "noising",
    reference: Tokens | None = None,
    seed: int = 0,
    memory: int | None = None,
) -> xarray.Dataset:
    """How much of the network's behaviour a circuit has on its own: (F(C) − F(∅)) ÷ (F(M) − F(∅)).

    - `faithfulness`: that ratio of means; 1 is the whole network's mean, 0 that of nothing. NaN, with the reason in the
      attribute `undefined`, where the two have the same mean;
    - `faithfulness_by_prompt` [prompt]: the same, pair by pair; NaN where a pair has nothing to recover;
    - `circuit`, `whole`, `empty` [prompt]: the metric of C, M and ∅.

    What is ablated, and with what, is said in `headwork.methods.circuit_metric` and recorded in the attributes. Raises
    `UserError` for a circuit of another architecture and for what the prompts, the metric or the memory do not allow.
    """
    import xarray

    measure = circuit_metric(
        model, pairs, metric, value=value, direction=direction, reference=reference, seed=seed, memory=memory
    )
    grain = circuit.granularity
    found, whole, empty = measure([circuit, Circuit.whole(model.config, grain), Circuit.empty(model.config, grain)])
    ratio, by_prompt, undefined = measure.share(found, whole, empty)
    return xarray.Dataset(
        {
            "faithfulness": ((), ratio, {"units": "1"}),
            "faithfulness_by_prompt": ("prompt", by_prompt, {"units": "1"}),
            "circuit": ("prompt", found, _METRIC),
            "whole": ("prompt", whole, _METRIC),
            "empty": ("prompt", empty, _METRIC),
        },
        coords={"prompt": list(measure.labels)},
        attrs={"method": "faithfulness", "size": len(circuit), "metric": type(metric).__name__, "seed": seed}
        | measure.choices(grain)
        | undefined,
    )


def completeness(
    model: Transformer,
    pairs: PromptPairs,
    metric: Metric,
    circuit: Circuit,
    *,
    sets: int | Sequence[Circuit] = 10,
    greedy: int = 0,
    candidates: int = 10,
    value: AblationValue = "counterfactual",
    direction: Direction = "noising",
    reference: Tokens | None = None,
    seed: int = 0,
    memory: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> xarray.Dataset:
    """Is anything of the behaviour outside the circuit: |F(C∖K) − F(M∖K)| for parts K of the circuit.

    A complete circuit loses what the network loses, whichever part K both lack. K is nothing, all of C, and `sets` of
    its parts: so many drawn evenly from all its subsets with `seed`, or those given. `greedy` more are built one part
    at a time: of `candidates` drawn ones the one joins that makes the difference largest.

    - `incompleteness` []: the largest difference over all K; 0 is complete;
    - `difference` [set]; `kind` [set]: `nothing`, `everything`, `random`, `given`, `greedy`; `size` [set];
    - `circuit_without`, `network_without` [set, prompt]: the metric of C∖K and of M∖K;
    - `without_circuit` [prompt]: the metric of M∖C;
    - `normalised` [set]: difference ÷ |F(M) − F(∅)|, NaN where that is 0.

    Errors as in `faithfulness`; also for an empty circuit and for a K with something that is not in the circuit.
    """
    import xarray

    tried = _parts(circuit, sets, seed)
    whole = Circuit.whole(model.config, circuit.granularity)
    measure = circuit_metric(
        model, pairs, metric, value=value, direction=direction, reference=reference, seed=seed, memory=memory
    )

    def without(some: Sequence[Circuit]) -> Float[np.ndarray, "from set prompt"]:
        found = measure([start - part for start in (circuit, whole) for part in some], progress)
        return found.reshape(2, len(some), len(measure.labels))

    every = [(Circuit.empty(model.config, circuit.granularity), "nothing"), (circuit, "everything"), *tried]
    draw = np.random.default_rng(seed)
    grown = every[0][0]
    for _ in range(min(greedy, len(circuit))):
        left = units(circuit - grown)
        some = [grown | left[i] for i in sorted(draw.permutation(len(left))[:candidates])]
        small, large = without(some).mean(-1)
        grown = some[int(np.abs(small - large).argmax())]
        every.append((grown, "greedy"))
    small, large = without([part for part, _ in every])
    difference = np.abs(small.mean(-1) - large.mean(-1))
    attrs = {"method": "completeness", "size": len(circuit), "metric": type(metric).__name__, "seed": seed}
    scaled, undefined = _scaled(measure, difference, circuit)
    return xarray.Dataset(
        {
            "incompleteness": ((), difference.max(), _METRIC),
            "difference": ("set", difference, _METRIC),
            "normalised": ("set", scaled, {"units": "1"}),
            "circuit_without": (("set", "prompt"), small, _METRIC),
            "network_without": (("set", "prompt"), large, _METRIC),
            "without_circuit": ("prompt", large[1], _METRIC),
            "size": ("set", [len(part) for part, _ in every]),
        },
        coords={"kind": ("set", [kind for _, kind in every]), "prompt": list(measure.labels)},
        attrs=attrs | measure.choices(circuit.granularity, "circuit") | undefined,
    )


def minimality(
    model: Transformer,
    pairs: PromptPairs,
    metric: Metric,
    circuit: Circuit,
    *,
    parts: Sequence[str] | None = None,
    sets: int | Sequence[Circuit] = 3,
    value: AblationValue = "counterfactual",
    direction: Direction = "noising",
    reference: Tokens | None = None,
    seed: int = 0,
    memory: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> xarray.Dataset:
    """Is every part of the circuit needed: what removing v does, F(C∖(K ∪ {v})) − F(C∖K), for some parts K of it.

    Another part can stand in for v; with K removed too, it cannot (Wang et al. 2022). K is nothing and `sets` of the
    circuit's parts: so many drawn evenly from all its subsets with `seed`, or those given. v is each of the circuit's
    edges (heads and MLPs), or only `parts`, by name.

    - `minimality` [part]: the largest |change| over all K tried; 0 says that no K was found for which v matters;
    - `change` [part, set]: signed, of the mean metric; `size` [set], v itself not counted;
    - `change_by_prompt` [part, set, prompt];
    - `normalised` [part]: minimality ÷ |F(M) − F(∅)|, NaN where that is 0.

    Errors as in `completeness`; also for a part that the circuit does not have.
    """
    import xarray

    single = dict(zip(unit_names(circuit), units(circuit)))
    for name in parts or ():
        if name not in single:
            raise unknown(f"{circuit.granularity} of the circuit", name, single)
    chosen = list(single) if parts is None else list(parts)
    removed = [Circuit.empty(model.config, circuit.granularity), *(part for part, _ in _parts(circuit, sets, seed))]
    measure = circuit_metric(
        model, pairs, metric, value=value, direction=direction, reference=reference, seed=seed, memory=memory
    )
    with_and_without = [
        kept
        for name in chosen
        for gone in removed
        for kept in (circuit - (gone - single[name]), circuit - (gone | single[name]))
    ]
    found = measure(with_and_without, progress).reshape(len(chosen), len(removed), 2, len(measure.labels))
    change = found[:, :, 1] - found[:, :, 0]
    largest = np.abs(change.mean(-1)).max(1)
    scaled, undefined = _scaled(measure, largest, circuit)
    attrs = {"method": "minimality", "size": len(circuit), "metric": type(metric).__name__, "seed": seed}
    return xarray.Dataset(
        {
            "minimality": ("part", largest, _METRIC),
            "normalised": ("part", scaled, {"units": "1"}),
            "change": (("part", "set"), change.mean(-1), _METRIC),
            "change_by_prompt": (("part", "set", "prompt"), change, _METRIC),
            "size": ("set", [len(part) for part in removed]),
        },
        coords={"part": chosen, "prompt": list(measure.labels)},
        attrs=attrs | measure.choices(circuit.granularity, "circuit") | undefined,
    )


def unit_names(circuit: Circuit) -> tuple[str, ...]:
    """What can be removed from a circuit one at a time: its edges, or its heads and MLPs."""
    return circuit.names if circuit.granularity == "edge" else circuit.nodes


def units(circuit: Circuit) -> list[Circuit]:
    """Each of them as a circuit of its own."""
    build = Circuit.from_names if circuit.granularity == "edge" else Circuit.from_nodes
    return [build(circuit.config, [name]) for name in unit_names(circuit)]


def _parts(circuit: Circuit, sets: int | Sequence[Circuit], seed: int) -> list[tuple[Circuit, str]]:
    """Parts of a circuit: the given ones, or so many drawn evenly from all its subsets."""
    if not circuit:
        raise UserError("The circuit is empty, so that there is no part of it to remove.")
    if not isinstance(sets, int):
        for part in sets:
            if part - circuit:
                raise UserError(f"A part to remove has {unit_names(part - circuit)[0]}, which is not in the circuit.")
        return [(part, "given") for part in sets]
    if sets < 0:
        raise UserError(f"{sets} sets of the circuit's parts were asked for; 0 or more can be drawn.")
    draw, names = np.random.default_rng(seed), unit_names(circuit)
    build = Circuit.from_names if circuit.granularity == "edge" else Circuit.from_nodes
    drawn = [draw.random(len(names)) < 0.5 for _ in range(sets)]
    return [(build(circuit.config, [n for n, here in zip(names, chosen) if here]), "random") for chosen in drawn]


def _scaled(
    measure: CircuitMetric, sizes: Float[np.ndarray, " n"], circuit: Circuit
) -> tuple[Float[np.ndarray, " n"], dict[str, str]]:
    """Sizes of differences of the mean metric, divided by |F(M) − F(∅)|."""
    ends = (Circuit.whole(circuit.config, circuit.granularity), Circuit.empty(circuit.config, circuit.granularity))
    whole, empty = measure(ends)
    ratio, _, undefined = measure.share(empty + sizes[:, None], whole, empty)
    return np.abs(ratio), undefined
