"""Naming sites and heads: which exist, how they are asked for, and what is said about those that do not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.architectures import ARCHITECTURES

from headwork.errors import UserError
from headwork.model.sites import SITES, Head, heads, layer_of, parse_head, resolve, sites

GPT2, NEOX = ARCHITECTURES["gpt2"], ARCHITECTURES["neox"]


def test_each_architecture_has_the_sites_of_its_parts() -> None:
    assert "blocks.0.resid_mid" in sites(GPT2)
    assert "blocks.0.resid_mid" not in sites(NEOX), "a parallel block has no middle"
    assert "blocks.1.attn.rot_q" in sites(NEOX)
    assert "pos_embed" not in sites(NEOX)
    assert "blocks.1.attn.q_norm.scale" in sites(ARCHITECTURES["qwen3"])
    assert "blocks.1.mlp.mid" in sites(ARCHITECTURES["solu-ln"])
    assert not [name for name in sites(GPT2) if "_norm" in name or ".mlp.ln" in name or ".mlp.mid" in name]
    assert "blocks.0.mlp.mid" not in sites(ARCHITECTURES["solu"])
    attention_only = sites(ARCHITECTURES["attention-only-rotary-half"])
    assert not [name for name in attention_only if "mlp" in name or "ln" in name or name.endswith("resid_mid")]
    empty = ["embed", "pos_embed", "ln_final.scale", "ln_final.normalized", "logits"]
    assert list(sites(ARCHITECTURES["no-layers"])) == empty


def test_sites_come_in_the_order_of_the_forward_pass() -> None:
    names = list(sites(GPT2))
    assert names[:3] == ["embed", "pos_embed", "blocks.0.resid_pre"]
    assert names[-1] == "logits"
    layers = [layer for name in names if (layer := layer_of(name)) is not None]
    assert layers == sorted(layers)


def test_every_site_is_described() -> None:
    assert len({site.name for site in SITES}) == len(SITES)
    for site in SITES:
        assert site.axes[0] == "batch"
        assert site.formula


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("blocks.1.attn.z", ["blocks.1.attn.z"]),
        ("blocks.1.attn.hook_z", ["blocks.1.attn.z"]),
        ("blocks.0.hook_resid_pre", ["blocks.0.resid_pre"]),
        ("hook_embed", ["embed"]),
        ("blocks.0.ln1.hook_scale", ["blocks.0.ln1.scale"]),
        ("blocks.*.attn.z", ["blocks.0.attn.z", "blocks.1.attn.z"]),
        ("blocks.*.attn.hook_pattern", ["blocks.0.attn.pattern", "blocks.1.attn.pattern"]),
        ("*resid_mid", ["blocks.0.resid_mid", "blocks.1.resid_mid"]),
    ],
)
def test_aliases_and_patterns(asked: str, expected: list[str]) -> None:
    assert resolve(GPT2, asked) == expected


def test_aliases_of_the_inner_norms() -> None:
    assert resolve(ARCHITECTURES["solu-ln"], "blocks.1.mlp.ln.hook_scale") == ["blocks.1.mlp.ln.scale"]
    assert resolve(ARCHITECTURES["solu-ln"], "blocks.1.mlp.hook_mid") == ["blocks.1.mlp.mid"]
    assert resolve(ARCHITECTURES["qwen3"], "blocks.0.attn.q_norm.hook_scale") == ["blocks.0.attn.q_norm.scale"]


def test_the_order_asked_for_is_kept_and_nothing_doubled() -> None:
    asked = ["logits", "blocks.1.attn.z", "blocks.*.attn.z", "hook_logits", "embed"]
    assert resolve(GPT2, asked) == ["logits", "blocks.1.attn.z", "blocks.0.attn.z", "embed"]
    assert set(resolve(GPT2, "*")) == set(sites(GPT2))


@given(st.sampled_from(list(sites(GPT2))))
def test_every_site_answers_to_its_name_and_its_prefixed_name(name: str) -> None:
    head, _, last = name.rpartition(".")
    assert resolve(GPT2, [name, f"{head}.hook_{last}" if head else f"hook_{last}"]) == [name]


@pytest.mark.parametrize(
    ("asked", "nearest"),
    [
        ("blocks.0.attn.zz", "blocks.0.attn.z"),
        ("blocks.2.attn.z", "blocks.1.attn.z"),
        ("block.0.resid_pre", "blocks.0.resid_pre"),
        ("BLOCKS.0.ATTN.Z", "blocks.0.attn.z"),
        ("blocks.*.atn.z", "blocks.0.attn.z"),
    ],
)
def test_an_unknown_site_names_the_nearest(asked: str, nearest: str) -> None:
    with pytest.raises(UserError) as error:
        resolve(GPT2, asked)
    assert nearest in str(error.value)
    assert repr(asked) in str(error.value)
    assert "layers 0–1" in str(error.value)


def test_a_network_without_layers_says_so() -> None:
    with pytest.raises(UserError, match="this model has no layers"):
        resolve(ARCHITECTURES["no-layers"], "blocks.0.attn.z")
    with pytest.raises(UserError, match="none, since it has no layers"):
        parse_head("0.0", ARCHITECTURES["no-layers"])


def test_heads_are_written_and_read() -> None:
    assert [str(head) for head in heads(GPT2)] == ["0.0", "0.1", "1.0", "1.1"]
    assert all(parse_head(str(head), GPT2) == head for head in heads(GPT2))
    assert sorted([Head(1, 0), Head(0, 1)]) == [Head(0, 1), Head(1, 0)]


@pytest.mark.parametrize("text", ["2.0", "0.2", "0.7", "-1.0", "0", "0.1.0", "", ".", "a.b", "0.-1", "1,0", "0.½"])
def test_a_head_that_does_not_exist_is_refused(text: str) -> None:
    with pytest.raises(UserError) as error:
        parse_head(text, GPT2)
    assert repr(text) in str(error.value)
    assert "2 layers of 2 heads (0.0 to 1.1)" in str(error.value)
