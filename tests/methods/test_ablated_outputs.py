"""Ablated outputs are what the writers write on other prompts, and are refused where they would not fit."""

from __future__ import annotations

import pytest
import torch
from tests.architectures import BATCH, LENGTH, network, prompts
from tests.methods.masked_edges import outputs
from torch import Tensor

from headwork.errors import UserError
from headwork.methods.ablated_outputs import AblatedOutputs, counterfactual, from_reference, zeros
from headwork.model.transformer import Transformer

NETWORKS = ("attention-only-learned", "gpt2", "neox", "llama", "causal-pad")


def written(model: Transformer, given: AblatedOutputs) -> dict[str, Tensor]:
    """Every writer's value by name, heads after W_O."""
    found = {"embed": given.embed}
    for layer, block in enumerate(model.layers):
        for head, w_o in enumerate(block.attn.W_O):
            found[f"{layer}.{head}"] = (given.z[layer][:, :, head] @ w_o).detach()
        if given.mlp_out:
            found[f"m{layer}"] = given.mlp_out[layer]
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_every_value_equals_the_outputs_by_hand(name: str) -> None:
    model, reference = network(name), prompts(name, 3)
    by_hand = outputs(model, reference)
    chosen = torch.randint(BATCH, (4,), generator=torch.Generator().manual_seed(1))
    cases = {
        counterfactual(model, reference): by_hand,
        from_reference(model, reference, "mean"): {k: v.mean((0, 1), keepdim=True) for k, v in by_hand.items()},
        from_reference(model, reference, "mean-by-position"): {k: v.mean(0, True) for k, v in by_hand.items()},
        from_reference(model, reference, "resample", 4, torch.Generator().manual_seed(1)): {
            k: v[chosen] for k, v in by_hand.items()
        },
        zeros(model): {k: torch.zeros_like(v[:1, :1]) for k, v in by_hand.items()},
    }
    for given, expected in cases.items():
        found = written(model, given)
        assert found.keys() == expected.keys()
        for writer, value in expected.items():
            torch.testing.assert_close(found[writer], value, rtol=1e-10, atol=1e-10)


def test_chunks_of_the_reference_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, reference = network("gpt2"), prompts("gpt2", 3)
    whole = [from_reference(model, reference, "mean"), counterfactual(model, reference)]
    monkeypatch.setattr("headwork.methods.batches.BYTES_PER_CHUNK", 1)
    for before, cut in zip(whole, (from_reference(model, reference, "mean"), counterfactual(model, reference))):
        for a, b in zip((before.embed, *before.z, *before.mlp_out), (cut.embed, *cut.z, *cut.mlp_out)):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_rows_and_positions_are_cut_where_the_values_have_them() -> None:
    model, reference = network("gpt2"), prompts("gpt2", 3)
    each = counterfactual(model, reference)
    some = each.rows(slice(1, 3)).positions(2)
    assert torch.equal(some.z[1], each.z[1][1:3, 2:])
    assert torch.equal(some.mlp_out[0], each.mlp_out[0][1:3, 2:])
    assert some.tokens is not None
    assert torch.equal(some.tokens, reference[1:3])
    mean = from_reference(model, reference, "mean-by-position")
    assert (mean.prompts, mean.length, mean.rows(slice(0, 1))) == (None, LENGTH, mean)
    assert torch.equal(mean.positions(3).embed, mean.embed[:, 3:])
    nothing = zeros(model)
    assert (nothing.prompts, nothing.length, nothing.positions(3)) == (None, None, nothing)


@pytest.mark.usefixtures("unchecked")
def test_values_that_cannot_be_made_are_named() -> None:
    model, reference = network("gpt2"), prompts("gpt2", 3)
    with pytest.raises(UserError, match="Unknown ablation value 'means'"):
        from_reference(model, reference, "means")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="come from paired prompts"):
        from_reference(model, reference, "counterfactual")
    with pytest.raises(UserError, match=r"it needs a torch\.Generator"):
        from_reference(model, reference, "resample", 3)
