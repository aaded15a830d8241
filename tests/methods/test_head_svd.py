"""The decomposition of heads equals that of the explicit matrices, and the tokens are those along its vectors."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.architectures import network
from tests.methods.test_composition import OFFSET, ov, qk
from tests.methods.test_weight_circuits import plain, through

import headwork as hw
from headwork.errors import UserError
from headwork.methods.head_svd import factored_svd, head_svd
from headwork.model.sites import heads
from headwork.model.transformer import Transformer

NETWORKS = ["gpt2", "neox", "llama", "qwen3", "one-kv-head"]


def offset(model: Transformer) -> int | None:
    return OFFSET if model.config.positions == "rotary" else None


@pytest.mark.parametrize("norm", ["ignored", "folded"])
@pytest.mark.parametrize("name", NETWORKS)
def test_vectors_and_values_are_those_of_the_matrix(name: str, norm: Any) -> None:
    model = network(name)
    found = head_svd(model, offset=offset(model), norm=norm, top=3)
    for head in heads(model.config):
        folded = norm == "folded"
        matrices = {"OV": ov(model, head, folded), "QK": qk(model, head, folded) * model.config.scale}
        for circuit, matrix in matrices.items():
            one, values = found.sel(circuit=circuit, head=str(head)), torch.linalg.svdvals(matrix.detach())
            np.testing.assert_allclose(one["singular_value"], values[:4], rtol=1e-9, atol=1e-12)
            left, right = one["left"].values, one["right"].values
            rebuilt = left.T @ np.diag(one["singular_value"].values) @ right
            np.testing.assert_allclose(rebuilt, matrix.detach(), atol=1e-10)
            for vectors in (left, right):
                np.testing.assert_allclose(vectors @ vectors.T, np.eye(4), atol=1e-10)
            for row in right:
                assert max(row, key=abs) > 0
            squares = [float(value) ** 2 for value in values[:4]]
            rank = sum(squares) ** 2 / sum(x * x for x in squares)
            assert float(one["effective_rank"]) == pytest.approx(rank)


@pytest.mark.parametrize("norm", ["ignored", "folded"])
@pytest.mark.parametrize("name", ["gpt2", "neox", "llama", "classifier"])
def test_tokens_are_those_furthest_along_a_vector(name: str, norm: Any) -> None:
    model, top = network(name), 3
    found = head_svd(model, ["1.1"], components=2, top=top, offset=offset(model), norm=norm).isel(head=0)
    for circuit, side, component, sign in itertools.product(("OV", "QK"), ("left", "right"), range(2), ("+", "−")):
        one = found.sel(circuit=circuit, sign=sign).isel(component=component)
        vector = torch.from_numpy(one[side].values)
        if circuit == "OV" and side == "right":
            along = through(model.ln_final, vector, norm == "folded") @ model.W_U
        else:
            along = model.W_E @ vector
        along = along.tolist()
        best = sorted(range(len(along)), key=lambda token, along=along: along[token], reverse=sign == "+")[:top]
        assert one[f"top_{side}"].values.tolist() == best
        assert one[f"{side}_value"].values.tolist() == pytest.approx([along[token] for token in best])
    assert "left_text" not in found


def test_tokens_have_their_text_where_there_is_a_tokenizer() -> None:
    class Letters:
        d_vocab = 9

        def pieces(self, tokens: list[int]) -> list[str]:
            assert max(tokens) < self.d_vocab
            return ["abcdefghi"[token] for token in tokens]

    model: Any = network("gpt2")
    model.tokenizer_source = Letters
    found = head_svd(model, top=11)
    for side in ("left", "right"):
        for token, text in zip(found[f"top_{side}"].values.flat, found[f"{side}_text"].values.flat):
            assert text == ("abcdefghi"[token] if token < 9 else "")


def test_effective_rank_counts_equal_singular_values() -> None:
    model = plain({"d_head": 4})
    with torch.no_grad():
        attn = model.layers[0].attn
        unit = torch.eye(8, dtype=torch.float64)
        attn.W_V[0].copy_(unit[:, :4])
        attn.W_O[0].copy_(torch.diag(torch.tensor([2.0, 2.0, 2.0, 0.0]).double()) @ unit[4:])
        attn.W_O[1].zero_()
    found = head_svd(model, circuits=["OV"], components=1).sel(circuit="OV")
    assert float(found["effective_rank"].sel(head="0.0")) == pytest.approx(3)
    assert float(found["effective_rank"].sel(head="0.1")) == 0
    assert found.sizes["component"] == 1


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 100))
def test_factors_of_any_shape(width: int, rank: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, width, rank, generator=generator, dtype=torch.float64)
    left, values, right = factored_svd(first, second)
    assert len(values) == min(width, rank)
    np.testing.assert_allclose(left.T @ torch.diag(values) @ right, first @ second.T, atol=1e-10)


def test_results_can_be_saved(tmp_path: Path) -> None:
    import xarray

    found = head_svd(hw.load("zoo:attn-only-1l"), ["0.0"], circuits=["OV"], components=2)
    found.to_netcdf(tmp_path / "svd.nc", engine="h5netcdf")
    with xarray.open_dataset(tmp_path / "svd.nc", engine="h5netcdf") as again:
        np.testing.assert_array_equal(again["left"], found["left"])


@pytest.mark.usefixtures("unchecked")
def test_what_does_not_exist_is_refused() -> None:
    wrong: list[tuple[str, dict[str, Any], str]] = [
        ("neox", {}, "state offset, from 0 to 6"),
        ("gpt2", {"offset": 1}, "no rotary positions"),
        ("gpt2", {"circuits": ["KQ"]}, "Unknown circuit 'KQ'"),
        ("gpt2", {"circuits": []}, r"circuits are \[\]"),
        ("gpt2", {"components": 5}, "components = 5; a head of this network has 1–4"),
        ("gpt2", {"top": 12}, "top = 12; there are 11 tokens"),
        ("gpt2", {"heads": ["0.2"]}, "Unknown head '0.2'"),
        ("gpt2", {"norm": "no"}, "Unknown treatment of norms"),
        ("no-layers", {}, "no layers and so no heads"),
    ]
    for name, options, says in wrong:
        with pytest.raises(UserError, match=says):
            head_svd(network(name), **options)
