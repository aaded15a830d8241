"""The logit lens equals a slow twin: each site's stream, one position at a time, through the final norm by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from tests.architectures import BATCH, LENGTH, network, prompts
from tests.methods.hand import NETWORKS
from tests.oracle import oracle_sites
from torch import Tensor

from headwork.errors import UserError
from headwork.methods import logit_lens as module
from headwork.methods.logit_lens import logit_lens
from headwork.model.transformer import Norm, Transformer

NUMBERS = ("kl", "rank", "target_logit", "target_logprob", "top")


def stopped(model: Transformer, x: Tensor) -> list[float]:
    """The logits if the stream x `[d_model]` were the final one."""
    norm = model.ln_final
    if isinstance(norm, Norm):
        x = x - x.mean() if model.config.norm == "layernorm" else x
        x = x / math.sqrt(float((x * x).mean()) + model.config.norm_eps) * norm.w
        x = x if norm.b is None else x + norm.b
    logits = x @ model.W_U
    return (logits if model.unembed.bias is None else logits + model.unembed.bias).tolist()


def logprobs(logits: list[float]) -> list[float]:
    total = math.log(sum(math.exp(x) for x in logits))
    return [x - total for x in logits]


@pytest.mark.parametrize("name", [*NETWORKS, "classifier", "bidirectional-pad"])
def test_the_lens_equals_the_slow_twin(name: str) -> None:
    model, tokens = network(name), prompts(name)
    known, last = oracle_sites(model, tokens), f"blocks.{model.config.n_layers - 1}.resid_post"
    found = logit_lens(model, tokens, chosen=[2, 0], labels=("a", "b", "c"))
    assert found["site"].values.tolist() == ["blocks.0.resid_pre", "blocks.1.resid_pre", last]
    assert found["layer"].values.tolist() == [0, 1, 2]
    with torch.no_grad():
        for site in found["site"].values.tolist():
            for b, label in enumerate("abc"):
                for p in range(LENGTH):
                    one = found.sel(site=site, prompt=label, position=p)
                    logits, end = stopped(model, known[site][b, p]), known["logits"][b, p].tolist()
                    target = max(range(len(end)), key=lambda token, end=end: end[token])
                    ours, final = logprobs(logits), logprobs(end)
                    assert int(one["target"]) == target
                    assert int(one["top"]) == max(range(len(logits)), key=lambda token, logits=logits: logits[token])
                    assert int(one["rank"]) == sum(x > logits[target] for x in logits)
                    assert float(one["target_logit"]) == pytest.approx(logits[target])
                    assert float(one["target_logprob"]) == pytest.approx(ours[target])
                    kl = sum(math.exp(f) * (f - o) for f, o in zip(final, ours))
                    assert float(one["kl"]) == pytest.approx(kl, abs=1e-9)
                    assert one["logit"].sel(token=[2, 0]).values.tolist() == pytest.approx([logits[2], logits[0]])


@pytest.mark.parametrize("name", NETWORKS)
def test_the_last_stream_is_the_networks_own_prediction(name: str) -> None:
    found = logit_lens(network(name), prompts(name)).isel(site=-1)
    np.testing.assert_allclose(found["kl"], 0, atol=1e-12)
    assert (found["rank"] == 0).all()
    assert (found["top"] == found["target"]).all()


def test_targets_can_be_given() -> None:
    model, tokens = network("gpt2"), prompts("gpt2")
    targets = tokens.roll(-1, 1)
    found = logit_lens(model, tokens, targets=targets)
    assert found["target"].transpose("prompt", "position").values.tolist() == targets.tolist()
    own = logit_lens(model, tokens)
    np.testing.assert_array_equal(found["kl"], own["kl"])
    end = oracle_sites(model, tokens)["logits"].log_softmax(-1)
    expected = end.gather(2, targets[:, :, None])[:, :, 0].T
    np.testing.assert_allclose(found["target_logprob"].isel(site=-1), expected.numpy(), rtol=0, atol=1e-10)
    assert (found.attrs["targets"], own.attrs["targets"]) == ("given", "the network's own prediction")


def test_any_stream_can_be_looked_at() -> None:
    found = logit_lens(network("gpt2"), prompts("gpt2"), at=["blocks.*.hook_resid_mid", "blocks.1.mlp_out"])
    assert found["site"].values.tolist() == ["blocks.0.resid_mid", "blocks.1.resid_mid", "blocks.1.mlp_out"]
    assert found["layer"].values.tolist() == [0, 1, 1]
    assert "logit" not in found


@pytest.mark.parametrize("bytes_per_chunk", [1, 4 * 11 * 8 * 4])
def test_no_chunk_of_rows_or_prompts_changes_a_number(monkeypatch: pytest.MonkeyPatch, bytes_per_chunk: int) -> None:
    model, tokens = network("neox"), prompts("neox")
    targets = tokens.roll(-1, 1)
    whole = logit_lens(model, tokens, targets=targets, chosen=[3])
    rows: list[int] = []
    real = module.stream_logits

    def counting(model: Transformer, stream: Tensor) -> Tensor:
        rows.append(len(stream))
        return real(model, stream)

    monkeypatch.setattr(module, "stream_logits", counting)
    monkeypatch.setattr(module, "BYTES_PER_CHUNK", bytes_per_chunk)
    monkeypatch.setattr(module, "chunks", lambda config, batch, length: (slice(b, b + 2) for b in range(0, batch, 2)))
    parts = logit_lens(model, tokens, targets=targets, chosen=[3])
    for name in (*NUMBERS, "logit", "target"):
        np.testing.assert_allclose(parts[name], whole[name], rtol=0, atol=1e-12)
    assert max(rows) == max(1, bytes_per_chunk // (4 * 11 * 8))
    assert sum(rows) == BATCH * LENGTH * 4


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_looked_at_is_refused() -> None:
    wrong: list[tuple[str, dict[str, Any], str]] = [
        ("gpt2", {"at": "blocks.*.attn.z"}, "blocks.0.attn.z has axes batch, pos, head, d_head"),
        ("gpt2", {"at": "blocks.9.resid_pre"}, "Unknown site 'blocks.9.resid_pre'"),
        ("gpt2", {"chosen": [3, 11]}, "chosen tokens include 11; this network has logits for tokens 0–10"),
        ("gpt2", {"targets": prompts("gpt2") - 11}, "targets include -"),
        ("gpt2", {"targets": prompts("gpt2")[:, 1:]}, r"targets have shape \[3, 4\]; the prompts are \[3, 5\]"),
        ("gpt2", {"labels": ("a", "a", "b")}, "2 different labels were given for 3 prompts"),
        ("no-layers", {}, "has no layers"),
    ]
    for name, options, says in wrong:
        with pytest.raises(UserError, match=says):
            logit_lens(network(name), prompts(name), **options)
