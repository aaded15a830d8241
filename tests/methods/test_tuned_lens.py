"""The tuned lens: the logit lens where translators are the identity, nearer to the network where they are trained."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save, save_file
from tests.architectures import LENGTH, network, prompts
from tests.methods.test_weight_circuits import plain
from tests.oracle import oracle_sites
from torch import Tensor

import headwork as hw
from headwork.engine.run import run
from headwork.errors import UserError
from headwork.methods import tuned_lens as module
from headwork.methods.logit_lens import logit_lens
from headwork.methods.translators import (
    Network,
    Translators,
    identity_translators,
    load_translators,
    save_translators,
)
from headwork.methods.tuned_lens import train_tuned_lens, tuned_lens
from headwork.model.transformer import NO_TAP, Transformer

NETWORKS = ["gpt2", "neox", "llama", "bidirectional-pad", "classifier"]


@pytest.mark.parametrize("name", NETWORKS)
def test_with_the_identity_it_is_the_logit_lens(name: str) -> None:
    model, tokens = network(name), prompts(name)
    ours = tuned_lens(model, tokens, identity_translators(model), chosen=[2, 0])
    plainly = logit_lens(model, tokens, chosen=[2, 0])
    assert ours.attrs["method"] == "tuned lens"
    for key in plainly:
        np.testing.assert_array_equal(ours[key], plainly[key])
        assert ours[key].dims == plainly[key].dims


def random_translators(model: Transformer, seed: int = 0) -> Translators:
    """Of another size each, so that none passes for another."""
    found, generator = identity_translators(model), torch.Generator().manual_seed(seed)
    found.weight.copy_(torch.randn(found.weight.shape, generator=generator, dtype=torch.float64))
    found.bias.copy_(torch.randn(found.bias.shape, generator=generator, dtype=torch.float64))
    return found


def slow_logits(model: Transformer, translators: Translators, layer: int, stream: Tensor) -> Tensor:
    """Logits of one stream `[d_model]`, through its translator number by number."""
    width = model.config.d_model
    x, weight, bias = stream.tolist(), translators.weight[layer].tolist(), translators.bias[layer].tolist()
    y = [x[j] + bias[j] + sum(x[i] * weight[i][j] for i in range(width)) for j in range(width)]
    return model.unembed(model.ln_final(torch.tensor(y, dtype=torch.float64)[None, None], NO_TAP, ""))[0, 0].detach()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_lens_equals_the_slow_twin(name: str) -> None:
    model, tokens = network(name), prompts(name)
    translators, known = random_translators(model), oracle_sites(model, tokens)
    names = [f"blocks.{layer}.resid_pre" for layer in range(2)] + ["blocks.0.resid_post", "blocks.1.resid_post"]
    found = tuned_lens(model, tokens, translators, at=names, chosen=[1], labels=("a", "b", "c"))
    for site, layer in zip(names, (0, 1, 1, None)):
        for b, label in enumerate("abc"):
            for p in range(LENGTH):
                end = known["logits"][b, p]
                logits = end if layer is None else slow_logits(model, translators, layer, known[site][b, p])
                one = found.sel(site=site, prompt=label, position=p)
                assert float(one["logit"].sel(token=1)) == pytest.approx(float(logits[1]))
                assert int(one["top"]) == int(logits.argmax())
                kl = float((end.softmax(0) * (end.log_softmax(0) - logits.log_softmax(0))).sum())
                assert float(one["kl"]) == pytest.approx(kl, abs=1e-9)


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama", "bidirectional-pad"])
def test_a_step_follows_the_gradient_of_the_whole_loss(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """One step of plain descent, taken from the loss of full logits written out, padding left out of its mean."""
    model, tokens = network(name), prompts(name)
    monkeypatch.setattr(torch.optim, "Adam", torch.optim.SGD)
    found = train_tuned_lens(model, tokens, steps=1, batch=3, learning_rate=0.1)
    known = oracle_sites(model, tokens)
    real = torch.ones_like(tokens, dtype=torch.bool)
    if model.config.pad_token is not None:
        real = tokens != model.config.pad_token
    for layer in range(2):
        weight = torch.zeros(8, 8, dtype=torch.float64, requires_grad=True)
        bias = torch.zeros(8, dtype=torch.float64, requires_grad=True)
        x = known[f"blocks.{layer}.resid_pre"]
        logits = model.unembed(model.ln_final(x + x @ weight + bias, NO_TAP, ""))
        end = known["logits"].log_softmax(-1)
        loss = (end.exp() * (end - logits.log_softmax(-1))).sum(-1)[real].mean()
        loss.backward()
        assert weight.grad is not None
        assert bias.grad is not None
        np.testing.assert_allclose(found.loss[0, layer], loss.detach(), rtol=1e-9)
        np.testing.assert_allclose(found.weight[layer], -0.1 * weight.grad, rtol=1e-7, atol=1e-12)
        np.testing.assert_allclose(found.bias[layer], -0.1 * bias.grad, rtol=1e-7, atol=1e-12)
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in network(name).parameters())


def turning(seed: int = 0) -> tuple[Transformer, Tensor]:
    """A network whose last block turns the stream by a rotation R: an MLP of relu(x) − relu(−x) = x, through R − 1."""
    model = plain({"n_layers": 2, "d_mlp": 16, "activation": "relu"})
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64)).Q
    unit = torch.eye(8, dtype=torch.float64)
    last = model.layers[1]
    with torch.no_grad():
        last.attn.W_O.zero_()
        last.mlp.W_in.copy_(torch.cat([unit, -unit], 1))
        last.mlp.W_out.copy_(torch.cat([rotation - unit, unit - rotation]))
    return model, rotation


def test_a_known_rotation_is_recovered() -> None:
    model, rotation = turning()
    generator = torch.Generator().manual_seed(1)
    train, test = (torch.randint(0, 11, (n, 7), generator=generator) for n in (64, 16))
    streams = run(model, test, ["blocks.1.resid_pre", "blocks.1.resid_post"])
    torch.testing.assert_close(streams["blocks.1.resid_pre"] @ rotation, streams["blocks.1.resid_post"])
    known = identity_translators(model)
    known.weight[1].copy_(rotation - torch.eye(8).double())
    exact = tuned_lens(model, test, known).sel(site="blocks.1.resid_pre")
    np.testing.assert_allclose(exact["kl"], 0, atol=1e-12)
    found = train_tuned_lens(model, train, steps=400, learning_rate=0.3, batch=64)
    before = float(logit_lens(model, test)["kl"].sel(site="blocks.1.resid_pre").mean())
    after = tuned_lens(model, test, found).sel(site="blocks.1.resid_pre")
    assert before > 5
    assert float(after["kl"].mean()) < 2e-3
    assert (after["rank"] == 0).mean() > 0.95


def test_training_brings_held_out_predictions_nearer() -> None:
    model = hw.load("zoo:attn-only-2l")
    assert model.card is not None
    assert model.card.data is not None
    data, generator = hw.RepeatedSequences.from_dict(model.card.data), torch.Generator().manual_seed(1)
    train, test = (data.sample(n, generator).tokens for n in (512, 64))
    weights = [parameter.clone() for parameter in model.parameters()]
    done: list[int] = []
    found = train_tuned_lens(model, train, steps=60, progress=done.append)
    assert done == [1] * 60
    kl = {
        "logit": logit_lens(model, test)["kl"].mean(("prompt", "position")),
        "tuned": tuned_lens(model, test, found)["kl"].mean(("prompt", "position")),
    }
    assert (kl["tuned"][:-1] < kl["logit"][:-1] - 0.002).all()
    assert abs(float(kl["tuned"][-1])) < 1e-6  # the final stream has no translator
    assert found.loss.shape == (60, 2)
    assert found.loss[-10:].mean(0).tolist() < found.loss[:10].mean(0).tolist()
    assert all(torch.equal(a, b) and a.grad is None for a, b in zip(model.parameters(), weights))


@pytest.mark.parametrize("name", ["llama", "causal-pad"])
def test_memory_and_chunks_change_nothing_but_rounding(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    model, tokens = network(name), torch.cat([prompts(name, seed) for seed in range(4)])
    settings: dict[str, Any] = {"steps": 5, "batch": 5, "seed": 3}
    whole = train_tuned_lens(model, tokens, **settings)
    with pytest.raises(UserError, match="Training on one prompt of 5 tokens needs about"):
        train_tuned_lens(model, tokens, memory=1000, **settings)

    def fits(memory: int) -> bool:
        try:
            return module._plan(model, tokens, memory).prompts > 0
        except UserError:
            return False

    least = next(memory for memory in range(1000, 10**6, 1000) if fits(memory))
    sizes: list[int] = []
    real = module.run

    def counting(model: Transformer, tokens: Tensor, sites: list[str]) -> Any:
        sizes.append(len(tokens))
        return real(model, tokens, sites)

    monkeypatch.setattr(module, "run", counting)
    for extra, prompts_run in ((0, 5 * 5), (10**9, 12)):
        sizes.clear()
        parts = train_tuned_lens(model, tokens, memory=least + extra, **settings)
        np.testing.assert_allclose(parts.weight, whole.weight, atol=1e-9)
        np.testing.assert_allclose(parts.bias, whole.bias, atol=1e-9)
        np.testing.assert_allclose(parts.loss, whole.loss, rtol=1e-9)
        assert sum(sizes) == prompts_run
        assert max(sizes) == (12 if extra else 1)
        assert parts.training == whole.training
    monkeypatch.setattr(module, "BYTES_PER_CHUNK", 1)
    np.testing.assert_allclose(train_tuned_lens(model, tokens, **settings).weight, whole.weight, atol=1e-9)


def test_the_seed_fixes_the_order_of_prompts_and_each_is_read_once_before_any_twice() -> None:
    order = [step.tolist() for step in module._order(10, 4, 5, seed=7)]
    read = [prompt for step in order for prompt in step]
    assert sorted(read[:10]) == sorted(read[10:]) == list(range(10))
    assert order == [step.tolist() for step in module._order(10, 4, 5, seed=7)]
    assert order != [step.tolist() for step in module._order(10, 4, 5, seed=8)]
    tokens = torch.cat([prompts("gpt2", seed) for seed in range(4)])
    a, b, c = (train_tuned_lens(network("gpt2"), tokens, steps=4, batch=4, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(a.weight, b.weight)
    assert not torch.equal(a.weight, c.weight)


@pytest.mark.parametrize("name", ["gpt2", "neox"])
def test_translators_are_saved_and_read_back(tmp_path: Path, name: str) -> None:
    model, tokens = network(name), prompts(name)
    found = train_tuned_lens(model, tokens, steps=3, batch=2)
    folder = save_translators(found, tmp_path / "lens")
    again = load_translators(folder, network(name))
    for key in ("weight", "bias", "loss"):
        assert torch.equal(getattr(again, key), getattr(found, key))
    assert (again.sites, again.training, again.network) == (found.sites, found.training, found.network)
    assert tuned_lens(model, tokens, again).identical(tuned_lens(model, tokens, found))
    record = json.loads((folder / "tuned_lens.json").read_text())
    assert record["training"]["optimizer"] == "Adam"
    with pytest.raises(UserError, match="is there already"):
        save_translators(found, folder)


def test_translators_of_another_network_are_refused(tmp_path: Path) -> None:
    model, tokens = network("gpt2"), prompts("gpt2")
    found = train_tuned_lens(model, tokens, steps=1)
    folder = save_translators(found, tmp_path / "lens")
    for other, what in ((network("gpt2", seed=1), "set of weights is"), (network("neox"), "architecture is")):
        with pytest.raises(UserError, match=f"whose {what} not that of the network given"):
            load_translators(folder, other)
        with pytest.raises(UserError, match=f"whose {what} not that"):
            tuned_lens(other, tokens, found)
    # The same network in another precision is the same network.
    single = network("gpt2").float().double()
    Network.of(single).require(single.float())


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    model = network("gpt2")
    found = train_tuned_lens(model, prompts("gpt2"), steps=2)

    def tensors(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
        """Change what the file holds, and the recorded hash with it."""

        def damage(folder: Path) -> None:
            path = folder / "translators.safetensors"
            state = load_file(path)
            change(state)
            content = save(state)
            path.write_bytes(content)
            values(lambda v: v.update(translators_sha256=hashlib.sha256(content).hexdigest()))(folder)

        return damage

    def values(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
        def damage(folder: Path) -> None:
            path = folder / "tuned_lens.json"
            record = json.loads(path.read_text())
            change(record)
            path.write_text(json.dumps(record))

        return damage

    def truncate(folder: Path) -> None:
        path = folder / "translators.safetensors"
        path.write_bytes(path.read_bytes()[:-10])

    def pickled(folder: Path) -> None:
        torch.save({"weight": found.weight}, folder / "translators.safetensors")

    def otherwise(folder: Path) -> None:
        save_file({"weight": found.weight}, folder / "translators.safetensors")

    damages: list[tuple[Callable[[Path], Any], str]] = [
        (truncate, "truncated or corrupt"),
        (pickled, "pickled"),
        (otherwise, "has the sha256"),
        (lambda folder: (folder / "translators.safetensors").unlink(), "has no translators.safetensors"),
        (lambda folder: (folder / "tuned_lens.json").unlink(), "There is no file"),
        (lambda folder: (folder / "tuned_lens.json").write_text("{"), "is not JSON"),
        (tensors(lambda s: s["weight"][0, 1, 2].fill_(torch.nan)), "weight has NaN entries"),
        (tensors(lambda s: s["bias"][1].fill_(torch.inf)), "bias has infinite entries"),
        (tensors(lambda s: s.update(bias=s["bias"][:, 1:].contiguous())), r"bias has shape \[2, 7\], but \[2, 8\]"),
        (tensors(lambda s: s.update(loss=s["loss"][1:])), r"loss has shape \[1, 2\], but \[2, 2\]"),
        (tensors(lambda s: s.update(weight=s["weight"].long())), "weight is of type torch.int64"),
        (tensors(lambda s: s.pop("bias")), r"holds \['loss', 'weight'\]; it must hold"),
        (values(lambda v: v.update(format=2)), "reads format 1"),
        (values(lambda v: v.update(site=[])), "Unknown key in .*'site'"),
        (values(lambda v: v.pop("sites")), "lacks the key 'sites'"),
        (values(lambda v: v.update(sites=["embed"])), "has the sites"),
        (values(lambda v: v.update(sites="embed")), "must be a JSON list"),
        (values(lambda v: v["training"].update(steps=True)), "training steps = True"),
        (values(lambda v: v["network"].pop("name")), "describes its network by"),
        (values(lambda v: v["network"]["architecture"].update(n_heads=0)), "n_heads = 0"),
    ]
    for i, (damage, says) in enumerate(damages):
        folder = save_translators(found, tmp_path / str(i))
        damage(folder)
        with pytest.raises(UserError, match=says):
            load_translators(folder, model)
    with pytest.raises(UserError, match="There is no folder"):
        load_translators(tmp_path / "none", model)


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_trained_or_read_is_refused() -> None:
    wrong: list[tuple[str, dict[str, Any], str]] = [
        ("gpt2", {"steps": 0}, "steps = 0; it must be 1 or more"),
        ("gpt2", {"batch": 0}, "batch = 0"),
        ("gpt2", {"learning_rate": 0.0}, "learning_rate = 0.0"),
        ("gpt2", {"learning_rate": float("nan")}, "learning_rate = nan"),
        ("gpt2", {"learning_rate": 1e308, "steps": 3}, "loss is not finite at step 1"),
        ("no-layers", {}, "has no layers"),
    ]
    for name, options, says in wrong:
        with pytest.raises(UserError, match=says):
            train_tuned_lens(network(name), prompts(name), **options)
    with pytest.raises(UserError, match="Prompt 1 is nothing but padding"):
        train_tuned_lens(network("causal-pad"), [[1, 2], [0, 0]])
    model, tokens = network("gpt2"), prompts("gpt2")
    with pytest.raises(UserError, match=r"Unknown stream with a translator 'blocks.0.resid_mid'"):
        tuned_lens(model, tokens, identity_translators(model), at="blocks.0.resid_mid")
    with pytest.raises(UserError, match="The lens reads streams"):
        tuned_lens(model, tokens, identity_translators(model), at="blocks.0.attn.z")
