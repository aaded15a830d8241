"""Composition scores equal those of the explicit d_model × d_model matrices; so does their null."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.architectures import network
from tests.methods.hand import key_head
from tests.methods.test_weight_circuits import plain, turned
from torch import Tensor

from headwork.errors import UserError
from headwork.methods import composition as module
from headwork.methods.composition import composition_scores
from headwork.model.sites import Head, heads
from headwork.model.transformer import Norm, Transformer

OFFSET = 3


def ov(model: Transformer, head: Head, folded: bool) -> Tensor:
    attn = model.layers[head.layer].attn
    return normed(model, head, attn.W_V[key_head(model, head, "v")], folded) @ attn.W_O[head.head]


def qk(model: Transformer, head: Head, folded: bool) -> Tensor:
    """W_Q R(offset) W_Kᵀ, by turning each row of W_Q."""
    attn = model.layers[head.layer].attn
    q, k = attn.W_Q[head.head].detach(), attn.W_K[key_head(model, head, "k")].detach()
    if folded and model.config.qk_norm:
        q, k = q * attn.q_norm.w.detach(), k * attn.k_norm.w.detach()
    q = torch.stack([turned(model, row, OFFSET) for row in q])
    return normed(model, head, q, folded) @ normed(model, head, k, folded).T


def normed(model: Transformer, head: Head, weight: Tensor, folded: bool) -> Tensor:
    norm = model.layers[head.layer].ln1
    if not folded or not isinstance(norm, Norm):
        return weight
    width = len(weight)
    centre = torch.eye(width).double() - 1 / width if norm.centred else torch.eye(width).double()
    return centre @ torch.diag(norm.w) @ weight


def composed(a: Tensor, b: Tensor) -> float:
    """‖a b‖ / (‖a‖ ‖b‖)."""
    product, first, second = (float((m * m).sum().detach()) ** 0.5 for m in (a @ b, a, b))
    return product / (first * second)


def read(model: Transformer, head: Head, route: str, folded: bool) -> Tensor:
    if route == "v":
        return ov(model, head, folded).detach()
    return (qk(model, head, folded) if route == "q" else qk(model, head, folded).T).detach()


@pytest.mark.parametrize("norm", ["ignored", "folded"])
@pytest.mark.parametrize("name", ["gpt2", "neox", "llama", "qwen3", "one-kv-head", "shortformer"])
def test_scores_equal_those_of_explicit_matrices(name: str, norm: Any) -> None:
    model = network(name)
    found = composition_scores(model, norm=norm, offset=OFFSET if model.config.positions == "rotary" else None, draws=2)
    for route, writer, reader in itertools.product("qkv", heads(model.config), heads(model.config)):
        one = found.sel(route=route, writer=str(writer), reader=str(reader))
        if writer.layer >= reader.layer:
            assert all(np.isnan(one[key]) for key in ("score", "null_mean", "null_p95", "z"))
            continue
        expected = composed(ov(model, writer, norm == "folded"), read(model, reader, route, norm == "folded"))
        assert float(one["score"]) == pytest.approx(expected, rel=1e-9)
    assert found["reader_kv_head"].values.tolist() == [key_head(model, head, "k") for head in heads(model.config)]


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama"])
def test_the_null_is_the_score_of_explicitly_turned_heads(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Each draw: the writer's matrix, then an orthogonal one that has the drawn corner between the two heads' bases."""
    model = network(name)
    generator = torch.Generator().manual_seed(5)
    turns = [torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64)).Q for _ in range(5)]
    monkeypatch.setattr(module, "_corners", lambda *given: torch.stack([turn[:4, :4] for turn in turns]))
    offset = OFFSET if model.config.positions == "rotary" else None
    found = composition_scores(model, offset=offset, draws=5).isel(writer=0, reader=-1)
    writer, reader = heads(model.config)[0], heads(model.config)[-1]
    for route in "qkv":
        a, b = ov(model, writer, False).detach(), read(model, reader, route, False)
        from_a, to_b = torch.linalg.svd(a)[2].T, torch.linalg.svd(b)[0]
        null = [composed(a, from_a @ turn @ to_b.T @ b) for turn in turns]
        one = found.sel(route=route)
        assert float(one["null_mean"]) == pytest.approx(np.mean(null), rel=1e-9)
        assert float(one["null_p95"]) == pytest.approx(np.quantile(null, 0.95), rel=1e-9)
        z = (composed(a, b) - np.mean(null)) / np.std(null, ddof=1)
        assert float(one["z"]) == pytest.approx(z, rel=1e-9)


def test_random_heads_score_as_their_nulls() -> None:
    """The root mean square over all turns is 1/√d_model, of any pair; a random network's scores lie around it."""
    model = plain({"n_layers": 2, "d_model": 16, "n_heads": 8, "d_head": 2})
    found = composition_scores(model, draws=4000)
    later = found.isel(writer=slice(0, 8), reader=slice(8, 16))
    spread = (later["score"] - later["null_mean"]) / later["z"]
    np.testing.assert_allclose((later["null_mean"] ** 2 + spread**2) ** 0.5, 0.25, rtol=0.03)
    assert abs(float(later["z"].mean())) < 0.4
    assert 0.01 < float((later["score"] > later["null_p95"]).mean()) < 0.12
    assert float(found["gaussian_mean"]) == pytest.approx(float(later["score"].mean()), abs=0.02)
    assert float(found["gaussian_mean"]) < float(found["gaussian_p95"]) < 1


def test_corners_are_those_of_uniform_orthogonal_matrices() -> None:
    corners = module._corners(3, 6, 20_000, torch.Generator().manual_seed(0))
    np.testing.assert_allclose(corners.square().mean(0), 1 / 6, atol=0.01)
    np.testing.assert_allclose(corners.pow(4).mean(0), 3 / (6 * 8), atol=0.005)
    whole = module._corners(6, 6, 10, torch.Generator().manual_seed(0))
    np.testing.assert_allclose(whole @ whole.transpose(1, 2), np.broadcast_to(np.eye(6), (10, 6, 6)), atol=1e-12)


def set_head(model: Transformer, layer: int, weights: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in weights.items():
            getattr(model.layers[layer].attn, name)[0].copy_(value)


def test_heads_of_orthogonal_subspaces_do_not_compose_and_aligned_ones_do_wholly() -> None:
    model = plain({"n_layers": 2, "d_head": 2})
    unit = torch.eye(8, dtype=torch.float64)
    set_head(model, 0, {"W_V": unit[:, :2], "W_O": unit[2:4]})
    one_direction = torch.outer(unit[2], torch.tensor([1.0, 0.0]).double())
    set_head(model, 1, {"W_Q": unit[:, 4:6], "W_K": unit[:, 2:4], "W_V": one_direction, "W_O": unit[4:6]})
    scores = composition_scores(model, draws=50).sel(writer="0.0", reader="1.0")
    assert float(scores["score"].sel(route="q")) == pytest.approx(0, abs=1e-12)
    # Two equal singular values each: what passes is √2 of 2.
    assert float(scores["score"].sel(route="k")) == pytest.approx(2**-0.5)
    assert float(scores["z"].sel(route="k")) > 3
    set_head(model, 0, {"W_O": one_direction.T})
    scores = composition_scores(model, draws=50).sel(writer="0.0", reader="1.0")
    assert float(scores["score"].sel(route="v")) == pytest.approx(1)


@settings(deadline=None, max_examples=15)
@given(st.sampled_from(["gpt2", "attention-only-learned", "llama", "one-kv-head"]), st.integers(0, 1000))
def test_another_basis_inside_heads_changes_nothing(name: str, seed: int) -> None:
    """W_V T and T⁻¹ W_O are the same head; so are W_Q T and W_K T⁻ᵀ, which rotary positions do not allow."""
    model = network(name)
    rotary = model.config.positions == "rotary"
    routes: list[Any] = ["v"] if rotary else ["q", "k", "v"]
    draws = 20
    before = composition_scores(model, routes=routes, draws=draws)
    generator = torch.Generator().manual_seed(seed)
    groups = model.config.n_heads // model.config.kv_heads
    with torch.no_grad():
        for block in model.layers:
            for kv in range(model.config.kv_heads):
                t, s = torch.randn(2, 4, 4, generator=generator, dtype=torch.float64) + 3 * torch.eye(4)
                block.attn.W_V[kv].copy_(block.attn.W_V[kv] @ t)
                block.attn.W_K[kv].copy_(block.attn.W_K[kv] @ torch.linalg.inv(s).T)
                for head in range(kv * groups, (kv + 1) * groups):
                    block.attn.W_O[head].copy_(torch.linalg.inv(t) @ block.attn.W_O[head])
                    block.attn.W_Q[head].copy_(block.attn.W_Q[head] @ s)
    after = composition_scores(model, routes=routes, draws=draws)
    for key in ("score", "null_mean", "null_p95"):
        np.testing.assert_allclose(after[key], before[key], rtol=1e-6)


def test_a_head_that_is_zero_composes_with_none() -> None:
    model = network("gpt2")
    with torch.no_grad():
        model.layers[0].attn.W_O[1].zero_()
    found = composition_scores(model, writers=["0.1"], readers=["1.0", "1.1"], draws=5)
    assert (found["score"] == 0).all()
    assert found["z"].isnull().all()


def test_heads_wider_than_the_stream() -> None:
    model = plain({"n_layers": 2, "d_model": 4, "d_head": 6})
    found = composition_scores(model, draws=5)
    for route in "qkv":
        expected = composed(ov(model, Head(0, 2), False), read(model, Head(1, 3), route, False))
        assert float(found["score"].sel(route=route, writer="0.2", reader="1.3")) == pytest.approx(expected)


def test_the_seed_fixes_the_null() -> None:
    a, b, c = (composition_scores(network("gpt2"), seed=seed, draws=9) for seed in (1, 1, 2))
    assert a.identical(b)
    np.testing.assert_array_equal(a["score"], c["score"])
    assert not np.allclose(a["null_mean"], c["null_mean"], equal_nan=True)


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_compared_is_refused() -> None:
    wrong: list[tuple[str, dict[str, Any], str]] = [
        ("neox", {}, r"state offset, from 0 to 6, or ask for routes=\['v'\] alone \(given: \['q', 'k', 'v'\]\)"),
        ("neox", {"offset": 7}, "offset = 7 is out of range"),
        ("gpt2", {"offset": 0}, "no rotary positions"),
        ("gpt2", {"routes": ["o"]}, "Unknown route of composition 'o'"),
        ("gpt2", {"routes": []}, r"routes are \[\]"),
        ("gpt2", {"norm": "both"}, "Unknown treatment of norms"),
        ("gpt2", {"draws": 1}, "draws = 1; a null needs at least 2"),
        ("gpt2", {"writers": ["1.0"]}, "No writer is in an earlier layer"),
        ("gpt2", {"readers": ["1.2"]}, "Unknown head '1.2'"),
        ("one-layer", {}, "No writer is in an earlier layer"),
        ("no-layers", {}, "no layers and so no heads"),
    ]
    for name, options, says in wrong:
        with pytest.raises(UserError, match=says):
            composition_scores(network(name), **options)


def test_the_value_route_needs_no_offset_and_others_say_theirs() -> None:
    assert "warning" not in composition_scores(network("neox"), routes=["v"], draws=2).attrs
    found = composition_scores(network("neox"), offset=1, draws=2)
    assert found.attrs["offset"] == 1
    assert "Rotary" in found.attrs["warning"]
