"""Edits: what they change, what they leave alone, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from tests.architectures import ARCHITECTURES, BATCH, LENGTH, network, prompts
from torch import Tensor

from headwork.engine.edits import Edit, add, function, patch, replace, scale
from headwork.engine.resume import resume, trace
from headwork.engine.run import Run, run
from headwork.errors import UserError
from headwork.model.sites import sites

SITES = list(sites(ARCHITECTURES["gpt2"]))
MASK = torch.tensor([[0, 1, 0, 0, 0], [0, 0, 0, 1, 1], [0, 0, 0, 0, 0]], dtype=torch.bool)


def clean_and_corrupt(name: str) -> tuple[Run, Run]:
    model = network(name)
    return run(model, prompts(name, 0), sites="*"), run(model, prompts(name, 1), sites="*")


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.usefixtures("unchecked")
def test_patching_nothing_and_scaling_by_one_change_nothing(name: str) -> None:
    model, tokens = network(name), prompts(name)
    plain = run(model, tokens, sites="*")
    for site in sites(model.config):
        for nothing in (patch(site, plain), scale(site, 1), add(site, 0.0), replace(site, 5.0, positions=())):
            edited = run(model, tokens, edits=nothing)
            torch.testing.assert_close(edited.logits, plain.logits, rtol=0, atol=1e-12, msg=site)


# Which keys are padding is read from the tokens and not from an activation, so no patch carries it over.
@pytest.mark.parametrize("name", [name for name, config in ARCHITECTURES.items() if config.pad_token is None])
def test_patching_everything_gives_the_other_run(name: str) -> None:
    model = network(name)
    clean, corrupt = clean_and_corrupt(name)
    edits = [patch("embed", corrupt)]
    if model.config.n_layers and model.config.positions != "shortformer":
        edits = [patch("blocks.0.resid_pre", corrupt)]
    edited = run(model, clean.tokens, edits=edits)
    torch.testing.assert_close(edited.logits, corrupt.logits, rtol=0, atol=1e-12)
    assert not torch.allclose(edited.logits, clean.logits)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("where", [None, 3, [4, 1], MASK], ids=["everywhere", "one", "several", "mask"])
def test_the_chosen_region_and_nothing_else_is_changed(site: str, where: Any) -> None:
    model, tokens = network("gpt2"), prompts("gpt2")
    old = run(model, tokens, sites=site)[site]
    axes = sites(model.config)[site].axes
    heads = (1,) if "head" in axes or "kv_head" in axes else None
    new = run(model, tokens, sites=site, edits=replace(site, 7.0, heads=heads, positions=where))[site]
    position_axis = axes.index("query" if "query" in axes else "pos")
    for at in np.ndindex(*old.shape):
        example, position = at[0], at[position_axis]
        if isinstance(where, Tensor):
            chosen = bool(where[example, position])
        else:
            chosen = where is None or position in np.atleast_1d(where)
        if heads:
            chosen = chosen and at[axes.index("head" if "head" in axes else "kv_head")] in heads
        assert new[at] == (7.0 if chosen else old[at]), at


def test_heads_of_grouped_queries_are_counted_at_their_site() -> None:
    model, tokens = network("llama"), prompts("llama")
    run(model, tokens, edits=scale("blocks.0.attn.q", 0, heads=3))
    with pytest.raises(UserError, match=r"blocks.0.attn.k has heads 0–1; head 3 does not exist"):
        run(model, tokens, edits=scale("blocks.0.attn.k", 0, heads=3))


def test_edits_at_one_site_apply_in_order() -> None:
    model, tokens = network("gpt2"), prompts("gpt2")
    site = "blocks.0.mlp.post"
    plain = run(model, tokens, sites=site)[site]
    tripled = run(model, tokens, sites=site, edits=[add(site, 1.0), scale(site, 3.0)])[site]
    torch.testing.assert_close(tripled, 3 * (plain + 1))
    raised = run(model, tokens, sites=site, edits=[scale(site, 3.0), add(site, 1.0)])[site]
    torch.testing.assert_close(raised, 3 * plain + 1)
    resumed, _ = resume(model, trace(model, tokens), [add(site, 1.0), scale(site, 3.0)], sites=site)
    torch.testing.assert_close(resumed[site], tripled)


def test_values_broadcast_to_the_site() -> None:
    model, tokens = network("gpt2"), prompts("gpt2")
    site, generator = "blocks.0.attn.z", torch.Generator().manual_seed(0)
    base = trace(model, tokens)
    for shape in [(), (4,), (2, 4), (LENGTH, 1, 1), (BATCH, 1, 1, 4), (BATCH, LENGTH, 2, 4), (1, LENGTH, 1, 4)]:
        value = torch.randn(shape, generator=generator, dtype=torch.float64)
        whole = value.expand(BATCH, LENGTH, 2, 4)
        edited = run(model, tokens, sites=site, edits=replace(site, value, positions=[2, 3]))
        torch.testing.assert_close(edited[site][:, 2:4], whole[:, 2:4])
        resumed, start = resume(model, base, replace(site, value, positions=[2, 3]))
        torch.testing.assert_close(resumed.logits, edited.logits[:, start:], rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", [(3,), (LENGTH - 2, 8), (LENGTH + 1, 8), (2, LENGTH, 8), (1, BATCH, LENGTH, 8)])
def test_a_value_that_does_not_broadcast_is_refused_alike_by_run_and_resume(shape: tuple[int, ...]) -> None:
    model, tokens = network("gpt2"), prompts("gpt2")
    edit = replace("blocks.0.resid_pre", torch.zeros(shape), positions=[2])
    says = r"blocks.0.resid_pre has shape \[.*\], which does not broadcast to \[3, 5, 8\] \(batch, pos, d_model\)"
    with pytest.raises(UserError, match=says):
        run(model, tokens, edits=edit)
    with pytest.raises(UserError, match=says):
        resume(model, trace(model, tokens), edit)


@pytest.mark.parametrize("where", [{}, {"positions": [1, 3]}, {"positions": MASK}], ids=["everywhere", "some", "mask"])
def test_a_function_must_keep_the_shape_up_to_broadcasting(where: dict[str, Any]) -> None:
    model, tokens, site = network("gpt2"), prompts("gpt2"), "blocks.0.mlp_out"
    run(model, tokens, edits=function(site, lambda x: x.mean(0), **where))
    with pytest.raises(UserError, match=r"edit at blocks.0.mlp_out made \[.*7\] out of \[.*8\]"):
        run(model, tokens, edits=function(site, lambda x: x[..., :-1], **where))
    single = run(model, tokens, sites=site, edits=function(site, lambda x: x.float() * 2, **where))[site]
    assert single.dtype == torch.float64


def test_a_function_under_a_mask_is_handed_what_any_example_selects() -> None:
    seen: list[tuple[int, ...]] = []

    def note(x: Tensor) -> Tensor:
        seen.append(tuple(x.shape))
        return x + x.mean(1, keepdim=True)

    model, tokens = network("gpt2"), prompts("gpt2")
    edit = function("blocks.1.attn.q", note, heads=0, positions=MASK)
    edited = run(model, tokens, edits=edit)
    resumed, start = resume(model, trace(model, tokens), edit)
    assert seen == [(BATCH, 3, 1, 4)] * 2
    assert start == 1
    torch.testing.assert_close(resumed.logits, edited.logits[:, 1:], rtol=0, atol=1e-10)
    torch.testing.assert_close(edited.logits[2], run(model, tokens).logits[2], rtol=0, atol=1e-12)


def test_a_score_that_is_hidden_stays_hidden_when_scaled() -> None:
    model, tokens = network("gpt2"), prompts("gpt2")
    uniform = run(model, tokens, sites="*.0.attn.pattern", edits=scale("blocks.0.attn.attn_scores", 0))
    expected = torch.ones(LENGTH, LENGTH).tril() / torch.arange(1, LENGTH + 1)[:, None]
    torch.testing.assert_close(uniform["blocks.0.attn.pattern"], expected.double().expand(BATCH, 2, -1, -1))


def test_numbers_are_exact_in_double_precision() -> None:
    model, tokens, site = network("gpt2"), prompts("gpt2"), "blocks.0.mlp.post"
    old, new = run(model, tokens, sites=site)[site], run(model, tokens, sites=site, edits=scale(site, 0.1))[site]
    assert torch.equal(new, old * 0.1)
    assert (run(model, tokens, sites=site, edits=replace(site, 0.1))[site] == 0.1).all()


@pytest.mark.parametrize("where", [None, 0, (3, 1), MASK], ids=["everywhere", "first", "several", "mask"])
@pytest.mark.usefixtures("unchecked")
def test_an_edit_changes_neither_sources_nor_model_nor_trace(where: Any) -> None:
    model = network("gpt2")
    clean, corrupt = clean_and_corrupt("gpt2")
    base = trace(model, clean.tokens)
    values = {site: torch.ones(clean[site].shape, dtype=torch.float64) for site in SITES}
    held = [*values.values(), *base.values.values(), base.resid_final, base.logits, base.tokens]
    held += [*model.state_dict().values(), *(corrupt[name] for name in corrupt), corrupt.logits]
    before = [tensor.clone() for tensor in held]
    for site in SITES:
        for edit in (
            replace(site, values[site], positions=where),
            add(site, values[site], positions=where),
            scale(site, values[site], positions=where),
            patch(site, corrupt, positions=where),
            function(site, lambda x: x.zero_(), positions=where),
        ):
            run(model, clean.tokens, edits=edit)
            resume(model, base, edit)
    run(model, clean.tokens[:1], edits=[function(site, lambda x: x.zero_()) for site in SITES])
    assert all(torch.equal(now, then) for now, then in zip(held, before))
    assert not [module for module in model.modules() if module._forward_hooks or module._forward_pre_hooks]


@pytest.mark.parametrize("where", [np.int64(3), [3], (3,), torch.tensor([3]), np.array([3]), range(3, 4)], ids=repr)
@pytest.mark.usefixtures("unchecked")
def test_positions_and_heads_may_be_any_whole_numbers(where: Any) -> None:
    model, tokens = network("llama"), prompts("llama")
    plain = run(model, tokens, edits=scale("blocks.0.attn.z", 0, heads=3, positions=3)).logits
    edit = scale("blocks.0.attn.z", 0, heads=where, positions=where)
    assert (edit.heads, edit.positions) == ((3,), (3,))
    assert torch.equal(run(model, tokens, edits=edit).logits, plain)


def test_a_mask_may_be_an_array() -> None:
    model, tokens = network("gpt2"), prompts("gpt2")
    plain = run(model, tokens, edits=scale("embed", 0, positions=MASK)).logits
    assert torch.equal(run(model, tokens, edits=scale("embed", 0, positions=MASK.numpy())).logits, plain)


def test_edits_may_come_from_a_generator() -> None:
    model, tokens = network("gpt2"), prompts("gpt2")
    several = [scale(f"blocks.{layer}.attn_out", 0) for layer in range(2)]
    assert torch.equal(run(model, tokens, edits=iter(several)).logits, run(model, tokens, edits=several).logits)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: scale("blocks.0.attn.zz", 0), "Unknown site 'blocks.0.attn.zz'"),
        (lambda: scale("blocks.*.attn.z", 0), "needs one site; 'blocks.*.attn.z' stands for 2"),
        (lambda: scale("blocks.0.attn.z", 0, heads=2), "heads 0–1; head 2 does not exist"),
        (lambda: scale("blocks.0.attn.z", 0, heads=-1), "head -1 does not exist"),
        (lambda: scale("blocks.0.attn.z", 0, heads=True), "heads of an edit must be whole numbers"),
        (lambda: scale("blocks.0.attn.z", 0, heads=cast(Any, "1")), "heads of an edit must be whole numbers"),
        (lambda: scale("blocks.0.resid_pre", 0, heads=0), "no heads to choose from; its axes are batch, pos, d_model"),
        (lambda: scale("embed", 0, positions=5), "positions 0–4; position 5 does not exist"),
        (lambda: scale("embed", 0, positions=-1), "position -1 does not exist"),
        (lambda: scale("embed", 0, positions=cast(Any, 1.5)), "positions of an edit must be whole numbers"),
        (lambda: scale("embed", 0, positions=cast(Any, [0.0])), "positions of an edit must be whole numbers"),
        (lambda: scale("embed", 0, positions=[True, False, False, True, False]), "positions of an edit must be whole"),
        (lambda: scale("embed", 0, positions=MASK[0]), "positions of an edit must be whole numbers"),
        (lambda: scale("embed", 0, positions=MASK.float()), "must be boolean; this one is torch.float32"),
        (lambda: scale("embed", 0, positions=MASK[:, :4]), r"has shape \[3, 4\]; the prompts are \[3, 5\]"),
        (lambda: scale("embed", 0, positions=MASK[:1]), r"has shape \[1, 5\]; the prompts are \[3, 5\]"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_an_edit_that_does_not_exist_is_refused(make: Callable[[], Edit], says: str) -> None:
    model, tokens = network("gpt2"), prompts("gpt2")
    with pytest.raises(UserError, match=says.replace("*", r"\*")):
        run(model, tokens, edits=make())
    with pytest.raises(UserError, match=says.replace("*", r"\*")):
        resume(model, trace(model, tokens), make())


def test_a_patch_needs_a_run_that_kept_the_site() -> None:
    source = run(network("gpt2"), prompts("gpt2"), sites="embed")
    with pytest.raises(UserError, match=r"Ask for it with sites=\['logits'\]"):
        patch("logits", source)
