"""Resuming equals running: for every site, positions, kind of edit and architecture, and it starts where it should."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.architectures import ARCHITECTURES, BATCH, LENGTH, network, prompts
from torch import Tensor

from headwork.engine import resume as module
from headwork.engine.edits import Edit, add, function, patch, replace, scale
from headwork.engine.resume import Entry, Trace, entry, resume, trace
from headwork.engine.run import Run, run
from headwork.errors import UserError
from headwork.model.initialise import initialise
from headwork.model.sites import layer_of, sites
from headwork.model.transformer import Transformer

KINDS = ("replace", "add", "scale", "patch", "function")
MASK = torch.tensor([[0, 0, 0, 1, 0], [0, 0, 1, 0, 1], [0, 0, 0, 0, 0]], dtype=torch.bool)
WHERE: dict[str, Any] = {"everywhere": None, "one": 3, "several": (4, 2), "mask": MASK, "nowhere": ()}
FIRST = {"everywhere": 0, "one": 3, "several": 2, "mask": 2, "nowhere": 0}


@cache
def base(name: str) -> tuple[Transformer, Trace, Run]:
    """A network, its trace on some prompts, and its run on other ones."""
    model = network(name)
    return model, trace(model, prompts(name)), run(model, prompts(name, 1), sites="*")


def edit(name: str, site: str, kind: str, where: str, only_last_head: bool = False) -> Edit:
    """An edit of the given kind. The function mixes positions and heads, so that what it is handed matters."""
    _, _, other = base(name)
    axes = sites(ARCHITECTURES[name])[site].axes
    at: dict[str, Any] = {"positions": WHERE[where]}
    if only_last_head and {"head", "kv_head"} & set(axes):
        at["heads"] = other[site].shape[axes.index("head" if "head" in axes else "kv_head")] - 1
    generator = torch.Generator().manual_seed(len(site))
    noise = torch.randn(other[site].shape, generator=generator, dtype=torch.float64)
    if kind == "replace":
        return replace(site, noise.abs() if site.endswith("scale") else noise, **at)
    if kind == "add":
        return add(site, noise[:1].abs(), **at)
    if kind == "scale":
        return scale(site, 0.4, **at)
    if kind == "patch":
        return patch(site, other, **at)
    return function(site, lambda x: x.sigmoid() + 0.3 * x.sigmoid().mean(1, keepdim=True), **at)


def covered(site: str, name: str, value: Tensor, start: int) -> Tensor:
    """The part of an activation at the positions from `start` on."""
    axes = sites(ARCHITECTURES[name])[site].axes
    return value.narrow(axes.index("query" if "query" in axes else "pos"), start, LENGTH - start)


def assert_resume_equals_run(name: str, edits: list[Edit]) -> int:
    model, before, _ = base(name)
    resumed, start = resume(model, before, edits)
    expected = run(model, before.tokens, edits=edits).logits[:, start:]
    assert expected.isfinite().all()
    torch.testing.assert_close(resumed.logits, expected, rtol=0, atol=1e-10, msg=lambda m: f"{edits}: {m}")
    return start


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.usefixtures("unchecked")
def test_resume_equals_run_for_every_site_kind_and_position(name: str) -> None:
    config = ARCHITECTURES[name]
    for i, site in enumerate(sites(config)):
        for j, where in enumerate(("everywhere", "one", "several", "mask")):
            for k, kind in enumerate(KINDS):
                # Everything crossed with everything on one architecture; elsewhere one kind for each site and place.
                if name == "gpt2" or k == (i + j) % len(KINDS):
                    start = assert_resume_equals_run(name, [edit(name, site, kind, where, (i + j + k) % 2 == 1)])
                    assert start == (FIRST[where] if config.causal else 0)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), name=st.sampled_from(list(ARCHITECTURES)))
def test_resume_equals_run_for_several_edits_at_once(data: st.DataObject, name: str) -> None:
    site = st.sampled_from(list(sites(ARCHITECTURES[name])))
    one = st.tuples(site, st.sampled_from(KINDS), st.sampled_from(list(WHERE)), st.booleans())
    assert_resume_equals_run(name, [edit(name, *drawn) for drawn in data.draw(st.lists(one, max_size=4))])


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.usefixtures("unchecked")
def test_what_a_resumed_run_keeps_is_the_whole_run_from_its_start_on(name: str) -> None:
    model, before, _ = base(name)
    names = list(sites(model.config))
    for i, site in enumerate(names):
        edits = [edit(name, site, "add", "several")]
        whole = run(model, before.tokens, sites="*", edits=edits)
        for asked in ([site], names[i:], names)[: 3 if i % 4 == 0 else 2]:
            resumed, start = resume(model, before, edits, sites=asked)
            assert list(resumed) == asked
            assert torch.equal(resumed.tokens, whole.tokens[:, start:])
            for kept in asked:
                expected = covered(kept, name, whole[kept], start)
                torch.testing.assert_close(resumed[kept], expected, rtol=0, atol=1e-10, msg=f"{site} → {kept}")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_resuming_without_edits_gives_what_the_trace_saw(name: str) -> None:
    model, before, _ = base(name)
    resumed, start = resume(model, before, sites="*")
    assert start == 0
    torch.testing.assert_close(resumed.logits, before.logits, rtol=0, atol=1e-12)
    for site, value in run(model, before.tokens, sites="*").activations.items():
        torch.testing.assert_close(resumed[site], value, rtol=0, atol=1e-12)


def test_a_resumed_run_can_be_labelled() -> None:
    model, before, _ = base("gpt2")
    resumed, start = resume(
        model, before, scale("blocks.0.attn.z", 0, positions=2), sites=["embed", "blocks.*.pattern"]
    )
    labelled = resumed.to_xarray()
    assert start == 2
    assert labelled.sizes["pos"] == labelled.sizes["query"] == 3
    assert labelled.sizes["key"] == LENGTH


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_nothing_before_the_edit_is_computed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, before, _ = base(name)
    touched: dict[str, Tensor] = {}
    call = module._Resumption.__call__

    def counting(tap: module._Resumption, site: str, value: Tensor) -> Tensor:
        touched[site] = value
        return call(tap, site, value)

    monkeypatch.setattr(module._Resumption, "__call__", counting)
    for site in sites(model.config):
        layer = layer_of(site)
        if layer is None:
            continue
        touched.clear()
        resume(model, before, edit(name, site, "scale", "one"))
        earlier = [t for t in touched if t == "embed" or ((at := layer_of(t)) is not None and at < layer)]
        assert not earlier, site
        computed = 2 if model.config.causal else LENGTH
        assert {covered_length(t, name, value) for t, value in touched.items()} == {computed}, site


def covered_length(site: str, name: str, value: Tensor) -> int:
    axes = sites(ARCHITECTURES[name])[site].axes
    return value.shape[axes.index("query" if "query" in axes else "pos")]


@pytest.mark.parametrize(
    ("name", "site", "skipped"),
    [
        ("gpt2", "resid_pre", []),
        ("gpt2", "attn.v", []),
        ("gpt2", "attn.pattern", []),
        ("gpt2", "attn.z", ["attn.z"]),
        ("gpt2", "attn_out", ["attn.z"]),
        ("gpt2", "resid_mid", ["attn.z", "resid_mid"]),
        ("gpt2", "mlp.post", ["attn.z", "resid_mid"]),
        ("gpt2", "mlp_out", ["attn.z", "mlp_out", "resid_mid"]),
        ("gpt2", "resid_post", ["attn.z", "mlp_out", "resid_mid"]),
        ("neox", "resid_pre", []),
        ("neox", "attn.pattern", ["mlp_out"]),
        ("neox", "attn.z", ["attn.z", "mlp_out"]),
        ("neox", "mlp.post", ["attn.z"]),
        ("neox", "resid_post", ["attn.z", "mlp_out"]),
    ],
)
def test_inside_the_layer_only_what_the_edit_reaches_is_computed(
    name: str, site: str, skipped: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, before, _ = base(name)
    handed_out: list[str] = []
    given_by = module._Resumption.given

    def noting(tap: module._Resumption, asked: str) -> Tensor | None:
        value = given_by(tap, asked)
        if value is not None:
            handed_out.append(asked)
        return value

    monkeypatch.setattr(module._Resumption, "given", noting)
    resume(model, before, scale(f"blocks.1.{site}", 0.5, positions=2))
    # The middle of the stream is taken as it is, so that the heads' outputs below it are not even asked for.
    expected = [part for part in skipped if not (part == "attn.z" and "resid_mid" in skipped)]
    assert sorted(handed_out) == [f"blocks.1.{part}" for part in expected]


def test_the_entry_is_the_latest_that_covers_edits_and_captures() -> None:
    config = ARCHITECTURES["gpt2"]
    late, early = scale("blocks.1.attn.z", 0, positions=3), scale("blocks.0.mlp_out", 0, positions=4)
    checked = [e.checked(config, BATCH, LENGTH) for e in (late, early)]
    valid = frozenset({"blocks.0.attn.z", "blocks.0.resid_mid", "blocks.0.mlp_out"})
    assert entry(config, checked) == Entry(0, 3, valid)
    assert entry(config, checked[:1]) == Entry(1, 3, frozenset({"blocks.1.attn.z"}))
    assert entry(config, checked[:1], keep=["blocks.0.attn.pattern"]) == Entry(0, 3)
    assert entry(config, checked[:1], keep=["embed"]) == Entry(0, 3, embeds=True)
    assert entry(config, [], keep=["logits"]) == Entry(2, 0)
    assert entry(ARCHITECTURES["mix-bidirectional"], checked[:1]).start == 0


def test_a_trace_belongs_to_its_network() -> None:
    config = ARCHITECTURES["gpt2"]
    one, twin = initialise(config, 0), initialise(config, 1)
    with pytest.raises(UserError, match="made on another network"):
        resume(twin, trace(one, prompts("gpt2")), scale("embed", 0))


def test_a_trace_keeps_no_more_than_it_names() -> None:
    _, before, _ = base("gpt2")
    for site, value in before.values.items():
        assert value.untyped_storage().nbytes() == value.nbytes, site
