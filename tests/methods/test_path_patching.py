"""Path patching equals a slow twin: the receivers' inputs by hand, one head and position at a time, and a full run."""

from __future__ import annotations

import pytest
import torch
from tests.architectures import network, prompts
from tests.methods.hand import NETWORKS, said_otherwise, slow_paths
from tests.oracle import oracle_sites
from torch import Tensor

from headwork.engine.resume import Trace, resume, trace
from headwork.engine.run import Run, run
from headwork.methods.path_patching import Route, direct_edit, path_edits
from headwork.model.sites import Head
from headwork.model.transformer import NO_TAP, Transformer

ROUTES: tuple[Route, ...] = ("q", "k", "v")
THREE_LAYERS = "attention-only-rotary-part"


def cases(name: str) -> tuple[Transformer, Tensor, Tensor]:
    return network(name), prompts(name, 1), prompts(name, 2)


def ran(model: Transformer, clean: Tensor, corrupt: Tensor) -> tuple[Trace, Run]:
    return trace(model, clean), run(model, corrupt, "blocks.*.attn.z")


def by_hand(
    model: Transformer, clean: Tensor, corrupt: Tensor, senders: list[Head], receivers: list[Head], route: Route
) -> Tensor:
    sites = oracle_sites(model, clean), oracle_sites(model, corrupt)
    return slow_paths(model, clean, *sites, senders, receivers, route)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", NETWORKS)
def test_paths_equal_the_slow_twin(name: str, route: Route) -> None:
    model, clean, corrupt = cases(name)
    before, other = ran(model, clean, corrupt)
    senders = [Head(0, 0), Head(0, 1)]
    receivers = [Head(1, model.config.n_heads - 1)]
    edits = path_edits(model, before, other, senders, receivers, route)
    patched, start = resume(model, before, edits)
    expected = by_hand(model, clean, corrupt, senders, receivers, route)
    assert start == 0
    assert (expected - before.logits).abs().max() > 1e-3
    torch.testing.assert_close(patched.logits, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("route", ROUTES)
def test_receivers_of_several_layers_hear_only_what_is_below_each(route: Route) -> None:
    model, clean, corrupt = cases(THREE_LAYERS)
    before, other = ran(model, clean, corrupt)
    senders = [Head(0, 1), Head(1, 0), Head(0, 1)]
    receivers = [Head(2, 0), Head(1, 1), Head(0, 0), Head(2, 1)]
    edits = path_edits(model, before, other, senders, receivers, route)
    assert [edit.site for edit in edits] == [f"blocks.{layer}.attn.{route}" for layer in (1, 2)]
    patched, _ = resume(model, before, edits)
    expected = by_hand(model, clean, corrupt, list(dict.fromkeys(senders)), receivers, route)
    torch.testing.assert_close(patched.logits, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", NETWORKS)
def test_senders_that_say_the_same_change_nothing(name: str, route: Route) -> None:
    model, clean, _ = cases(name)
    before, same = ran(model, clean, clean)
    edits = path_edits(model, before, same, [Head(0, 0)], [Head(1, 0), Head(1, 1)], route)
    patched, _ = resume(model, before, edits)
    torch.testing.assert_close(patched.logits, before.logits, rtol=1e-10, atol=1e-10)
    straight, _ = resume(model, before, direct_edit(model, before, same, [Head(0, 0), Head(1, 1)]))
    torch.testing.assert_close(straight.logits, before.logits, rtol=1e-10, atol=1e-10)


def test_heads_without_a_layer_below_hear_nothing() -> None:
    model, clean, corrupt = cases("gpt2")
    before, other = ran(model, clean, corrupt)
    assert path_edits(model, before, other, [Head(1, 0)], [Head(0, 1), Head(1, 1)], "k") == []
    assert path_edits(model, before, other, [], [Head(1, 1)], "k") == []


@pytest.mark.parametrize("route", ["k", "v"])
def test_a_shared_key_is_heard_by_its_whole_group_and_no_other(route: Route) -> None:
    model, clean, corrupt = cases("llama")
    before, other = ran(model, clean, corrupt)
    edits = path_edits(model, before, other, [Head(0, 0)], [Head(1, 2)], route)
    assert [edit.heads for edit in edits] == [(1,)]
    patched, _ = resume(model, before, edits, "blocks.1.attn.z")
    change = (patched["blocks.1.attn.z"] - before.values["blocks.1.attn.z"]).abs().amax((0, 1, 3))
    assert (change[:2] < 1e-12).all()
    assert (change[2:] > 1e-4).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_direct_path_ends_in_the_final_norm(name: str) -> None:
    model, clean, corrupt = cases(name)
    before, other = ran(model, clean, corrupt)
    senders = [Head(0, 1), Head(1, 0)]
    edit = direct_edit(model, before, other, senders)
    inside = ["blocks.*.attn.pattern", "blocks.*.attn.z", "blocks.*.attn_out", "blocks.1.resid_pre"]
    inside += [] if model.config.attention_only else ["blocks.*.mlp_out"]
    patched, _ = resume(model, before, edit, inside)
    clean_sites = oracle_sites(model, clean)
    for site, value in patched.activations.items():
        torch.testing.assert_close(value, clean_sites[site], rtol=1e-9, atol=1e-9)
    change = said_otherwise(clean_sites, oracle_sites(model, corrupt), senders, model.config.n_layers)
    final = model.ln_final(clean_sites["blocks.1.resid_post"] + change, NO_TAP, "")
    torch.testing.assert_close(patched.logits, final @ model.W_U, rtol=1e-9, atol=1e-9)
    assert (patched.logits - before.logits).abs().max() > 1e-3
