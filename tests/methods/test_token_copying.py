"""Copy scores equal a count by hand, token by token, and are 1 and 0 where they must be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.architectures import network
from tests.methods.hand import key_head
from tests.methods.test_weight_circuits import plain, through
from tests.oracle import oracle_sites

from headwork.errors import UserError
from headwork.methods import token_copying as module
from headwork.methods.token_copying import token_copy_scores
from headwork.methods.weight_circuits import ov_circuit
from headwork.model.sites import heads


@pytest.mark.parametrize("norm", ["ignored", "folded"])
@pytest.mark.parametrize("name", ["gpt2", "neox", "llama", "attention-only-learned"])
def test_scores_count_tokens_among_their_own_top(name: str, norm: Any) -> None:
    model, tokens, top = network(name), [7, 2, 5, 10, 0], 3
    start: Any = "embedding" if model.config.attention_only else "after MLP 0"
    done: list[int] = []
    found = token_copy_scores(model, tokens, top=top, norm=norm, progress=done.append)
    circuit = ov_circuit(model, tokens=tokens, start=start, norm=norm)
    assert sum(done) == len(heads(model.config)) * 21
    for head in heads(model.config):
        rows = circuit.sel(head=str(head)).values.tolist()
        for sign, key in ((1, "copy_score"), (-1, "negative_copy_score")):
            hits = [sum(sign * x >= sign * row[token] for x in row) <= top for row, token in zip(rows, tokens)]
            assert float(found[key].sel(head=str(head))) == pytest.approx(sum(hits) / 5)
    assert (found.attrs["start"], found.attrs["tokens"], found.attrs["chance"]) == (start, 5, 3 / 11)


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama"])
def test_in_context_scores_start_from_the_stream_after_block_0(name: str) -> None:
    model, top = network(name), 4
    prompts = torch.randint(0, 11, (12, 5), generator=torch.Generator().manual_seed(2))
    positions = [b % 5 for b in range(12)]
    found = token_copy_scores(model, prompts=prompts, positions=positions, top=top)
    sites = oracle_sites(model, prompts)
    for head in heads(model.config):
        block, hits = model.layers[head.layer], 0
        for b, p in enumerate(positions):
            x = sites["blocks.0.resid_post" if head.layer else "blocks.0.resid_pre"][b, p]
            z = through(block.ln1, x, True) @ block.attn.W_V[key_head(model, head, "v")]
            logits = (through(model.ln_final, z @ block.attn.W_O[head.head], True) @ model.W_U).tolist()
            hits += sum(logit >= logits[int(prompts[b, p])] for logit in logits) <= top
        assert float(found["copy_score"].sel(head=str(head))) == pytest.approx(hits / 12)


def test_a_copying_head_scores_one_and_its_nulls_chance() -> None:
    model = plain({"n_layers": 1, "d_model": 16, "n_heads": 3, "d_head": 16, "d_vocab": 40})
    attn, unit = model.layers[0].attn, torch.eye(16, dtype=torch.float64)
    with torch.no_grad():
        model.W_E.copy_(model.W_E / model.W_E.norm(dim=1, keepdim=True))
        model.W_U.copy_(model.W_E.T)
        for head, sign in ((0, 1), (1, -1), (2, 0)):
            attn.W_V[head].copy_(unit)
            attn.W_O[head].copy_(sign * unit)
    found = token_copy_scores(model, draws=50)
    copying, negative, silent = (found.sel(head=f"0.{h}") for h in range(3))
    assert float(copying["copy_score"]) == float(negative["negative_copy_score"]) == 1
    assert float(copying["negative_copy_score"]) == float(negative["copy_score"]) == 0
    for one, score in ((copying, "copy_score"), (negative, "negative_copy_score")):
        assert float(one[score]) > 5 * float(one["null_tokens"])
    # By chance 5 of 40; another token of a copying head less, since one place is taken.
    assert float(copying["null_turned"]) == pytest.approx(0.125, abs=0.04)
    assert float(copying["null_tokens"]) == pytest.approx(4 / 39, abs=0.03)
    # A head that writes nothing names no token, although all logits are its largest.
    assert float(silent["copy_score"]) == float(silent["negative_copy_score"]) == float(silent["null_tokens"]) == 0


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama"])
def test_turned_into_its_own_directions_a_head_is_itself(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    model = network(name)
    for head in heads(model.config):
        o = model.layers[head.layer].attn.W_O[head.head].detach()
        monkeypatch.setattr(module, "_directions", lambda *given, o=o: torch.linalg.qr(o.T).Q.T)
        found = token_copy_scores(model, heads=[head], top=3, draws=2)
        assert float(found["null_turned"][0]) == float(found["copy_score"][0])


def test_a_head_that_always_names_the_same_tokens_is_told_by_its_null() -> None:
    model = plain({"d_model": 8, "d_vocab": 30})
    with torch.no_grad():
        model.W_E[:, 0] = 1
        model.W_U.zero_()
        model.W_U[1, :4] = 1
        attn = model.layers[0].attn
        attn.W_V.zero_()
        attn.W_V[0, 0, 0] = 1
        attn.W_O[0].zero_()
        attn.W_O[0, 0, 1] = 1
    found = token_copy_scores(model, [0, 1, 2, 3], top=5).sel(head="0.0")
    assert float(found["copy_score"]) == float(found["null_tokens"]) == 1


def test_the_seed_fixes_the_nulls() -> None:
    a, b, c = (token_copy_scores(network("gpt2"), top=3, seed=seed) for seed in (1, 1, 2))
    assert a.identical(b)
    np.testing.assert_array_equal(a["copy_score"], c["copy_score"])
    assert not (a["null_turned"] == c["null_turned"]).all()


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_scored_is_refused() -> None:
    rows = [[1, 2], [3, 4]]
    wrong: list[tuple[str, dict[str, Any], str]] = [
        ("classifier", {}, "this model reads 11 tokens and writes 3"),
        ("gpt2", {"top": 11}, "top = 11; it must be from 1 to 10"),
        ("gpt2", {"tokens": [3, 11]}, "Token 11 is outside"),
        ("gpt2", {"tokens": [3, 3]}, "include one twice"),
        ("gpt2", {"tokens": [3]}, "at least two different ones"),
        ("gpt2", {"tokens": [3, 4], "prompts": rows, "positions": [0, 1]}, "either tokens"),
        ("gpt2", {"prompts": rows}, "either tokens"),
        ("gpt2", {"positions": [0, 1]}, "give prompts too"),
        ("gpt2", {"prompts": rows, "positions": [0]}, "1 positions were given for 2 prompts"),
        ("gpt2", {"prompts": rows, "positions": [0, 2]}, "positions include 2"),
        ("gpt2", {"prompts": rows, "positions": [0, 0], "top": 3, "heads": ["2.0"]}, "Unknown head"),
        ("shortformer", {"start": "after MLP 0"}, "has no MLP 0"),
        ("gpt2", {"draws": 0}, "draws = 0"),
    ]
    for name, options, says in wrong:
        with pytest.raises(UserError, match=says):
            token_copy_scores(network(name), **{"top": 3, **options})
