"""Interchange interventions equal a slow twin, and find the variable of a network wired by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray
from tests.architectures import BATCH, LENGTH, network, prompts
from tests.methods import subspace_networks as wired
from tests.oracle import oracle_sites
from torch import Tensor

from headwork.engine.metrics import LogitDifference
from headwork.errors import UserError
from headwork.methods import interchange as module
from headwork.methods.interchange import Swap, interchange
from headwork.methods.interchange_pairs import InterchangePairs
from headwork.methods.site_vectors import Place
from headwork.methods.subspaces import Subspace, random_basis
from headwork.model.transformer import Transformer

METRIC = LogitDifference(torch.tensor([4, 2, 3]), torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0]))
ANSWERS = (1, 3, 4, 7)
READ = torch.tensor([[4], [3], [2]])
HERE, THERE = torch.tensor([[1, 3], [0, 2], [2, 1]]), torch.tensor([[2, 0], [4, 2], [2, 3]])

# A site, its heads, the dimension (0: all), and whether the positions are each example's own.
CASES = (
    ("blocks.0.resid_pre", None, 3, False),
    ("blocks.1.resid_pre", None, 0, True),
    ("blocks.1.attn.z", (1,), 2, True),
    ("blocks.0.attn.z", (0,), 0, False),
    ("blocks.0.attn.v", None, 2, True),
    ("blocks.1.attn.q", (1, 0), 3, False),
    ("blocks.0.mlp.post", None, 2, True),
    ("blocks.0.mlp_out", None, 0, False),
    ("embed", None, 4, True),
)


def pairs(name: str, own_positions: bool = False, **fields) -> InterchangePairs:
    base, source = prompts(name, 1), prompts(name, 2)
    where: dict[str, Any] = {"positions": HERE, "source_positions": THERE} if own_positions else {}
    read: dict[str, Any] = {"expected": torch.tensor([ANSWERS[1], ANSWERS[3], ANSWERS[0]]), "answer_position": READ}
    read |= {"source": source, "answers": ANSWERS, "labels": ("a", "b", "c")}
    return InterchangePairs(base, **read | where | fields)


def logits_of(
    model: Transformer,
    data: InterchangePairs,
    source: Tensor,
    site: str,
    basis: Tensor | None,
    heads: tuple[int, ...] | None,
    own_positions: bool,
) -> Tensor:
    places = torch.stack([HERE, THERE], -1) if own_positions else torch.arange(LENGTH).view(1, -1, 1).expand(3, -1, 2)
    chosen = None if heads is None else list(heads)
    with torch.no_grad():
        return model(data.base, wired.Exchange(site, source, basis, chosen, places))


def metric_of(logits: Tensor) -> Tensor:
    each = zip(logits, METRIC.positions, METRIC.correct, METRIC.wrong)
    return torch.stack([one[p, c] - one[p, w] for one, p, c, w in each])


def right(data: InterchangePairs, logits: Tensor) -> list[bool]:
    assert isinstance(data.expected, Tensor)
    found = []
    for one, at, wanted in zip(logits, READ[:, 0], data.expected.tolist()):
        values = {token: float(one[at, token]) for token in ANSWERS}
        found.append(max(values, key=lambda token: values[token]) == wanted)
    return found


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama"])
def test_interchanges_equal_the_slow_twin(name: str) -> None:
    model = network(name)
    known = oracle_sites(model, pairs(name).source)
    base = metric_of(oracle_sites(model, pairs(name).base)["logits"])
    for site, heads, k, own in CASES:
        data = pairs(name, own)
        place = Place(site, heads).checked(model.config)
        basis = random_basis(place.width(model.config), k, torch.Generator().manual_seed(3)) if k else None
        found = interchange(model, data, Subspace(Place(site, heads), basis), METRIC, draws=2)
        logits = logits_of(model, data, known[site], site, basis, heads, own)
        np.testing.assert_allclose(found["base"], base, rtol=0, atol=1e-9)
        np.testing.assert_allclose(found["effect"], metric_of(logits) - base, rtol=0, atol=1e-9, err_msg=site)
        assert found["reached"].values.tolist() == right(data, logits)
        assert float(found["interchange_accuracy"]) == sum(right(data, logits)) / BATCH


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama"])
def test_the_sources_whole_stream_gives_the_sources_answers(name: str) -> None:
    model, data = network(name), pairs(name)
    answers = oracle_sites(model, data.source)["logits"][torch.arange(3), READ[:, 0]].argmax(-1)
    data = dataclasses.replace(data, expected=answers, answers=())
    found = interchange(model, data, Subspace(Place("blocks.1.resid_pre")))
    assert float(found["interchange_accuracy"]) == 1
    assert np.isnan(found["random_accuracy"]).all()
    assert "unavailable" in found.attrs["random_subspaces_within"]


def test_a_random_subspace_moves_the_activation_as_far() -> None:
    generator = torch.Generator().manual_seed(0)
    old, new = torch.randn(2, 3, 5, 2, 4, generator=generator, dtype=torch.float64)
    heads = Subspace(Place("blocks.0.attn.z", (1,)))
    wide = Swap(heads, Place("blocks.0.attn.z"), random_basis(8, 4, generator), torch.arange(4, 8))
    expected = (new - old)[:, :, 1].norm(dim=-1)
    torch.testing.assert_close((wide.change(old, new) - old).flatten(2).norm(dim=-1), expected)
    basis = random_basis(4, 2, generator)
    within = Swap(Subspace(heads.place, random_basis(4, 2, generator)), heads.place, basis, torch.arange(4))
    old, new = old[:, :, 1:], new[:, :, 1:]
    real = ((new - old).flatten(2) @ (within.subspace.basis if within.subspace.basis is not None else basis)).norm(
        dim=-1
    )
    moved = (within.change(old, new) - old).flatten(2)
    torch.testing.assert_close(moved.norm(dim=-1), real)
    torch.testing.assert_close(moved @ basis @ basis.T, moved)  # inside the random subspace
    assert not within.change(old, old).sub(old).any()  # nothing to swap, nothing moved


def test_random_subspaces_lie_within_the_heads_where_there_is_room() -> None:
    model, data = network("gpt2"), pairs("gpt2")
    some = Subspace(Place("blocks.0.attn.z", (1,)), random_basis(4, 2, torch.Generator().manual_seed(0)))
    assert interchange(model, data, some).attrs["random_subspaces_within"] == "heads [1]"
    whole = interchange(model, data, Subspace(Place("blocks.0.attn.z", (1,))), METRIC)
    assert whole.attrs["random_subspaces_within"] == "the whole site"
    assert whole["random_effect"].notnull().all()
    assert len(np.unique(whole["random_effect"].values[:, 0])) == 20


def test_the_wired_variable_is_interchanged_along_its_direction() -> None:
    model, data = wired.xor_network(), wired.xor_pairs(200, positions=-1)
    along = Subspace(Place("blocks.0.resid_post"), wired.direction(wired.VARIABLE)[:, None])
    found = interchange(model, data, along)
    assert float(found["interchange_accuracy"]) == 1
    assert found["interchange_accuracy_interval"].sel(bound="low") > 0.97
    assert float(found["random_accuracy_mean"]) < 0.7
    assert float(found["random_accuracy_best"]) < 0.9
    assert abs(float(found["unchanged_accuracy"]) - 0.5) < 0.1
    assert found["random_accuracy"].sizes == {"draw": 20}
    # The whole stream carries c along, so it answers with the source's own answer, not the counterfactual one.
    whole = interchange(model, data, Subspace(Place("blocks.0.resid_post")))
    same_c = wired.c_of(data.base) == wired.c_of(data.source)
    assert whole["reached"].values.tolist() == same_c.tolist()
    # Before the variable is computed it cannot be interchanged there.
    early = interchange(model, data, Subspace(Place("blocks.0.resid_pre"), along.basis))
    assert float(early["interchange_accuracy"]) == float(early["unchanged_accuracy"])


def test_memory_and_order_do_not_change_the_result() -> None:
    model, data = network("llama"), pairs("llama", own_positions=True)
    subspace = Subspace(Place("blocks.0.resid_pre"), random_basis(8, 2, torch.Generator().manual_seed(1)))
    calls: list[int] = []
    free = interchange(model, data, subspace, METRIC, draws=3)
    small = interchange(model, data, subspace, METRIC, draws=3, memory=30_000, progress=calls.append)
    xarray.testing.assert_allclose(free, small, rtol=1e-12)
    assert sum(calls) == 4 * BATCH  # the prompts did not fit together: four interchanges for each of them


def test_a_result_is_described_and_can_be_saved(tmp_path: Path) -> None:
    found = interchange(network("gpt2"), pairs("gpt2", True), Subspace(Place("blocks.0.attn.hook_z", (1,))), METRIC)
    described = {"site": "blocks.0.attn.z", "heads": "[1]", "dimension": 4, "ablation_component": "subspace"}
    assert described.items() <= found.attrs.items()
    assert found.attrs["ablation_positions"] == "chosen for each prompt"
    found.to_netcdf(tmp_path / "interchange.nc", engine="h5netcdf")
    xarray.testing.assert_identical(xarray.load_dataset(tmp_path / "interchange.nc", engine="h5netcdf"), found)


def test_a_shuffled_variable_keeps_the_pairs_and_the_base() -> None:
    data = wired.xor_pairs(300)
    shuffled = data.permuted(torch.Generator().manual_seed(0))
    assert torch.equal(shuffled.base, data.base)
    assert torch.equal(shuffled.source, data.source)
    real, fake = data.counterfactual, shuffled.counterfactual
    assert real is not None
    assert fake is not None
    assert 0.4 < float((real == fake).double().mean()) < 0.6
    # Sources' values are shuffled, the base's c is kept.
    implied = fake ^ wired.c_of(data.base)
    assert int(implied.sum()) == int(wired.variable(data.source).sum())


REFUSED = [
    ({"source": torch.ones(2, 5, dtype=torch.long)}, "same batch"),
    ({"source": prompts("gpt2", 1)}, "same prompt in 3 of 3 pairs"),
    ({"source": torch.ones(3, 4, dtype=torch.long)}, "which positions to interchange"),
    ({"positions": [5]}, "base prompts have positions 0–4; position 5"),
    ({"positions": [1, 1]}, "named twice"),
    ({"positions": torch.tensor([[1], [2]])}, "given for 2 examples; there are 3"),
    ({"positions": [1], "source_positions": [1, 2]}, "As many positions"),
    ({"source_positions": [1, 2]}, "need positions in the base"),
    ({"expected": torch.tensor([1, 3])}, "one token each"),
    ({"expected": torch.tensor([1, 3, 5])}, "token 5, which is not among the answers"),
    ({"labels": ("a", "a", "b")}, "each needs one of its own"),
    ({"answer_position": [1, 2]}, "read at one position"),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("fields", "message"), REFUSED)
def test_pairs_that_do_not_fit_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pairs("gpt2", **fields)


def test_what_does_not_exist_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("the network was run")

    monkeypatch.setattr(module, "trace", never)
    model, data = network("gpt2"), pairs("gpt2")
    z = Place("blocks.0.attn.z")
    wide = Subspace(z, random_basis(5, 2, torch.Generator()))
    for subspace, message in (
        (Subspace(Place("blocks.0.attn.zz")), "nearest valid"),
        (Subspace(Place("blocks.*.attn.z")), "stands for 2"),
        (Subspace(Place("blocks.0.attn.pattern")), "with a vector at each position"),
        (Subspace(Place("blocks.0.ln1.scale")), "with a vector at each position"),
        (Subspace(Place("ln_final.normalized")), "inside the blocks"),
        (Subspace(Place("blocks.0.resid_pre", (0,))), "has no heads"),
        (Subspace(Place("blocks.0.attn.z", (2,))), "heads 0–1"),
        (Subspace(Place("blocks.0.attn.z", (1, 1))), "each once"),
        (wide, "vectors of 5 numbers; blocks.0.attn.z has 8"),
    ):
        with pytest.raises(UserError, match=message):
            interchange(model, data, subspace)
    whole = Subspace(z)
    with pytest.raises(UserError, match="at least 1"):
        interchange(model, data, whole, draws=0)
    with pytest.raises(UserError, match="expected answers in the pairs, or a metric"):
        interchange(model, dataclasses.replace(data, expected=None), whole)
    with pytest.raises(UserError, match="has no logit"):
        interchange(model, dataclasses.replace(data, expected=torch.tensor([1, 2, 99]), answers=()), whole)
    with pytest.raises(UserError, match="needs about"):
        interchange(model, data, whole, memory=10)
    two = LogitDifference(*(torch.tensor([1, 2]) for _ in range(3)))
    with pytest.raises(UserError, match="for 2 prompts, but there are 3"):
        interchange(model, data, whole, two)


def test_a_network_without_finite_logits_is_refused() -> None:
    model, data = network("gpt2"), pairs("gpt2")
    with torch.no_grad():
        model.W_E.fill_(torch.nan)
    with pytest.raises(UserError, match="gave nan for prompt a"):
        interchange(model, data, Subspace(Place("blocks.0.attn.z")))
