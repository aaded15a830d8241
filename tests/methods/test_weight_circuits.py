"""Circuits equal their products made token by token, and what the network does where they are the whole of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.architectures import ARCHITECTURES, BATCH, LENGTH, network, prompts
from tests.methods.hand import key_head
from tests.oracle import oracle_sites
from torch import Tensor

from headwork.errors import UserError
from headwork.methods.weight_circuits import ov_circuit, positional_qk, qk_circuit, strongest_entries
from headwork.model.config import TransformerConfig
from headwork.model.initialise import initialise
from headwork.model.sites import Head, heads
from headwork.model.transformer import Attention, NoNorm, Norm, Transformer

WEIGHTS = ["gpt2", "neox", "llama", "one-kv-head", "shortformer", "qwen3", "head-norm-learned", "classifier"]


def plain(shape: dict[str, Any]) -> Transformer:
    """A network without norms and positions (unless stated), all weights random."""
    size = {"n_layers": 1, "d_model": 8, "n_heads": 4, "d_head": 4, "d_vocab": 11, "n_ctx": 7, "positions": "none"}
    model = initialise(TransformerConfig.from_dict(size | shape), 0).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 2)
    return model


def through(norm: Norm | NoNorm, x: Tensor, folded: bool) -> Tensor:
    """A vector through a norm's linear part."""
    if not folded or not isinstance(norm, Norm):
        return x
    return (x - x.mean() if norm.centred else x) * norm.w


def turned(model: Transformer, x: Tensor, position: int) -> Tensor:
    """A query or key, rotated pair by pair."""
    c, found = model.config, x.clone()
    if c.positions != "rotary":
        return found
    r = c.d_head if c.rotary_dim is None else c.rotary_dim
    for i in range(r // 2):
        a, b = (i, i + r // 2) if c.rotary_style == "half" else (2 * i, 2 * i + 1)
        rate = c.rotary_base ** (-2 * i / r)
        if c.rotary_factor is not None:
            turns = c.rotary_trained_ctx * rate / (2 * np.pi)
            share = (turns - c.rotary_low_factor) / (c.rotary_high_factor - c.rotary_low_factor)
            share = min(1.0, max(0.0, share))
            rate = share * rate + (1 - share) * rate / c.rotary_factor
        cos, sin = np.cos(position * rate), np.sin(position * rate)
        found[a], found[b] = x[a] * cos - x[b] * sin, x[b] * cos + x[a] * sin
    return found


def side(model: Transformer, attn: Attention, which: str, x: Tensor, head: int, position: int, folded: bool) -> Tensor:
    """A query or key of one normed vector."""
    found = x @ (attn.W_Q if which == "q" else attn.W_K)[head]
    if folded and model.config.qk_norm:
        found = found * (attn.q_norm.w if which == "q" else attn.k_norm.w)
    return turned(model, found, position)


@pytest.mark.parametrize("norm", ["ignored", "folded"])
@pytest.mark.parametrize("name", WEIGHTS)
def test_ov_equals_one_token_at_a_time(name: str, norm: Any) -> None:
    model, folded = network(name), norm == "folded"
    found = ov_circuit(model, norm=norm)
    assert found.sizes == {"head": 2 * model.config.n_heads, "token": 11, "output": model.config.outputs}
    for label, layer, kv in zip(*(found[name].values.tolist() for name in ("head", "layer", "kv_head"))):
        head = Head(layer, int(label.split(".")[1]))
        assert kv == key_head(model, head, "v")
        block = model.layers[layer]
        for token in range(11):
            z = through(block.ln1, model.W_E[token], folded) @ block.attn.W_V[kv]
            written = through(model.ln_final, z @ block.attn.W_O[head.head], folded)
            expected = [float((written @ model.W_U[:, output]).detach()) for output in range(model.config.outputs)]
            assert found.sel(head=label, token=token).values.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("norm", ["ignored", "folded"])
@pytest.mark.parametrize("name", WEIGHTS)
def test_qk_equals_one_pair_at_a_time(name: str, norm: Any) -> None:
    model, folded = network(name), norm == "folded"
    rotary = model.config.positions == "rotary"
    for offset in (0, 3) if rotary else (None,):
        found = qk_circuit(model, ["1.1", "0.0"], offset=offset, norm=norm, queries=[3, 9, 0], keys=[1, 2])
        assert found["head"].values.tolist() == ["1.1", "0.0"]
        assert found.attrs.get("offset") == offset
        for head in (Head(1, 1), Head(0, 0)):
            block, kv = model.layers[head.layer], key_head(model, head, "k")
            for query in (3, 9, 0):
                for key in (1, 2):
                    # Any two positions that far apart.
                    x, y = (through(block.ln1, model.W_E[t], folded) for t in (query, key))
                    q = side(model, block.attn, "q", x, head.head, 2 + (offset or 0), folded)
                    k = side(model, block.attn, "k", y, kv, 2, folded)
                    one = found.sel(head=str(head), query_token=query, key_token=key)
                    expected = float((q @ k).detach()) * model.config.scale
                    assert float(one) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"n_kv_heads": 2},
        {"positions": "rotary", "rotary_dim": 2},
        {"positions": "rotary", "rotary_style": "adjacent", "n_kv_heads": 1, "causal": False},
        {"positions": "rotary", "rotary_factor": 8.0, "rotary_trained_ctx": 16, "rotary_base": 100.0},
    ],
)
def test_both_circuits_are_all_that_one_layer_of_attention_does(shape: dict[str, Any]) -> None:
    """Scores are QK entries; logits are the direct path and OV rows, weighed by the pattern."""
    model, tokens = plain(shape), torch.randint(0, 11, (BATCH, LENGTH), generator=torch.Generator().manual_seed(3))
    sites, rotary = oracle_sites(model, tokens), shape.get("positions") == "rotary"
    ov = torch.from_numpy(ov_circuit(model).values)
    scores, pattern = sites["blocks.0.attn.attn_scores"], sites["blocks.0.attn.pattern"]
    for query in range(LENGTH):
        for key in range(LENGTH if not model.config.causal else query + 1):
            qk = qk_circuit(model, offset=query - key if rotary else None).values
            for b in range(BATCH):
                np.testing.assert_allclose(
                    scores[b, :, query, key], qk[:, tokens[b, query], tokens[b, key]], atol=1e-10
                )
    direct = (model.W_E @ model.W_U).detach()[tokens]
    attended = torch.einsum("bhqk,hbko->bqo", pattern, ov[:, tokens])
    np.testing.assert_allclose(direct + attended, sites["logits"], atol=1e-10)


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_folded_circuits_lack_nothing_but_the_scale(norm: str) -> None:
    model = plain({"norm": norm, "norm_eps": 0.01})
    with torch.no_grad():
        for module in (model.layers[0].ln1, model.ln_final):
            if isinstance(module, Norm) and module.b is not None:
                module.b.zero_()
    tokens = torch.randint(0, 11, (BATCH, LENGTH), generator=torch.Generator().manual_seed(3))
    sites = oracle_sites(model, tokens)
    scale, end = sites["blocks.0.ln1.scale"][..., 0], sites["ln_final.scale"]
    qk = torch.from_numpy(qk_circuit(model, norm="folded").values)
    scores = sites["blocks.0.attn.attn_scores"]
    for b in range(BATCH):
        for query in range(LENGTH):
            for key in range(query + 1):
                expected = qk[:, tokens[b, query], tokens[b, key]] / scale[b, query] / scale[b, key]
                np.testing.assert_allclose(scores[b, :, query, key], expected, atol=1e-10)
    # Behind the attention: each head's part of the logits, the final scale fixed.
    result = sites["blocks.0.attn.result"]
    written = torch.einsum("bphd,do->bpho", result, through_all(model.ln_final, model.W_U.detach())) / end[..., None]
    ov = torch.from_numpy(ov_circuit(model, norm="folded").values)
    weights = sites["blocks.0.attn.pattern"] / scale[:, None, None, :]
    expected = torch.einsum("bhqk,hbko->bqho", weights, ov[:, tokens]) / end[..., None]
    np.testing.assert_allclose(written, expected, atol=1e-10)


def through_all(norm: Norm | NoNorm, weight: Tensor) -> Tensor:
    """The rows of a weight, each unit vector of the stream through the norm's linear part."""
    unit = torch.eye(len(weight), dtype=weight.dtype)
    return torch.stack([through(norm, row, True) for row in unit]).detach() @ weight


@pytest.mark.parametrize("name", ["attention-only-learned", "shortformer", "head-norm-learned", "gpt2"])
@pytest.mark.parametrize("norm", ["ignored", "folded"])
def test_positional_scores_equal_one_pair_at_a_time(name: str, norm: Any) -> None:
    model, folded = network(name), norm == "folded"
    found = positional_qk(model, positions=[4, 0, 2], norm=norm)
    assert found.dims == ("head", "query", "key")
    for head in heads(model.config):
        block = model.layers[head.layer]
        for query in (4, 0, 2):
            for key in (4, 0, 2):
                places = [model.W_pos[p] for p in (query, key)]
                if name != "shortformer":
                    places = [through(block.ln1, x, folded) for x in places]
                q, k = (side(model, block.attn, w, x, head.head, 0, folded) for w, x in zip("qk", places))
                one = float(found.sel(head=str(head), query=query, key=key))
                assert one == pytest.approx(float((q @ k).detach()) * model.config.scale, rel=1e-9, abs=1e-12)


def test_without_content_scores_are_the_positional_circuit() -> None:
    model = plain({"positions": "learned"})
    with torch.no_grad():
        model.W_E.zero_()
    scores = oracle_sites(model, prompts("gpt2"))["blocks.0.attn.attn_scores"][0]
    found = positional_qk(model, positions=range(LENGTH)).values
    seen = np.tril(np.ones((LENGTH, LENGTH), bool))
    np.testing.assert_allclose(np.where(seen, scores, 0), np.where(seen, found, 0), atol=1e-10)


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama", "solu-ln-parallel"])
def test_circuits_can_start_after_mlp_0(name: str) -> None:
    """A token alone with what MLP 0 makes of it, as the oracle sees it where attention writes nothing."""
    model = network(name)
    found = ov_circuit(model, ["0.1", "1.0"], start="after MLP 0", norm="folded")
    np.testing.assert_array_equal(found.sel(head="0.1"), ov_circuit(model, ["0.1"], norm="folded").sel(head="0.1"))
    silent = network(name)
    with torch.no_grad():
        silent.layers[0].attn.W_O.zero_()
        if silent.layers[0].attn.out.bias is not None:
            silent.layers[0].attn.out.bias.zero_()
        if silent.config.positions == "learned":
            silent.W_pos.zero_()
    block = model.layers[1]
    for token in range(11):
        x = oracle_sites(silent, torch.tensor([[token]]))["blocks.0.resid_post"][0, 0]
        z = through(block.ln1, x, True) @ block.attn.W_V[0]
        expected = (through(model.ln_final, z @ block.attn.W_O[0], True) @ model.W_U).tolist()
        assert found.sel(head="1.0", token=token).values.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert found.attrs["start"] == "after MLP 0"


@pytest.mark.parametrize("by", ["largest", "smallest", "absolute"])
@pytest.mark.parametrize("circuit", ["OV", "QK"])
@pytest.mark.parametrize("name", ["gpt2", "neox", "llama", "classifier"])
def test_the_strongest_entries_are_those_of_the_whole_circuit(name: str, circuit: Any, by: Any) -> None:
    model = network(name)
    offset = 2 if circuit == "QK" and model.config.positions == "rotary" else None
    whole = ov_circuit(model, norm="folded") if circuit == "OV" else qk_circuit(model, offset=offset, norm="folded")
    least = 1_000_000
    with pytest.raises(UserError, match="One row of"):
        strongest_entries(model, circuit=circuit, offset=offset, memory=1000)
    for memory in (least, 2**29):
        done: list[int] = []
        found = strongest_entries(
            model, circuit=circuit, by=by, top=7, offset=offset, norm="folded", memory=memory, progress=done.append
        )
        assert sum(done) == 11 * len(found["head"])
        for head in found["head"].values.tolist():
            entries = whole.sel(head=head).values
            order = {"largest": -entries, "smallest": entries, "absolute": -abs(entries)}[by]
            best = np.sort(order.flatten())[:7]
            one = found.sel(head=head)
            np.testing.assert_allclose(entries[one["row"], one["column"]], one["value"], atol=1e-12)
            np.testing.assert_allclose(order[one["row"], one["column"]], best, atol=1e-12)


def test_a_small_limit_is_kept_by_chunks_of_rows() -> None:
    model = network("gpt2")
    needed: list[int] = []
    for memory in (200_000, 10**7):
        try:
            done: list[int] = []
            strongest_entries(model, ["0.0"], top=3, memory=memory, progress=done.append)
            needed.append(max(done))
        except UserError:
            needed.append(0)
    assert needed == [0, 11]
    with pytest.raises(UserError, match="about") as refused:
        strongest_entries(model, ["0.0"], top=3, memory=200_000)
    least = float(str(refused.value).split("about ")[1].split(" MB")[0])
    done = []
    found = strongest_entries(model, ["0.0"], top=3, memory=int(least * 1e6) + 100_000, progress=done.append)
    whole = np.sort(ov_circuit(model, ["0.0"]).values.flatten())[::-1]
    np.testing.assert_allclose(found["value"].values[0], whole[:3], atol=1e-12)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_rows_one_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    from headwork.methods import weight_circuits as module

    model = network(name)
    whole = strongest_entries(model, top=5)
    monkeypatch.setattr(module, "_rows_at_once", lambda *given: 1)
    monkeypatch.setattr(module, "_TOKENS_AT_ONCE", 3)
    done: list[int] = []
    parts = strongest_entries(model, top=5, progress=done.append)
    assert set(done) == {1}
    np.testing.assert_allclose(parts["value"], whole["value"], atol=1e-12)
    np.testing.assert_array_equal(parts["row"], whole["row"])
    np.testing.assert_array_equal(parts["column"], whole["column"])


def test_large_circuits_are_refused_with_their_size() -> None:
    model = network("gpt2")
    with pytest.raises(UserError, match=r"OV circuits of 4 heads over 11 × 11 entries need .* GB; the limit is 0.0 GB"):
        ov_circuit(model, memory=4 * 121 * 8)
    assert ov_circuit(model, memory=2 * 4 * 121 * 8).size == 4 * 121
    shape = {"d_vocab": 60_000, "d_model": 4, "n_heads": 1, "d_head": 2}
    large = initialise(TransformerConfig.from_dict(ARCHITECTURES["gpt2"].to_dict() | shape), 0)
    with pytest.raises(UserError, match=r"over 60,000 × 60,000 entries need 115.2 GB; the limit is 0.5 GB"):
        ov_circuit(large)
    assert ov_circuit(large, tokens=[59_999], outputs=[0, 1]).shape == (2, 1, 2)


@pytest.mark.usefixtures("unchecked")
def test_what_does_not_exist_is_refused() -> None:
    wrong: list[tuple[Any, str, dict[str, Any], str]] = [
        (ov_circuit, "gpt2", {"heads": ["2.0"]}, r"Unknown head '2.0'"),
        (ov_circuit, "gpt2", {"heads": ["0.1", "0.1"]}, r"heads are \['0.1', '0.1'\]"),
        (ov_circuit, "gpt2", {"tokens": [11]}, "tokens include 11; this network has 0–10"),
        (ov_circuit, "classifier", {"outputs": [3]}, "outputs include 3; this network has 0–2"),
        (ov_circuit, "gpt2", {"tokens": []}, r"tokens are \[\]; at least one"),
        (ov_circuit, "gpt2", {"norm": "fold"}, "Unknown treatment of norms 'fold': the nearest valid one is folded"),
        (ov_circuit, "gpt2", {"start": "mlp"}, "Unknown start of a circuit 'mlp'"),
        (ov_circuit, "shortformer", {"start": "after MLP 0"}, "has no MLP 0"),
        (ov_circuit, "no-layers", {}, "has no layers and so no heads"),
        (qk_circuit, "neox", {}, "state offset, from 0 to 6"),
        (qk_circuit, "neox", {"offset": -1}, "offset = -1 is out of range"),
        (qk_circuit, "neox", {"offset": 7}, "offset = 7 is out of range"),
        (qk_circuit, "gpt2", {"offset": 1}, "has no rotary positions; leave it out"),
        (positional_qk, "neox", {}, "positions are 'rotary'"),
        (positional_qk, "gpt2", {"positions": [7]}, "positions include 7"),
        (strongest_entries, "gpt2", {"circuit": "VO"}, "Unknown circuit 'VO'"),
        (strongest_entries, "gpt2", {"by": "size"}, "Unknown order of entries 'size'"),
        (strongest_entries, "gpt2", {"top": 122}, "top = 122; each circuit has 121 entries"),
        (strongest_entries, "gpt2", {"top": 0}, "top = 0"),
    ]
    for call, name, options, says in wrong:
        with pytest.raises(UserError, match=says):
            call(network(name), **options)


def test_the_treatment_of_norms_is_recorded() -> None:
    assert ov_circuit(network("gpt2")).attrs["norm"].startswith("ignored")
    assert ov_circuit(network("gpt2"), norm="folded").attrs["norm"].startswith("folded")
    assert ov_circuit(plain({}), norm="folded").attrs["norm"] == "the network has none"
