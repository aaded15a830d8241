"""Programs are scored as by a slow twin, and the true program of a network wired by hand is told from wrong ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray
from tests.architectures import network, prompts
from torch import Tensor

from headwork.errors import UserError
from headwork.methods import program_scores as module
from headwork.methods.program_scores import independent_pairs, program_scores
from headwork.methods.programs import Program, Spot, Variable, alternatives, similar_spots
from headwork.model.config import TransformerConfig
from headwork.model.initialise import initialise
from headwork.model.sources import load
from headwork.model.transformer import Transformer
from headwork.tasks.published import task_of

# --- A network wired by hand ------------------------------------------------------------------------------------------

# Prompts are [value, value, flag]; the answer is the first value where the flag is FIRST, else the second one.
VALUES, FIRST, SECOND = 6, 6, 7
HEAD = "blocks.1.attn."
TOKEN, PLACE, ANSWER = slice(0, 8), slice(8, 11), slice(11, 17)
CONFIG = TransformerConfig(
    n_layers=2, d_model=17, n_heads=2, d_head=8, d_vocab=8, n_ctx=3, positions="learned", attention_scale=1.0
)


def wired() -> Transformer:
    """Head 1.0 looks where the flag points and copies what stands there; the other heads write nothing."""
    model = initialise(CONFIG, 0).double().requires_grad_(False)
    for parameter in model.parameters():
        parameter.zero_()
    model.W_E[:, TOKEN] = torch.eye(8).double()
    model.W_pos[:, PLACE] = torch.eye(3).double()
    attn = model.layers[1].attn
    attn.W_Q[0, FIRST, 0] = attn.W_Q[0, SECOND, 1] = 40
    attn.W_K[0, PLACE, :3] = torch.eye(3).double()
    attn.W_V[0, :VALUES, :VALUES] = torch.eye(VALUES).double()
    attn.W_O[0, :VALUES, ANSWER] = torch.eye(VALUES).double()
    model.W_U[ANSWER, :VALUES] = torch.eye(VALUES).double()
    return model


def copying(name: str = "copy what the flag points to", first: int = 0, flag: int = FIRST) -> Program:
    """The true program; a wrong one copies from elsewhere, or takes the flag for the other one."""

    def chosen(tokens: Tensor, values) -> Tensor:
        return torch.where(values["flag"], values["left"], values["right"])

    return Program(
        name,
        (
            Variable("left", lambda tokens, _: tokens[:, first], (Spot(HEAD + "v", (0,), (0,)),)),
            Variable("right", lambda tokens, _: tokens[:, 1 - first], (Spot(HEAD + "v", (0,), (1,)),)),
            Variable("flag", lambda tokens, _: tokens[:, 2] == flag, (Spot(HEAD + "pattern", (0,), (-1,)),)),
            Variable("chosen", chosen, (Spot(HEAD + "z", (0,), (2,)),)),
        ),
        lambda tokens, values: values["chosen"],
        answers=tuple(range(VALUES)),
    )


def flagged(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, VALUES, (2 * count, 2), generator=generator)
    flags = torch.randint(FIRST, SECOND + 1, (2 * count, 1), generator=generator)
    return independent_pairs(torch.cat([values, flags], 1), generator)


def test_the_true_program_scores_one_and_wrong_ones_near_nothing() -> None:
    base, source = flagged(300)
    wrong = copying("copy what the flag does not point to", first=1)
    found = program_scores(wired(), copying(), base, source, rivals=[wrong])
    assert float(found["behaviour"]) == 1
    assert found["accuracy"].values.tolist() == [1] * 4
    assert found["kept_accuracy"].values[:3].tolist() == [1] * 3
    assert (found["accuracy_interval"].sel(bound="low") > 0.95).all()
    assert (found["rival_accuracy"] < 0.35).all()
    assert (found["disputed"] > 100).all()
    assert (found["disputed_accuracy"] == 1).all()
    assert (found["disputed_rival_accuracy"] == 0).all()
    assert (found["shuffled_accuracy"] < 0.6).all()
    # The values of the one place are no values of the other, and random places are not the wired ones.
    permuted = found["permuted_accuracy"].sel(variable=["left", "right", "flag"], place=["left", "right", "flag"])
    assert (permuted.values[~np.eye(3, dtype=bool)] < 0.25).all()  # one value in six is the same by chance
    assert (found["random_accuracy_mean"] < 0.3).all()
    own = program_scores(wired(), wrong, base, source)
    assert float(own["behaviour"]) < 0.3
    assert (own["accuracy"] < 0.3).all()


def test_only_pairs_whose_predicted_answer_changes_count() -> None:
    base = torch.tensor([[0, 1, FIRST], [0, 1, FIRST], [0, 1, SECOND], [0, 0, FIRST]])
    source = torch.tensor([[2, 3, FIRST], [0, 3, SECOND], [2, 3, FIRST], [4, 5, SECOND]])
    found = program_scores(wired(), copying(), base, source)
    assert found["counts"].sel(variable="left").values.tolist() == [True, False, False, True]
    assert found["counts"].sel(variable="right").values.tolist() == [False, False, True, False]
    assert found["counts"].sel(variable="flag").values.tolist() == [False, True, True, False]
    assert found["counted"].values.tolist() == [2, 1, 2, 4]
    assert found["counted_share"].values.tolist() == [0.5, 0.25, 0.5, 1]
    # Every source's own answer differs from the base's here: what does not count must be kept.
    assert found["kept_counted"].values.tolist() == [2, 3, 2, 0]
    assert found["kept_accuracy"].values[:3].tolist() == [1, 1, 1]
    assert np.isnan(found["kept_accuracy"].values[3])


def test_an_interchange_of_everything_is_not_taken_for_a_variable() -> None:
    """What carries the whole answer reaches many predictions; the pairs whose answer should stay give it away."""
    base, source = flagged(300)
    true = copying()
    everything = (Spot("blocks.1.resid_post", None, (-1,)),)
    flag = dataclasses.replace(true.variables[2], places=everything)
    claimed = dataclasses.replace(true, variables=(*true.variables[:2], flag, true.variables[3]))
    found = program_scores(wired(), claimed, base, source)
    assert float(found["kept_accuracy"].sel(variable="flag")) == 0
    assert float(found["balanced_accuracy"].sel(variable="flag")) <= 0.5
    assert float(found["balanced_accuracy"].sel(variable="left")) == 1


def test_later_variables_are_computed_from_replaced_ones() -> None:
    tokens = torch.tensor([[0, 1, FIRST], [2, 3, SECOND]])
    program = copying()
    assert program.answer(tokens).tolist() == [0, 3]
    assert program.answer(tokens, {"flag": torch.tensor([False, True])}).tolist() == [1, 2]
    assert program.answer(tokens, {"flag": torch.tensor([False, True]), "chosen": torch.tensor([4, 5])}).tolist() == [
        4,
        5,
    ]
    assert program.exchanged(tokens, tokens.flip(0), "left").tolist() == [2, 3]


# --- The slow twin ----------------------------------------------------------------------------------------------------


class Put:
    """Keeps every activation, or puts those of another run into chosen places, one number's place after another."""

    def __init__(self, spots: Sequence[Spot] = (), source: Mapping[str, Tensor] | None = None) -> None:
        self.spots, self.source = spots, source or {}
        self.kept: dict[str, Tensor] = {}

    def given(self, site: str) -> Tensor | None:
        return None

    def wants(self, site: str) -> bool:
        return True

    def __call__(self, site: str, value: Tensor) -> Tensor:
        value = value.clone()
        for spot in self.spots:
            if spot.site == site:
                for p in spot.positions or ():
                    for h in spot.heads or (None,):
                        where = (slice(None), h, p) if site.endswith("pattern") else (slice(None), p, h)
                        where = where if h is not None else where[:2]
                        value[where] = self.source[site][where]
        self.kept[site] = value
        return value


PLACES = (
    (Spot("blocks.0.attn.z", (1,), (1, 3)),),
    (Spot("blocks.1.resid_pre", None, (2,)), Spot("blocks.0.mlp_out", None, (0,))),
    (Spot("blocks.1.attn.pattern", (0,), (4,)), Spot("blocks.1.attn.v", (0,), (2,))),
    (Spot("blocks.1.mlp.post", None, (4,)),),
)


def arbitrary(offset: int = 0) -> Program:
    """A program that means nothing, with three answers."""

    def compute(i: int) -> Callable:
        return lambda tokens, _: ((tokens * (torch.arange(5) + i + 1)).sum(1) + offset) % 5

    variables = tuple(Variable(f"v{i}", compute(i), places) for i, places in enumerate(PLACES))
    return Program("arbitrary", variables, lambda _, v: torch.stack([*v.values()]).sum(0) % 3, -1, (0, 1, 2))


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama"])
def test_scores_equal_the_slow_twin(name: str) -> None:
    model, program, rival = network(name), arbitrary(), dataclasses.replace(arbitrary(3), name="other")
    base = torch.cat([prompts(name, seed) for seed in range(8)])
    source = torch.cat([prompts(name, seed) for seed in range(8, 16)])
    found = program_scores(model, program, base, source, rivals=[rival], draws=1)
    small = program_scores(model, program, base, source, rivals=[rival], draws=1, memory=150_000)
    xarray.testing.assert_identical(found, small)
    watch = Put()
    with torch.no_grad():
        untouched = model(base, Put())[:, -1, :3].argmax(-1)
        model(source, watch)
        answers = [model(base, Put(places, watch.kept))[:, -1, :3].argmax(-1) for places in PLACES]
    assert any(not torch.equal(one, untouched) for one in answers)

    def share(hits: Tensor, among: Tensor) -> float:
        chosen = [bool(h) for h, a in zip(hits, among) if a]
        return sum(chosen) / len(chosen) if chosen else float("nan")

    before, other = program.answer(base), rival.answer(base)
    assert float(found["behaviour"]) == share(untouched == before, torch.ones(24))
    for v, variable in enumerate(program.variables):
        values = program.values(base) | {variable.name: variable.compute(source, {})}
        after = program.output(base, values)
        changes = after != before
        stays = ~changes & (program.answer(source) != before)
        theirs = rival.exchanged(base, source, variable.name)
        disputed = (theirs != after) & (changes | (theirs != other))
        one = found.isel(variable=v, rival=0)
        assert (int(one["counted"]), int(one["kept_counted"])) == (int(changes.sum()), int(stays.sum()))
        assert int(one["disputed"]) == int(disputed.sum()) > 0
        for name, hits, among in (
            ("accuracy", answers[v] == after, changes),
            ("kept_accuracy", answers[v] == after, stays),
            ("disputed_accuracy", answers[v] == after, disputed),
            ("disputed_rival_accuracy", answers[v] == theirs, disputed),
            ("rival_accuracy", answers[v] == theirs, theirs != other),
            *((f"permuted_accuracy {p}", answers[p] == after, changes) for p in range(4)),
        ):
            score = one["permuted_accuracy"][int(name[-1])] if name.startswith("permuted") else one[name]
            assert float(score) == pytest.approx(share(hits, among)), name


# --- Controls and the rest --------------------------------------------------------------------------------------------


def test_random_places_are_of_the_same_kind_and_size_and_others() -> None:
    config, generator = network("llama").config, torch.Generator().manual_seed(0)
    places = (Spot("blocks.0.attn.v", (1,), (1, 3)), Spot("embed", None, (0,)))
    drawn = [similar_spots(config, 5, places, generator) for _ in range(200)]
    assert {spots[0].site for spots in drawn} == {"blocks.0.attn.v", "blocks.1.attn.v"}
    assert {spots[0].heads for spots in drawn} == {(0,), (1,)}  # of keys and values there are two heads here
    assert len({spots[0].positions for spots in drawn}) == 10
    assert {spots[1] for spots in drawn} == {Spot("embed", None, (p,)) for p in range(5)}
    assert alternatives(config, 5, places) == 2 * 2 * 10 * 5
    few = (Variable("one", lambda tokens, _: tokens[:, 0], (Spot("blocks.0.attn.z", (0,), None),)),)
    program = Program("p", few, lambda _, v: v["one"]).checked(CONFIG, 3)
    others = module._random_places(wired(), program, 3, 40, 0)[0]
    assert {(s.site, s.heads) for [s] in others} == {
        ("blocks.0.attn.z", (1,)),
        ("blocks.1.attn.z", (0,)),
        ("blocks.1.attn.z", (1,)),
    }


def test_where_there_is_no_other_place_the_control_is_unavailable() -> None:
    every = (Variable("one", lambda tokens, _: tokens[:, 0], (Spot("embed"),)),)
    program = Program("p", every, lambda _, v: v["one"])
    base, source = flagged(20)
    found = program_scores(wired(), program, base, source)
    assert found["random_accuracy"].isnull().all()
    assert np.isnan(found["random_accuracy_best"]).all()


def test_pairs_are_independent() -> None:
    tokens = torch.arange(15)[:, None].expand(15, 3)
    base, source = independent_pairs(tokens, torch.Generator().manual_seed(0))
    used = [*base[:, 0].tolist(), *source[:, 0].tolist()]
    assert len(used) == len(set(used)) == 14
    with pytest.raises(UserError, match="make no pair"):
        independent_pairs(tokens[:1], torch.Generator())


def test_a_result_is_described_and_can_be_saved(tmp_path: Path) -> None:
    calls: list[int] = []
    found = program_scores(wired(), copying(), *flagged(30), draws=2, progress=calls.append)
    assert sum(calls) == 4 + 4 * 2
    assert found["places"].sel(variable="flag").item() == "blocks.1.attn.pattern heads [0] at [2]"
    assert found.attrs["program"] == "copy what the flag points to"
    found.to_netcdf(tmp_path / "program.nc", engine="h5netcdf")
    xarray.testing.assert_identical(xarray.load_dataset(tmp_path / "program.nc", engine="h5netcdf"), found)


def one_variable(compute: Callable = lambda tokens, _: tokens[:, 0], *places: Spot, **fields) -> Program:
    variable = Variable("one", compute, places or (Spot("embed"),))
    return Program(**{"name": "p", "variables": (variable,), "output": lambda _, v: v["one"]} | fields)


REFUSED: list[tuple[Callable[[], Program], str]] = [
    (lambda: one_variable(variables=()), "variables with names of their own"),
    (lambda: one_variable(variables=copying().variables[:1] * 2), "names of their own"),
    (lambda: one_variable(variables=(Variable("x", lambda t, _: t[:, 0], ()),)), "at least one place"),
    (lambda: one_variable(lambda *_: torch.tensor(1)), "one value for each"),
    (lambda: one_variable(lambda *_: 3), "has shape int for"),
    (lambda: one_variable(output=lambda t, _: t), "must be one token for each"),
    (lambda: one_variable(output=lambda t, _: t[:, 0] > 0), "torch.bool"),
    (lambda: one_variable(answers=(1,)), "not among its answers"),
    (lambda: one_variable(answers=(1, 8)), "The answer 8 has no logit"),
    (lambda: one_variable(answer_position=3), "position 3; the prompts have 0–2"),
    (lambda: one_variable(lambda t, _: t[:, 0], Spot("blocks.*.attn.z")), "stands for 2"),
    (lambda: one_variable(lambda t, _: t[:, 0], Spot("blocks.0.attn.y")), "nearest valid"),
    (lambda: one_variable(lambda t, _: t[:, 0], Spot("logits")), "comes after the blocks"),
    (lambda: one_variable(lambda t, _: t[:, 0], Spot("blocks.0.attn.z", (2,))), "head 2"),
    (lambda: one_variable(lambda t, _: t[:, 0], Spot("blocks.0.attn.z", (0, 0))), "each named once"),
    (lambda: one_variable(lambda t, _: t[:, 0], Spot("blocks.0.resid_pre", (0,))), "has no heads"),
    (lambda: one_variable(lambda t, _: t[:, 0], Spot("embed", None, (3,))), "position 3 does not exist"),
    (lambda: one_variable(lambda t, _: t[:, 0], Spot("embed", None, (-4,))), "position -4 does not exist"),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_programs_that_do_not_fit_are_refused_before_any_work(
    make: Callable[[], Program], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("the network was run")

    monkeypatch.setattr(module, "run", never)
    with pytest.raises(UserError, match=message):
        program_scores(wired(), make(), *flagged(10))


@pytest.mark.usefixtures("unchecked")
def test_what_else_does_not_fit_is_refused() -> None:
    base, source = flagged(10)
    model = wired()
    with pytest.raises(UserError, match="must be alike"):
        program_scores(model, copying(), base, source[:5])
    with pytest.raises(UserError, match="at least 1"):
        program_scores(model, copying(), base, source, draws=0)
    with pytest.raises(UserError, match="it needs those of"):
        program_scores(model, copying(), base, source, rivals=[one_variable()])
    with pytest.raises(UserError, match="same name"):
        program_scores(model, copying(), base, source, rivals=[copying(), copying()])
    with pytest.raises(UserError, match="needs about"):
        program_scores(model, copying(), base, source, memory=100)
    with pytest.raises(UserError, match="variable of"):
        copying().answer(base, {"flags": base[:, 0]})
    with torch.no_grad():
        model.W_E.fill_(torch.nan)
    with pytest.raises(UserError, match="not finite"):
        program_scores(model, copying(), base, source)


# --- The authors' networks --------------------------------------------------------------------------------------------


def minimum(name: str, smallest: bool) -> Program:
    """The one head looks at the smaller number, and copies it; or, in the rival, at the larger one."""
    attn = "blocks.0.attn."
    return Program(
        name,
        (
            Variable("first", lambda tokens, _: tokens[:, 0], (Spot(attn + "v", (0,), (0,)),)),
            Variable("second", lambda tokens, _: tokens[:, 1], (Spot(attn + "v", (0,), (1,)),)),
            Variable(
                "looks at the second",
                lambda tokens, _: (tokens[:, 1] < tokens[:, 0]) == smallest,
                (Spot(attn + "pattern", (0,), (-1,)),),
            ),
            Variable(
                "copied",
                lambda _, v: torch.where(v["looks at the second"], v["second"], v["first"]),
                (Spot(attn + "z", (0,), (-1,)),),
            ),
        ),
        lambda _, v: v["copied"],
    )


@pytest.mark.artifacts
@pytest.mark.usefixtures("artifacts")
def test_the_minimum_network_looks_at_the_smaller_number_and_copies_it() -> None:
    model = load("artifact:ckkissane-minimum")
    generator = torch.Generator().manual_seed(0)
    base, source = independent_pairs(task_of(model.card.data).sample(2000, generator).tokens, generator)
    found = program_scores(model, minimum("minimum", True), base, source, rivals=[minimum("maximum", False)])
    assert float(found["behaviour"]) > 0.995
    assert (found["accuracy"] > 0.97).all()
    assert (found["kept_accuracy"].dropna("variable") > 0.97).all()
    assert (found["rival_accuracy"] < 0.05).all()
    assert (found["random_accuracy_best"] < 0.05).all()


def palindrome(numbers: int = 20) -> Program:
    """Position −k−1 says whether its number equals the k-th; every such pair must be equal."""
    last = numbers + 1

    def compute(k: int) -> Callable:
        return lambda tokens, _: tokens[:, k] == tokens[:, last - k]

    variables = tuple(
        Variable(f"pair {k}", compute(k), (Spot("blocks.0.attn.z", None, (last - k,)),))
        for k in range(1, numbers // 2 + 1)
    )
    return Program("palindrome", variables, lambda _, v: torch.stack([*v.values()]).all(0).long(), -1, (0, 1))


@pytest.mark.artifacts
@pytest.mark.usefixtures("artifacts")
def test_the_palindrome_network_compares_eight_of_the_ten_pairs_and_ignores_two() -> None:
    model = load("artifact:arena-palindromes")
    task = task_of(model.card.data)
    generator = torch.Generator().manual_seed(0)
    base, source = independent_pairs(task.sample(4000, generator).tokens, generator)
    found = program_scores(model, palindrome(), base, source, draws=5)
    ignored = ["pair 2", "pair 4"]
    assert float(found["behaviour"]) > 0.99
    assert (found["counted"] > 150).all()
    assert (found["accuracy"].drop_sel(variable=ignored) > 0.8).all()
    assert (found["balanced_accuracy"].drop_sel(variable=ignored) > 0.9).all()
    assert (found["accuracy"].sel(variable=ignored) < 0.1).all()
    # Nor does the network's answer depend on them, where nothing else is broken: such lists are rare in its training.
    half = torch.randint(0, task.vocab, (300, task.length // 2), generator=generator)
    for k in range(1, 11):
        numbers = torch.cat([half, half.flip(1)], 1)
        numbers[:, task.length - k] = (numbers[:, task.length - k] + 1 + torch.arange(300) % 30) % 31
        examples = task.of(numbers)
        noticed = examples.accuracy(model(examples.tokens).detach())
        assert noticed < 0.1 if f"pair {k}" in ignored else noticed > 0.8
