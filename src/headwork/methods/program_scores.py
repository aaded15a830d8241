"""Scoring a program against a network by interchange interventions, variable by variable.

What a variable's places hold in the run on a source prompt is put into the run on a base prompt; if the variable lies
there, the network then answers as the program does on the base with the source's value of the variable (Geiger et al.
2021, 2024). Only pairs on which that differs from the program's answer without the interchange tell anything; an
accuracy over all pairs would be high for a variable that seldom matters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from headwork.engine.edits import Edit
from headwork.engine.resume import resume, trace
from headwork.engine.run import Tokens, as_tokens, bytes_kept, run
from headwork.errors import UserError
from headwork.methods.ablation_choices import AblationChoices
from headwork.methods.interchange import wilson
from headwork.methods.programs import Program, Spot, alternatives, similar_spots
from headwork.methods.room import copies_that_fit
from headwork.model.transformer import Transformer

if TYPE_CHECKING:
    import xarray


def independent_pairs(
    prompts: Int[Tensor, "prompt pos"], generator: torch.Generator
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
    """Base and source prompts, each prompt in one pair at random; one is left over where their number is odd."""
    order = torch.randperm(len(prompts), generator=generator)
    half = len(prompts) // 2
    if not half:
        raise UserError(f"{len(prompts)} prompts make no pair; at least 2 are needed.")
    return prompts[order[:half]], prompts[order[half : 2 * half]]


def program_scores(
    model: Transformer,
    program: Program,
    base: Tokens,
    source: Tokens,
    *,
    rivals: Sequence[Program] = (),
    draws: int = 20,
    seed: int = 0,
    memory: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> xarray.Dataset:
    """How often interchanging each variable makes the network answer as the program says, and how often controls do.

    Row b of `source` gives the values for row b of `base`. The intervals take the pairs as independent: no prompt
    should stand in two (`independent_pairs`). `rivals` are other programs with variables of the same names; the same
    interventions are held against what they predict. `memory` is in bytes, beside the weights; `progress` is called
    with the number of interchanges done since the last call.

    The dataset has dims `variable`, `place` (the variable whose places are meant), `draw`, `rival` and `prompt`:

    - `accuracy` [variable], with its 95 % Wilson `accuracy_interval` [variable, bound]: over the pairs whose predicted
      answer changes, the share for which the network gives it; `counted` is their number, `counted_share` their share
      of all pairs, `counts` [variable, prompt] says which, `reached` [variable, prompt] where the network gives it;
    - `kept_accuracy` [variable], `kept_interval`, `kept_counted`: over the pairs whose predicted answer stays although
      the source's own is another, the share for which it does. An interchange of everything has 0, one of nothing 1;
    - `balanced_accuracy` [variable]: the mean of the two, ½ for an interchange of everything, and of nothing;
    - `behaviour`, `behaviour_interval`: the share of base prompts that network and program answer alike, untouched;
    - `permuted_accuracy`, `permuted_balanced` [variable, place]: the variable's predictions against interchanges at
      each variable's places;
    - `shuffled_accuracy` [variable]: against predictions with another pair's source value, where those change the
      answer;
    - `random_accuracy`, `random_balanced` [variable, draw], and of each the `_mean` and `_best` draw: interchanges at
      random places of the same kind and size, never the very same ones; NaN where there are no others;
    - `rival_accuracy` [rival, variable]: over the rival's own counted pairs (`rival_counted`), and, over the pairs on
      which program and rival differ and one of them predicts a change (`disputed`), `disputed_accuracy` of the program
      and `disputed_rival_accuracy`.

    Accuracies without a pair that counts are NaN. Raises `UserError`, before any work, for what does not exist or does
    not fit, and for rivals with other variables.
    """
    base, source = as_tokens(model, base), as_tokens(model, source)
    if base.shape != source.shape:
        raise UserError(
            f"Base prompts are {list(base.shape)}, source prompts {list(source.shape)}; they must be alike."
        )
    if draws < 1:
        raise UserError(f"{draws} random places were asked for; the comparison needs at least 1.")
    batch, length = base.shape
    program = program.checked(model.config, length)
    _check_rivals(program, rivals)
    told = _told(program, base, source)
    against = [_told(rival, base, source) for rival in rivals]
    others = _random_places(model, program, length, draws, seed)
    wanted = [v.places for v in program.variables] + [spots for drawn in others for spots in drawn]
    names = sorted({spot.site for spots in wanted for spot in spots})
    element = model.embed.weight.element_size()
    size, _ = copies_that_fit(
        model,
        batch,
        length,
        bytes_kept(model, 1, length, names),
        memory,
        "Interchanging the variables of a program",
        length * model.config.outputs * element,
    )
    parts = [
        _answers(model, program, base[rows], source[rows], wanted, names, progress)
        for rows in torch.arange(batch, device=base.device).split(size)
    ]
    found = torch.cat(parts, 1)
    return _dataset(program, rivals, told, against, found, [len(drawn) for drawn in others], draws, seed)


@dataclass(frozen=True, eq=False)
class _Told:
    """What a program says of the pairs: its answers untouched, and with each variable from the source."""

    before: Int[Tensor, " batch"]
    after: Int[Tensor, "variable batch"]
    shuffled: Int[Tensor, "variable batch"]
    source: Int[Tensor, " batch"]

    @property
    def counts(self) -> Bool[Tensor, "variable batch"]:
        return self.after != self.before

    @property
    def keeps(self) -> Bool[Tensor, "variable batch"]:
        """Where the answer stays, and does not with everything from the source."""
        return ~self.counts & (self.source != self.before)


def _told(program: Program, base: Tensor, source: Tensor) -> _Told:
    base, source = base.cpu(), source.cpu()
    elsewhere = source.roll(1, 0)  # pairs come in no order, so the next pair's source is a random one
    return _Told(
        program.answer(base),
        torch.stack([program.exchanged(base, source, name) for name in program.names]),
        torch.stack([program.exchanged(base, elsewhere, name) for name in program.names]),
        program.answer(source),
    )


def _check_rivals(program: Program, rivals: Sequence[Program]) -> None:
    for rival in rivals:
        if rival.names != program.names:
            raise UserError(
                f"The rival {rival.name!r} has the variables {', '.join(rival.names)}; it needs those of "
                f"{program.name!r}, in their order: {', '.join(program.names)}."
            )
    names = [rival.name for rival in rivals]
    if len(set(names)) < len(names):
        raise UserError(f"Two rivals have the same name; they are {', '.join(names)}.")


def _random_places(
    model: Transformer, program: Program, length: int, draws: int, seed: int
) -> list[list[tuple[Spot, ...]]]:
    """For each variable, `draws` places other than its own; none where there are no others."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for variable in program.variables:
        drawn: list[tuple[Spot, ...]] = []
        own = {_sorted(spot) for spot in variable.places}
        while alternatives(model.config, length, variable.places) > 1 and len(drawn) < draws:
            spots = similar_spots(model.config, length, variable.places, generator)
            if {_sorted(spot) for spot in spots} != own:
                drawn.append(spots)
        found.append(drawn)
    return found


def _sorted(spot: Spot) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    return spot.site, tuple(sorted(spot.heads or ())), tuple(sorted(spot.positions or ()))


def _answers(
    model: Transformer,
    program: Program,
    base: Int[Tensor, "batch pos"],
    source: Int[Tensor, "batch pos"],
    places: Sequence[Sequence[Spot]],
    names: Sequence[str],
    progress: Callable[[int], None] | None,
) -> Int[Tensor, "run batch"]:
    """The network's answers untouched (first) and under each interchange."""
    kept = run(model, source, names).activations
    known = trace(model, base)
    found = [_answer(model.logits(known.resid_final[:, [program.answer_position]])[:, 0], program)]
    for spots in places:
        edits: list[Edit] = [spot.edit(kept) for spot in spots]
        edited, start = resume(model, known, edits)
        at = program.answer_position - start
        found.append(found[0] if at < 0 else _answer(edited.logits[:, at], program))
        if progress is not None:
            progress(1)
    return torch.stack(found)


def _answer(logits: Tensor, program: Program) -> Int[Tensor, " batch"]:
    chosen = torch.tensor(program.answers or range(logits.shape[-1]), device=logits.device)
    logits = logits[:, chosen]
    if not bool(logits.isfinite().all()):
        raise UserError("The network's logits are not finite; it has no answer to score.")
    return chosen[logits.argmax(-1)].cpu()


def _share(hits: Tensor, among: Tensor) -> float:
    return float(hits[among].double().mean()) if bool(among.any()) else float("nan")


def _interval(hits: Tensor, among: Tensor) -> list[float]:
    count = int(among.sum())
    return list(wilson(int(hits[among].sum()), count)) if count else [float("nan")] * 2


def _dataset(
    program: Program,
    rivals: Sequence[Program],
    told: _Told,
    against: Sequence[_Told],
    found: Int[Tensor, "run batch"],
    drawn: Sequence[int],
    draws: int,
    seed: int,
) -> xarray.Dataset:
    import numpy as np
    import xarray

    n = len(program.variables)
    each = range(n)
    untouched, own, random = found[0], found[1 : 1 + n], found[1 + n :].split(list(drawn))
    counts, keeps, reached = told.counts, told.keeps, own == told.after

    def scores(v: int, answers: Tensor) -> tuple[float, float]:
        """What the variable's predictions get from these answers: accuracy, and its mean with that of kept ones."""
        hits = answers == told.after[v]
        accuracy = _share(hits, counts[v])
        return accuracy, (accuracy + _share(hits, keeps[v])) / 2

    at_random = np.full((2, n, draws), np.nan)
    for v, answers in enumerate(random):
        for d, one in enumerate(answers):
            at_random[:, v, d] = scores(v, one)
    permuted = np.array([[scores(v, own[p]) for p in each] for v in each])
    everyone = torch.ones(len(untouched), dtype=torch.bool)
    alike = untouched == told.before
    ratio, pairs, line = {"units": "1"}, {"units": "pairs"}, ("variable", "bound")
    variables: dict[str, Any] = {
        "accuracy": ("variable", [_share(reached[v], counts[v]) for v in each], ratio),
        "accuracy_interval": (line, [_interval(reached[v], counts[v]) for v in each], ratio),
        "counted": ("variable", counts.sum(1).tolist(), pairs),
        "counted_share": ("variable", counts.double().mean(1).tolist(), ratio),
        "counts": (("variable", "prompt"), counts.numpy()),
        "reached": (("variable", "prompt"), reached.numpy()),
        "kept_accuracy": ("variable", [_share(reached[v], keeps[v]) for v in each], ratio),
        "kept_interval": (line, [_interval(reached[v], keeps[v]) for v in each], ratio),
        "kept_counted": ("variable", keeps.sum(1).tolist(), pairs),
        "balanced_accuracy": ("variable", [scores(v, own[v])[1] for v in each], ratio),
        "behaviour": ((), _share(alike, everyone), ratio),
        "behaviour_interval": ("bound", _interval(alike, everyone), ratio),
        "permuted_accuracy": (("variable", "place"), permuted[..., 0], ratio),
        "permuted_balanced": (("variable", "place"), permuted[..., 1], ratio),
        "shuffled_accuracy": (
            "variable",
            [_share(own[v] == told.shuffled[v], told.shuffled[v] != told.before) for v in each],
            ratio,
        ),
        "places": ("variable", [" and ".join(map(str, variable.places)) for variable in program.variables]),
    }
    for name, values in zip(("random_accuracy", "random_balanced"), at_random):
        variables |= {
            name: (("variable", "draw"), values, ratio),
            f"{name}_mean": ("variable", values.mean(1), ratio),
            f"{name}_best": ("variable", values.max(1), ratio),
        }
    if rivals:
        variables |= _beside(told, against, own)
    choices = AblationChoices("node", "subspace", "counterfactual", "noising", "circuit", "those of the variable")
    coords: Mapping[str, Any] = {
        "variable": list(program.names),
        "place": list(program.names),
        "draw": range(draws),
        "bound": ["low", "high"],
        "prompt": range(len(untouched)),
    }
    return xarray.Dataset(
        variables,
        coords=dict(coords) | ({"rival": [rival.name for rival in rivals]} if rivals else {}),
        attrs={"method": "program scored by interchange", "program": program.name, "seed": seed} | choices.attrs(),
    )


def _beside(told: _Told, against: Sequence[_Told], own: Int[Tensor, "variable batch"]) -> dict[str, Any]:
    """The rivals' scores under the program's interventions."""
    dims, ratio, pairs = ("rival", "variable"), {"units": "1"}, {"units": "pairs"}
    rows: dict[str, list[list[float]]] = {
        name: []
        for name in ("rival_accuracy", "rival_counted", "disputed", "disputed_accuracy", "disputed_rival_accuracy")
    }
    for rival in against:
        disputed = (told.after != rival.after) & (told.counts | rival.counts)
        each = [(own[v], told.after[v], rival.after[v], rival.counts[v], disputed[v]) for v in range(len(own))]
        rows["rival_accuracy"].append([_share(a == theirs, c) for a, _, theirs, c, _ in each])
        rows["rival_counted"].append([int(c.sum()) for _, _, _, c, _ in each])
        rows["disputed"].append([int(d.sum()) for *_, d in each])
        rows["disputed_accuracy"].append([_share(a == ours, d) for a, ours, _, _, d in each])
        rows["disputed_rival_accuracy"].append([_share(a == theirs, d) for a, _, theirs, _, d in each])
    counted = ("rival_counted", "disputed")
    return {name: (dims, values, pairs if name in counted else ratio) for name, values in rows.items()}
