"""Screening in bfloat16: the top cells are exact, the others say that they are rough."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.architectures import network, prompts

from headwork.engine.metrics import LogitDifference
from headwork.errors import UserError
from headwork.methods.activation_patching import activation_patching
from headwork.methods.screening import screening
from headwork.tasks.prompt_pairs import PromptPairs

METRIC = LogitDifference(torch.tensor([4, 3, 4]), torch.tensor([1, 2, 3]), torch.tensor([5, 4, 9]))


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama"])
def test_the_top_cells_are_those_of_the_exact_sweep_and_the_rest_is_close(name: str) -> None:
    model = network(name).float()
    pairs = PromptPairs(prompts(name), prompts(name, 1))
    exact = activation_patching(model, pairs, METRIC, site="attn.z", by="head-position")
    found = activation_patching(model, pairs, METRIC, site="attn.z", by="head-position", confirm=5)
    confirmed = found["confirmed"].values
    assert confirmed.sum() == found.attrs["confirmed_cells"] == 5
    np.testing.assert_allclose(found["effect"].values[confirmed], exact["effect"].values[confirmed], atol=1e-5)
    rough = np.abs(found["effect"].values - exact["effect"].values)[~confirmed]
    assert 1e-4 < rough.max() < 0.2 * np.abs(exact["effect"]).max()
    size = np.abs(exact["effect"].mean("prompt").values)
    certain = found.attrs["certain_top"]
    assert set(np.argsort(-size.ravel())[:certain]) <= set(np.flatnonzero(confirmed.ravel()))
    np.testing.assert_array_equal(found["clean"], exact["clean"])


def test_every_cell_can_be_confirmed() -> None:
    model, pairs = network("gpt2").float(), PromptPairs(prompts("gpt2"), prompts("gpt2", 1))
    exact = activation_patching(model, pairs, METRIC, by="position")
    found = activation_patching(model, pairs, METRIC, by="position", confirm=1000)
    np.testing.assert_array_equal(found["effect"], exact["effect"])
    assert found.attrs["certain_top"] == found["confirmed"].size


def test_the_choice_and_its_error_by_hand() -> None:
    rough = torch.tensor([[1.0, 1.2], [-3.0, -3.0], [0.1, -0.1], [2.0, 2.0]])
    screen = screening(rough, 2)
    assert screen.chosen.tolist() == [False, True, False, True]
    exact = torch.tensor([[9.0, 9.0], [-3.5, -3.5], [9.0, 9.0], [1.5, 1.5]])
    attrs = screen.attrs(exact)
    assert attrs["screening_error"] == 0.5
    assert attrs["certain_top"] == 1, "the other is 1.5, and a cell of rough 1.1 could be 1.6"
    torch.testing.assert_close(screen.confirmed(exact), torch.stack([rough[0], exact[1], rough[2], exact[3]]))


def test_nothing_to_confirm_is_refused() -> None:
    pairs = PromptPairs(prompts("gpt2"), prompts("gpt2", 1))
    with pytest.raises(UserError, match="confirm = 0"):
        activation_patching(network("gpt2"), pairs, METRIC, confirm=0)
