"""Vectors at a place, and subspaces of it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.architectures import network, prompts
from tests.methods import subspace_networks as wired
from tests.methods.peak import Peak
from tests.oracle import oracle_sites

from headwork.errors import UserError
from headwork.methods.site_vectors import Place, vectors
from headwork.methods.subspaces import (
    Subspace,
    coordinates,
    difference_of_means,
    inside,
    orthonormal,
    probe_directions,
    random_basis,
)
from headwork.model.config import TransformerConfig
from headwork.model.initialise import initialise


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama"])
def test_vectors_are_what_the_place_holds(name: str) -> None:
    model, tokens = network(name), prompts(name)
    known = oracle_sites(model, tokens)
    where = torch.tensor([[0, -1], [3, 2], [1, 4]])
    for site, heads in (("blocks.0.resid_pre", None), ("blocks.1.attn.z", (1, 0)), ("blocks.0.attn.k", (1,))):
        expected = torch.stack(
            [
                torch.stack(
                    [(known[site][b, p] if heads is None else known[site][b, p][list(heads)]).flatten() for p in row]
                )
                for b, row in enumerate(where % 5)
            ]
        )
        place = Place(site, heads)
        torch.testing.assert_close(vectors(model, tokens, place, where), expected)
        assert expected.shape[-1] == place.checked(model.config).width(model.config)
        torch.testing.assert_close(vectors(model, tokens, place, where, memory=20_000), expected)
        every = vectors(model, tokens, place)
        torch.testing.assert_close(every[:, [1, 3]], vectors(model, tokens, place, [1, 3]))
    with pytest.raises(UserError, match="One prompt of 5 tokens needs about"):
        vectors(model, tokens, Place("embed"), memory=100)


def test_no_logits_are_made_for_vectors() -> None:
    model = initialise(TransformerConfig(n_layers=1, d_model=8, n_heads=1, d_head=8, d_vocab=3000, n_ctx=16), 0)
    with Peak() as peak:
        vectors(model, torch.arange(800).view(50, 16), Place("blocks.0.resid_post"), -1)
    assert 0 < peak.most < 4 * 50 * 16 * 3000 / 4


def test_the_columns_of_heads_are_where_they_stand_in_the_site() -> None:
    config = network("llama").config
    assert Place("blocks.0.attn.z", (2, 0)).columns(config).tolist() == [8, 9, 10, 11, 0, 1, 2, 3]
    assert Place("blocks.0.attn.v").columns(config).tolist() == list(range(8))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 1000))
def test_bases_are_orthonormal_and_span_what_they_are_made_of(width: int, n: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(width, n, generator=generator, dtype=torch.float64)
    directions = torch.cat([directions, directions @ torch.randn(n, 2, generator=generator, dtype=torch.float64)], 1)
    basis = orthonormal(directions)
    assert basis.shape == (width, min(width, n))
    torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1], dtype=torch.float64))
    torch.testing.assert_close(inside(basis, directions.T).T, directions)
    k = min(n, width)
    random = random_basis(width, k, generator)
    torch.testing.assert_close(random.T @ random, torch.eye(k, dtype=torch.float64))
    x = torch.randn(3, width, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(inside(random, inside(random, x)), inside(random, x))
    torch.testing.assert_close(inside(random, x), torch.linalg.lstsq(random, x.T).solution.T @ random.T)


def test_the_difference_of_means_finds_the_wired_direction() -> None:
    model, tokens = wired.xor_network(), wired.every_prompt()
    found = vectors(model, tokens, Place("blocks.0.mlp_out"), -1)[:, 0]
    basis = difference_of_means(found, wired.variable(tokens))
    assert basis.shape == (wired.WIDTH, 1)
    assert abs(float(basis[:, 0] @ wired.direction(wired.VARIABLE))) == pytest.approx(1, abs=1e-12)


def test_classes_have_one_contrast_less_than_there_are() -> None:
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(4, 10, generator=generator, dtype=torch.float64)
    labels = torch.tensor([7, 2, 2, 9, 0, 0, 0])
    basis = difference_of_means(means[torch.tensor([0, 1, 1, 2, 3, 3, 3])], labels)
    assert basis.shape == (10, 3)
    differences = means[1:] - means[0]
    torch.testing.assert_close(inside(basis, differences), differences)
    common = torch.randn(10, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(
        inside(probe_directions(means.T), differences), inside(probe_directions((means + common).T), differences)
    )
    assert probe_directions(means.T).shape == (10, 3)
    assert probe_directions(means[:1].T).shape == (10, 1)


def test_neurons_are_a_subspace() -> None:
    x = torch.arange(10.0).view(2, 5)
    assert inside(coordinates(5, [3, 1]), x).tolist() == [[0, 1, 0, 3, 0], [0, 6, 0, 8, 0]]
    assert torch.equal(inside(None, x), x)


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_basis_is_refused() -> None:
    place = Place("blocks.0.resid_pre")
    with pytest.raises(UserError, match="must be orthonormal; these are off by 3"):
        Subspace(place, 2 * torch.eye(3))
    with pytest.raises(UserError, match="must be orthonormal"):
        Subspace(place, torch.full((3, 1), torch.nan))
    with pytest.raises(UserError, match=r"must be numbers \[width, k\]"):
        Subspace(place, torch.zeros(3, 0))
    with pytest.raises(UserError, match="not all of them zero"):
        orthonormal(torch.zeros(3, 2))
    with pytest.raises(UserError, match="two classes or more; the labels have 1"):
        difference_of_means(torch.randn(3, 2), torch.tensor([1, 1, 1]))
    with pytest.raises(UserError, match="same mean"):
        difference_of_means(torch.ones(4, 2) / 3, torch.tensor([1, 1, 0, 0]))
    with pytest.raises(UserError, match="2 labels for 3"):
        difference_of_means(torch.randn(3, 2), torch.tensor([1, 0]))
    with pytest.raises(UserError, match="units 0–4"):
        coordinates(5, [5])
