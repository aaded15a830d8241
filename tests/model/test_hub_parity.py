"""Networks of the hub's families, written by `transformers` and read by us: the same logits and activations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.model.hub_models import FAMILIES, activations, lifted, read, write

from headwork.engine.run import run
from headwork.model.sites import sites
from headwork.model.sources import load

TOKENS = torch.randint(0, 13, (2, 9), generator=torch.Generator().manual_seed(1))
UNEXPOSED = ("scale", "attn_scores", "attn.result")
"""Sites that no module of theirs takes or gives; the slow twin covers them."""


@pytest.mark.parametrize("name", FAMILIES)
def test_every_site_is_what_transformers_computes(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]()
    write(family, tmp_path)
    ours = load(str(tmp_path), dtype=torch.float64)
    with lifted(family):
        expected = activations(family, read(tmp_path, torch.float64), TOKENS)
    found = run(ours, TOKENS, sites="*")
    assert set(expected) == {site for site in sites(ours.config) if not site.endswith(UNEXPOSED)}
    assert expected["logits"].std() > 0.1
    for site, value in expected.items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(found[site], value, rtol=0, atol=1e-9, msg=lambda m, s=site: f"{s}: {m}")
    assert ours.card is not None
    assert ours.card.inferred == ()


@pytest.mark.parametrize("name", FAMILIES)
def test_in_single_precision_the_two_agree_as_they_stand(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]()
    write(family, tmp_path)
    expected = activations(family, read(tmp_path, torch.float32), TOKENS)
    found = run(load(str(tmp_path)), TOKENS, sites="*")
    for site, value in expected.items():
        torch.testing.assert_close(found[site], value, rtol=0, atol=1e-4, msg=lambda m, s=site: f"{s}: {m}")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_half_precision_load_as_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    family = FAMILIES["llama"]()
    write(family, tmp_path, dtype)
    ours = load(str(tmp_path))
    assert ours.dtype == torch.float32
    with torch.no_grad():
        expected = read(tmp_path, torch.float32)(TOKENS).logits
    torch.testing.assert_close(run(ours, TOKENS).logits, expected, rtol=0, atol=1e-4)


def test_weights_in_several_files_are_the_same_network(tmp_path: Path) -> None:
    family = FAMILIES["gpt-neox"]()
    write(family, tmp_path / "whole")
    write(family, tmp_path / "shards", max_shard_size="8KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    whole, shards = (run(load(str(tmp_path / name)), TOKENS).logits for name in ("whole", "shards"))
    assert torch.equal(whole, shards)


@pytest.mark.parametrize("name", ["gpt-neox", "llama3"])
def test_configurations_of_older_versions_say_the_same(name: str, tmp_path: Path) -> None:
    """They have the rotary settings at the top, and the scaling on its own."""
    write(FAMILIES[name](), tmp_path)
    before = load(str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    rope = config.pop("rope_parameters")
    if name == "gpt-neox":
        config |= {"rotary_emb_base": rope["rope_theta"], "rotary_pct": rope["partial_rotary_factor"]}
    else:
        config |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    (tmp_path / "config.json").write_text(json.dumps(config))
    after = load(str(tmp_path))
    assert after.config == before.config
    assert torch.equal(run(after, TOKENS).logits, run(before, TOKENS).logits)
