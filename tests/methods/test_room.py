"""What is held at once grows with the limit, never beyond what was asked for, and is refused below one prompt."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.architectures import ARCHITECTURES, network

from headwork.engine.run import bytes_kept
from headwork.errors import UserError
from headwork.methods.room import room

SITE = "blocks.{l}.attn.z"
WITH_LAYERS = [name for name, config in ARCHITECTURES.items() if config.n_layers]


@settings(deadline=None)
@given(st.sampled_from(WITH_LAYERS), st.integers(1, 9), st.integers(0, 200_000), st.integers(0, 200_000))
def test_more_memory_holds_no_fewer_prompts(name: str, batch: int, memory: int, more: int) -> None:
    model = network(name)
    try:
        small = room(model, batch, 5, SITE, memory)
    except UserError:
        return
    large = room(model, batch, 5, SITE, memory + more)
    assert 1 <= small.prompts <= large.prompts <= batch
    assert 1 <= small.layers <= model.config.n_layers
    assert small.copies >= 1
    # The activations that patches come from are counted.
    assert small.layers * bytes_kept(model, small.prompts, 5, [SITE.format(l=0)]) < memory


def test_without_a_limit_all_is_held() -> None:
    model = network("gpt2")
    assert (room(model, 7, 5, SITE, None).prompts, room(model, 7, 5, SITE, None).layers) == (7, 2)
    enough = room(model, 7, 5, SITE, 10**9)
    assert (enough.prompts, enough.layers) == (7, 2)


@pytest.mark.parametrize("memory", [0, 1000])
def test_a_limit_below_one_prompt_is_refused(memory: int) -> None:
    with pytest.raises(UserError, match=r"Patching one prompt of 5 tokens needs about .* MB beside the weights"):
        room(network("gpt2"), 7, 5, SITE, memory)
