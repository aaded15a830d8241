"""Outlines have every parameter's name and shape, and cost neither memory nor the loading of a compiler."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from tests.architectures import ARCHITECTURES

from headwork.model.outline import outline
from headwork.model.transformer import Transformer

_HEAVY = "import sys, headwork as hw; hw.load('zoo:attn-only-2l'); sys.exit('torch._dynamo' in sys.modules)"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_outline_has_the_names_and_shapes_of_a_network_that_is_filled(name: str) -> None:
    config = ARCHITECTURES[name]
    shapes = {name: tensor.shape for name, tensor in outline(config).state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in Transformer(config).state_dict().items()}


def test_an_outline_holds_and_draws_nothing() -> None:
    before = torch.get_rng_state()
    found = outline(ARCHITECTURES["gpt2"])
    assert {(p.device.type, p.requires_grad) for p in found.parameters()} == {("meta", True)}
    assert torch.equal(torch.get_rng_state(), before)


def test_loading_a_network_does_not_load_a_compiler() -> None:
    subprocess.run([sys.executable, "-c", _HEAVY], check=True, timeout=120)
