"""llama2.c's files against a slow forward pass written for its names, in float64."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests import foreign
from torch.nn import functional

from headwork.errors import UserError
from headwork.model.card import ModelCard
from headwork.model.checkpoints import assemble, check_weights
from headwork.model.importing import read_checkpoint
from headwork.model.layouts import converter
from headwork.model.sources import load

TOKENS = torch.randint(0, 11, (3, 6), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["bin", "pt"])
def test_llama2c_networks_compute_the_same(tmp_path: Path, kind: str, tied: bool) -> None:
    state, path = foreign.llama2c_state(tied=tied), tmp_path / f"model.{kind}"
    if kind == "bin":
        path.write_bytes(foreign.llama2c_bin(state, tied))
    else:
        torch.save({"model": {f"_orig_mod.{k}": v for k, v in state.items()}, "model_args": foreign.LLAMA2C_ARGS}, path)
    found = read_checkpoint(path, "llama2.c", {})
    check_weights(found.state, found.architecture, "converted")
    with torch.no_grad():
        logits = assemble(found.architecture, found.state, ModelCard(name="x"), torch.float64)(TOKENS)
    expected = foreign.llama2c_logits(state, TOKENS)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-9 * float(expected.abs().max()))
    assert found.architecture.tied is tied
    assert found.architecture.n_ctx == 7
    assert found.inferred == ()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda whole: whole[:-4], r"is not a llama2\.c model: its \d+ bytes do not fit its header \[12, 10,"),
        (lambda whole: whole + bytes(4), r"do not fit its header"),
        (lambda whole: whole[:20], r"do not fit its header"),
        (lambda whole: b"", r"do not fit its header \[\]"),
        (lambda whole: struct.pack("<i", -1) + whole[4:], r"do not fit its header \[-1"),
        (lambda whole: whole[:12] + struct.pack("<i", 5) + whole[16:], r"do not fit its header \[12, 10, 2, 5"),
        (lambda whole: struct.pack("<i", 0x616B3432) + whole[4:], r"is of a later version of llama2\.c's format"),
        (lambda whole: whole[:28] + struct.pack("<f", math.nan) + whole[32:], r"tok_embeddings\.weight has NaN"),
    ],
)
def test_a_damaged_llama2c_file_is_refused(tmp_path: Path, change: Callable[[bytes], bytes], says: str) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(change(foreign.llama2c_bin(foreign.llama2c_state())))
    with pytest.raises(UserError, match=says):
        read_checkpoint(path, "llama2.c", {})


def test_a_llama2c_checkpoint_without_settings_is_refused() -> None:
    with pytest.raises(UserError, match=r"lacks 'model' or 'model_args'"):
        converter("llama2.c")(foreign.llama2c_state(), {})


# --- stories260K -----------------------------------------------------------------------------------------------------

GREEDY = "beeb5cb46785efee81a8545300b31e396b595e5ce6f3b77db201545501981d14"
"""The sha256 of the text that llama2.c's own test expects of 200 greedy steps."""


@pytest.mark.artifacts
def test_the_stories_network_tells_its_published_story(artifacts: Path) -> None:
    model = load("artifact:stories260k")
    tokens = [1]
    with torch.no_grad():
        while len(tokens) <= 200:
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    text = model.tokenizer.to_text(tokens)
    assert text.startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    )
    assert len(text) == 464
    assert hashlib.sha256(text.encode()).hexdigest() == GREEDY


@pytest.mark.artifacts
def test_the_stories_network_reads_stories_as_well_as_stated(artifacts: Path) -> None:
    model = load("artifact:stories260k")
    stories = json.loads((artifacts / "text" / "tinystories_1000.json").read_text())[:60]
    nats = torch.zeros(0)
    for story in stories:
        tokens = torch.tensor([model.tokenizer.to_tokens(story, bos=True)[: model.config.n_ctx]])
        with torch.no_grad():
            loss = functional.cross_entropy(model(tokens)[0, :-1], tokens[0, 1:], reduction="none")
        nats = torch.cat([nats, loss])
    assert nats.mean().item() == pytest.approx(1.42, abs=0.005)
