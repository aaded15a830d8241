"""Runs of adapted modules: what is kept, what edits change, and that nothing outlives a run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import headwork as hw
from headwork.engine.adapter import ChannelEdit, at_channels, run_adapted
from headwork.engine.edits import Edit
from headwork.errors import UserError
from headwork.model.adapter import Adapted, adapt


class Images(nn.Module):
    """Two convolutions with functional steps between them, one of them in place."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Conv2d(1, 3, 2), nn.Conv2d(3, 2, 2), nn.Linear(8, 5)

    def forward(self, x: Any) -> Any:
        x = functional.max_pool2d(functional.relu(self.one(x)), 2)
        return self.out(functional.relu_(self.two(x)).flatten(1))


MODULE = Images().double()
X = torch.randn(4, 1, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["traced", "hooked"])
def adapted(request: pytest.FixtureRequest) -> Adapted:
    found = adapt(MODULE, X[:1], trace=request.param == "traced")
    assert found.traced == (request.param == "traced")
    return found


def by_hand(x: Tensor, site: str, change: Callable[[Tensor], Tensor]) -> Tensor:
    """The module, with the value at a site changed on the way."""

    def at(here: str, value: Tensor) -> Tensor:
        return change(value) if here == site else value

    with torch.no_grad():
        x = at("relu", functional.relu(at("one", MODULE.one(x))))
        x = at("two", MODULE.two(at("max_pool2d", functional.max_pool2d(x, 2))))
        return at("out", MODULE.out(at("flatten", at("relu_", x.relu()).flatten(1))))


def zeroed(value: Tensor, channels: list[int]) -> Tensor:
    value = value.clone()
    value[:, channels] = 0
    return value


noise = torch.randn(3, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
EDITS: dict[str, tuple[Edit | ChannelEdit, Callable[[Tensor], Tensor]]] = {
    "replace": (hw.replace("one", 0.5), lambda v: torch.full_like(v, 0.5)),
    "add": (hw.add("one", noise), lambda v: v + noise),
    "scale": (hw.scale("two", -2.0), lambda v: -2 * v),
    "function": (hw.function("two", lambda v: v.mul_(3).tanh()), lambda v: (3 * v).tanh()),
    "one channel": (at_channels(hw.scale("one", 0.0), 1), lambda v: zeroed(v, [1])),
    "channels": (at_channels(hw.scale("one", 0.0), [2, 0]), lambda v: zeroed(v, [2, 0])),
    "values of channels": (
        at_channels(hw.replace("one", noise), [2, 0]),
        lambda v: torch.stack([noise[0].expand_as(v[:, 0]), v[:, 1], noise[2].expand_as(v[:, 2])], 1),
    ),
    "output": (hw.add("out", 1.0), lambda v: v + 1),
    "last axis": (
        at_channels(hw.scale("one", 0.0), 3, axis=-1),
        lambda v: zeroed(v.transpose(1, 3), [3]).transpose(1, 3),
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_run_equals_the_module_changed_by_hand(adapted: Adapted, name: str) -> None:
    edit, change = EDITS[name]
    found = run_adapted(adapted, X, edits=edit).output
    torch.testing.assert_close(found, by_hand(X, edit.site, change), rtol=0, atol=1e-12)
    assert not torch.allclose(found, by_hand(X, "", change))


@pytest.mark.parametrize("site", ["relu", "max_pool2d", "flatten"])
def test_functional_steps_are_edited_where_the_module_is_traced(site: str) -> None:
    found = run_adapted(adapt(MODULE, X[:1]), X, edits=at_channels(hw.scale(site, 0.0), 1)).output
    expected = by_hand(X, site, lambda v: zeroed(v, [1]))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_several_edits_act_in_the_order_given(adapted: Adapted) -> None:
    edits = [hw.replace("one", 2.0), hw.scale("one", 3.0), at_channels(hw.add("one", 1.0), 0), hw.scale("out", 2.0)]
    kept = run_adapted(adapted, X, sites="one", edits=edits)
    assert (kept["one"][:, 0] == 7).all()
    assert (kept["one"][:, 1:] == 6).all()
    plain = run_adapted(adapted, X, edits=edits[:3]).output
    torch.testing.assert_close(kept.output, 2 * plain)


def test_only_what_was_asked_for_is_kept_and_steps_in_place_do_not_change_it(adapted: Adapted) -> None:
    found = run_adapted(adapted, X, sites=["t*", "one"])
    assert list(found) == ["one", "two"]
    torch.testing.assert_close(found["one"], MODULE.one(X).detach())
    assert (found["two"] < 0).any()  # relu_ has worked in place since
    assert not found["one"].requires_grad
    with pytest.raises(UserError, match=r"Unknown kept site 'out': .* Ask for it with sites=\['out'\]"):
        found["out"]


def test_a_run_without_edits_is_the_module_and_edits_are_gone_afterwards(adapted: Adapted) -> None:
    run_adapted(adapted, X, edits=hw.replace("one", 9.0))
    assert torch.equal(run_adapted(adapted, X).output, MODULE(X))
    assert torch.equal(adapted(X), MODULE(X))
    assert not any(part._forward_hooks for part in MODULE.modules())


def test_gradients_flow_where_they_are_asked_for(adapted: Adapted) -> None:
    found = run_adapted(adapted, X, sites="one", edits=hw.scale("one", 1.0), grad=True)
    (gradient,) = torch.autograd.grad(found.output.sum(), found["one"])
    step = 1e-6 * torch.randn(gradient.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    moved = run_adapted(adapted, X, edits=hw.add("one", step)).output.sum() - found.output.sum()
    torch.testing.assert_close(moved.detach(), (gradient * step).sum(), rtol=1e-4, atol=0)


def test_nothing_is_left_where_a_run_fails(adapted: Adapted) -> None:
    def fail(value: Tensor) -> Tensor:
        raise RuntimeError("the user's own error")

    with pytest.raises(RuntimeError, match=r"^the user's own error$"):
        run_adapted(adapted, X, edits=hw.function("two", fail))
    assert not any(part._forward_hooks for part in MODULE.modules())
    assert torch.equal(run_adapted(adapted, X).output, MODULE(X))


def test_a_run_inside_a_run_sees_only_its_own_edits(adapted: Adapted) -> None:
    inner: list[Tensor] = []

    def look(value: Tensor) -> Tensor:
        inner.append(run_adapted(adapted, X, sites="one", edits=hw.scale("two", 0.0)).output)
        inner.append(adapted(X).detach())
        return value * 2

    outer = run_adapted(adapted, X, sites="one", edits=[hw.function("one", look), hw.add("out", 1.0)])
    torch.testing.assert_close(outer.output, by_hand(X, "one", lambda v: 2 * v) + 1, rtol=0, atol=1e-12)
    torch.testing.assert_close(inner[0], by_hand(X, "two", torch.zeros_like), rtol=0, atol=1e-12)
    assert torch.equal(inner[1], MODULE(X))
    assert len(inner) == 2


def test_runs_in_two_threads_do_not_meet(adapted: Adapted) -> None:
    inside, go_on, found = threading.Event(), threading.Event(), {}

    def wait(value: Tensor) -> Tensor:
        inside.set()
        assert go_on.wait(10)
        return value * 2

    def work() -> None:
        found["edited"] = run_adapted(adapted, X, edits=hw.function("one", wait)).output

    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(10)
    found["plain"] = run_adapted(adapted, X).output
    go_on.set()
    thread.join()
    assert torch.equal(found["plain"], MODULE(X))
    torch.testing.assert_close(found["edited"], by_hand(X, "one", lambda v: 2 * v), rtol=0, atol=1e-12)
    assert not any(part._forward_hooks for part in MODULE.modules())


@pytest.mark.parametrize(
    ("sites", "edits", "says"),
    [
        (["onne"], (), r"Unknown site 'onne': the nearest valid one is one"),
        (["x*"], (), r"Unknown site 'x\*'"),
        ((), hw.scale("onne", 0.0), r"Unknown site 'onne'"),
        ((), hw.scale("o*", 0.0), r"An edit needs one site; 'o\*' is a pattern"),
        ((), hw.scale("one", 0.0, heads=1), r"has no heads or positions; use at_channels"),
        ((), hw.scale("one", 0.0, positions=1), r"has no heads or positions; use at_channels"),
        ((), at_channels(hw.scale("one", 0.0), 3), r"The site one has channels 0–2; 3 does not exist"),
        ((), at_channels(hw.scale("one", 0.0), 0, axis=4), r"The site one has 4 axes; there is no axis 4"),
        ((), hw.replace("one", torch.zeros(5)), r"value for one has shape \[5\], .* broadcast to \[4, 3, 6, 6\]"),
        ((), hw.function("one", lambda v: v[:, :2]), r"edit at one made \[4, 2, 6, 6\] out of \[4, 3, 6, 6\]"),
    ],
)
def test_what_the_module_does_not_have_is_refused(adapted: Adapted, sites: Any, edits: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        run_adapted(adapted, X, sites, edits)


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ((X, X), r"takes 1 inputs; given were 2"),
        (X[0], r"adapted to inputs such as torch\.float64 of shape \[1, 1, 7, 7\]; given was .* \[1, 7, 7\]"),
        (X.long(), r"given was torch\.int64"),
    ],
)
def test_inputs_of_another_kind_are_refused(adapted: Adapted, inputs: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        run_adapted(adapted, inputs)


def test_a_site_that_this_pass_does_not_reach_is_named() -> None:
    class Sometimes(Images):
        def forward(self, x: Any) -> Any:
            return super().forward(x) if float(x.sum()) > 0 else x

    adapted = adapt(Sometimes().double(), X.abs())
    with pytest.raises(UserError, match=r"did not come to the site one, which it did on the example"):
        run_adapted(adapted, -X.abs(), sites="one")
    with pytest.raises(UserError, match=r"did not come to the site two"):
        run_adapted(adapted, -X.abs(), edits=hw.scale("two", 0.0))
