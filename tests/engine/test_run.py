"""Running a network: what is kept, what it costs, what is refused, and gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.architectures import ARCHITECTURES, BATCH, LENGTH, network, prompts

from headwork.engine.edits import function, replace
from headwork.engine.run import as_tokens, bytes_kept, run, shapes
from headwork.errors import UserError
from headwork.model.sites import resolve, sites


def test_only_what_was_asked_for_is_kept() -> None:
    done = run(network("gpt2"), prompts("gpt2"), sites=["blocks.*.attn.hook_z", "embed"])
    assert list(done) == ["blocks.0.attn.z", "blocks.1.attn.z", "embed"]
    assert done["blocks.0.attn.hook_z"] is done["blocks.0.attn.z"]
    with pytest.raises(UserError, match=r"'blocks.0.attn.q'.*Ask for it with sites=\['blocks.0.attn.q'\]"):
        done["blocks.0.attn.q"]
    with pytest.raises(UserError, match="nearest valid ones are blocks"):
        done["blocks.0.attn.qq"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_bytes_are_known_before_the_run(name: str) -> None:
    model, tokens = network(name), prompts(name)
    for site in sites(model.config):
        kept = run(model, tokens, sites=site)[site]
        assert bytes_kept(model, BATCH, LENGTH, [site]) == kept.untyped_storage().nbytes(), site
        assert shapes(model.config, BATCH, LENGTH, [site]) == {site: tuple(kept.shape)}
    everything = run(model, tokens, sites="*")
    assert bytes_kept(model, BATCH, LENGTH, ["*"]) == sum(everything[site].nbytes for site in everything)


def test_bytes_follow_the_type_of_the_network() -> None:
    assert bytes_kept(network("gpt2").float(), 2, 3, ["embed"]) == 2 * 3 * 8 * 4
    assert bytes_kept(network("gpt2").bfloat16(), 2, 3, ["embed"]) == 2 * 3 * 8 * 2


@pytest.mark.parametrize("name", ["gpt2", "llama", "shortformer", "no-layers"])
def test_labelled_arrays_have_the_axes_of_their_sites(name: str) -> None:
    model, tokens = network(name), prompts(name)
    done = run(model, tokens, sites="*")
    labelled = done.to_xarray()
    for site, described in sites(model.config).items():
        axes = tuple(f"{site}.one" if axis == "one" else axis for axis in described.axes)
        assert labelled[site].dims == axes
        np.testing.assert_array_equal(labelled[site].to_numpy(), done[site].numpy())
    np.testing.assert_array_equal(labelled.token.to_numpy(), tokens.numpy())
    assert labelled.token.dims == ("batch", "pos")


def test_half_precision_can_be_labelled() -> None:
    assert run(network("gpt2").bfloat16(), prompts("gpt2"), sites="embed").to_xarray()["embed"].dtype == np.float32


@pytest.mark.parametrize(
    "given",
    [
        [[1, 2, 3]],
        [1, 2, 3],
        np.array([[1, 2, 3]]),
        np.array([1, 2, 3], np.uint16),
        torch.tensor([[1, 2, 3]], dtype=torch.int32),
    ],
    ids=["rows", "row", "array", "uint16", "int32"],
)
def test_tokens_may_be_lists_arrays_or_tensors(given: Any) -> None:
    tokens = as_tokens(network("gpt2"), given)
    assert torch.equal(tokens, torch.tensor([[1, 2, 3]]))


def test_a_run_holds_its_own_copy_of_the_tokens() -> None:
    tokens = prompts("gpt2")
    done = run(network("gpt2"), tokens)
    before = done.tokens.clone()
    tokens.zero_()
    assert torch.equal(done.tokens, before)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([[1, 2], [3]], "rows of one length"),
        ([["a"]], "whole numbers"),
        (None, "whole numbers"),
        ([[2**70]], "whole numbers"),
        ([[1.0, 2.0]], r"torch.float32 of shape \[1, 2\]"),
        (np.array([[1j]]), "complex"),
        ([[True, False]], "torch.bool"),
        ([], "float32 of shape"),
        (np.zeros((2, 0), int), r"shape \[2, 0\]"),
        (np.zeros((1, 1, 1), int), r"shape \[1, 1, 1\]"),
        (3, r"shape \[\]"),
        ([[0, 11]], "Token 11 is outside this model's vocabulary 0–10"),
        ([[0, -1]], "Token -1 is outside"),
        ([[1] * 8], "have 8 tokens; this model reads at most 7"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("unchecked")
def test_tokens_that_the_network_does_not_have_are_refused(given: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        run(network("gpt2"), given)


def test_unknown_sites_are_refused_before_any_work() -> None:
    model = network("gpt2")
    model.forward = None  # type: ignore[method-assign] – would fail if it were called
    with pytest.raises(UserError, match="nearest valid ones are blocks"):
        run(model, prompts("gpt2"), sites="blocks.0.attn.zz")


@pytest.mark.parametrize("name", ["gpt2", "llama", "neox", "shortformer", "mix-causal", "causal-pad"])
def test_gradients_at_a_site_are_the_finite_differences_of_replacing_it(name: str) -> None:
    model, tokens = network(name), prompts(name)
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    asked = [
        "embed",
        "*.0.resid_pre",
        "*.0.attn.q",
        "*.0.attn.v",
        "*.1.attn.pattern",
        "*.z",
        "*.result",
        "*.resid_post",
    ]
    for site in resolve(model.config, asked):
        done = run(model, tokens, sites=site, grad=True)
        direction = torch.randn(done.logits.shape, generator=generator, dtype=torch.float64)
        (gradient,) = torch.autograd.grad((done.logits * direction).sum(), done[site])
        step = 1e-5 * torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
        there, back = (
            (run(model, tokens, edits=replace(site, done[site].detach() + sign * step)).logits * direction).sum()
            for sign in (1, -1)
        )
        torch.testing.assert_close((gradient * step).sum(), (there - back) / 2, rtol=1e-5, atol=1e-9, msg=site)


def test_gradients_reach_the_weights_only_when_asked() -> None:
    model = network("gpt2")
    assert not run(model, prompts("gpt2"), sites="embed").logits.requires_grad
    (gradient,) = torch.autograd.grad(run(model, prompts("gpt2"), sites="*", grad=True).logits.sum(), model.W_pos)
    (plain,) = torch.autograd.grad(model(prompts("gpt2")).sum(), model.W_pos)
    torch.testing.assert_close(gradient, plain)


def test_a_failed_run_leaves_nothing_behind() -> None:
    model, tokens = network("gpt2"), prompts("gpt2")
    before = run(model, tokens).logits

    def fails(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        run(model, tokens, edits=function("blocks.1.attn.z", fails), grad=True)
    assert torch.is_grad_enabled()
    assert torch.equal(run(model, tokens).logits, before)
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks
