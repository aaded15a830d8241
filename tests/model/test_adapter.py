"""Strangers' modules with named sites, found by tracing or by hooks, and nothing left behind on them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from headwork.errors import UserError
from headwork.model.adapter import adapt


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Any) -> Any:
        return x + functional.relu(self.fc(x))


class Plain(nn.Module):
    """A block that is run twice, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = Block(), nn.Linear(4, 3)

    def forward(self, x: Any) -> Any:
        return self.head(self.block(self.block(x)))


class Branching(Plain):
    """What it does depends on the data, which no tracer can follow."""

    def forward(self, x: Any) -> Any:
        return super().forward(x) if float(x.sum()) < 1e9 else x


class Talkative(Plain):
    """A part that returns no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 4)

    def forward(self, x: Any) -> Any:
        return super().forward(self.lstm(x)[0])


X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


def seen(module: nn.Module, trace: bool = True) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def see(site: str, value: Tensor) -> Tensor:
        found[site] = value
        return value

    adapt(module, X, trace=trace).seen((X,), see)
    return found


def test_sites_are_modules_and_functional_steps_in_the_order_of_the_pass() -> None:
    adapted = adapt(Plain(), X)
    assert adapted.traced
    first = ["block.fc", "relu", "add", "block"]
    assert list(adapted.sites) == [*first, "block.fc:1", "relu_1", "add_1", "block:1", "head"]
    assert adapted.sites["head"] == (2, 3)


def test_where_the_module_branches_on_data_its_parts_are_the_sites() -> None:
    adapted = adapt(Branching(), X)
    assert not adapted.traced
    assert list(adapted.sites) == ["block.fc", "block", "block.fc:1", "block:1", "head"]


def test_both_ways_see_the_same_values() -> None:
    module = Plain()
    traced, hooked = seen(module), seen(module, trace=False)
    assert hooked.keys() < traced.keys()
    for site, value in hooked.items():
        assert torch.equal(traced[site], value)
    assert torch.equal(traced["block.fc"], module.block.fc(X))
    assert torch.equal(traced["block:1"], module.block(module.block(X)))
    assert torch.equal(traced["head"], module(X))


def test_what_is_no_tensor_is_no_site() -> None:
    assert "lstm" not in adapt(Talkative(), X, trace=False).sites


def test_a_module_whose_trace_computes_something_else_is_not_traced() -> None:
    class Counting(Plain):
        calls = 0

        def forward(self, x: Any) -> Any:
            self.calls += 1
            return super().forward(x) * self.calls

    assert not adapt(Counting(), X).traced


def test_the_module_itself_is_left_as_it_was() -> None:
    module = Plain()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    adapt(module, X)
    assert not any(part._forward_hooks for part in module.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert not any(part._buffers for part in module.modules())


@pytest.mark.parametrize(
    ("module", "example", "says"),
    [
        (Plain(), (), r"adapt needs the module and a tensor"),
        (Plain(), ("text",), r"adapt needs the module and a tensor"),
        (Plain(), (torch.zeros(2, 5),), r"The module does not run on the example: "),
        (nn.Identity(), (torch.zeros(2, 4),), r"The Identity has no sites"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_adapted_is_refused(module: nn.Module, example: tuple[Any, ...], says: str) -> None:
    with pytest.raises(UserError, match=says):
        adapt(module, *example)
