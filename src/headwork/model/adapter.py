"""Any network that is no `Transformer`: its sites are its modules' outputs and, where it is traced, functional steps.

A site has the module's name, `conv1` or `layers.0.fc`; a functional step that of the function, `relu`, `max_pool2d`.
What is called again is numbered: `conv1:1`, `relu_1`. Where `torch.fx` can trace the module (no branch depends on the
data, and the traced network gives the same outputs), a pass runs through the traced graph step by step and nothing is
registered on the module. Elsewhere modules are watched by hooks, which last as long as the pass, also where it fails.
"""

from __future__ import annotations

import contextvars
import operator
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from headwork.errors import UserError
from headwork.model.card import ModelCard

See = Callable[[str, Tensor], Tensor]
"""What a pass meets at every site: it is given the value, and returns what the pass goes on with."""

_RUNNING: contextvars.ContextVar[object] = contextvars.ContextVar("the pass whose hooks may fire", default=None)
_UNSEEN = ("placeholder", "get_attr", "output")
_PICKING = (operator.getitem, getattr)
"""Functions that only take a part of a value, which is no step of the network."""


class Adapted:
    """A module with named sites; `sites` gives the shape that each has on the example, batch and all.

    `card` says where it comes from, where that is known. Made by `adapt`.
    """

    card: ModelCard | None = None
    tokenizer_source: Any = None

    def __init__(self, module: nn.Module, example: tuple[Tensor, ...], graph: Graph | None) -> None:
        self.module, self.example, self.graph = module, example, graph
        self.sites: Mapping[str, tuple[int, ...]] = {}

    @property
    def traced(self) -> bool:
        """Whether functional steps are sites too."""
        return self.graph is not None

    def __call__(self, *inputs: Tensor) -> Any:
        return self.module(*inputs)

    def parameters(self) -> Iterator[nn.Parameter]:
        """The module's parameters."""
        return self.module.parameters()

    def seen(self, inputs: tuple[Tensor, ...], see: See) -> Any:
        """What the module makes of the inputs while `see` meets every site."""
        return _hooked(self.module, inputs, see) if self.graph is None else self.graph.run(inputs, see)


class Graph:
    """A traced module: its steps, and the sites that each step's value is, in the order of the pass."""

    def __init__(self, module: nn.Module) -> None:
        """Raises whatever the tracer does where it cannot follow the module."""
        tracer = _Tracer()
        steps = tracer.trace(module)
        self.module = fx.GraphModule(tracer.root, steps)
        self.names: dict[str, list[str]] = {}
        calls: Counter[str] = Counter()
        for path, node in tracer.outputs:
            self.names.setdefault(node.name, []).append(_numbered(path, calls))
        for node in self.module.graph.nodes:
            if node.op not in (*_UNSEEN, "call_module") and node.target not in _PICKING:
                self.names.setdefault(node.name, []).insert(0, _numbered(node.name, calls))

    def run(self, inputs: tuple[Tensor, ...], see: See) -> Any:
        """What the graph makes of the inputs while `see` meets every site."""
        return _Steps(self.module, self.names, see).run(*inputs)


class _Tracer(fx.Tracer):
    """Also notes which step's value each module returned, of those that are traced through too."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[tuple[str, fx.Node]] = []

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        value = super().call_module(m, forward, args, kwargs)
        if isinstance(value, fx.Proxy):
            self.outputs.append((self.path_of_module(m), value.node))
        return value


class _Steps(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, names: Mapping[str, list[str]], see: See) -> None:
        super().__init__(module)
        self.names, self.see = names, see
        self.extra_traceback = False  # which would be added to our own errors' sentences

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            for name in self.names.get(n.name, ()):
                value = self.see(name, value)
        return value


def adapt(module: nn.Module, *example: Tensor, trace: bool = True) -> Adapted:
    """`module` with sites, found by running it once on `example`, inputs of the kind it takes.

    With `trace=False` only modules' outputs are sites. A module in training mode is used as it is. Raises `UserError`
    where it does not run on the example, or has no sites.
    """
    if not example or not all(isinstance(value, Tensor) for value in example):
        raise UserError("adapt needs the module and a tensor that it can be run on, such as a batch of one image.")
    with torch.no_grad():
        try:
            expected = module(*example)
        except Exception as error:  # whatever a stranger's module raises
            first = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(f"The module does not run on the example: {first}.") from error
        graph = _traced(module, example, expected) if trace else None
        adapted = Adapted(module, example, graph)
        shapes: dict[str, tuple[int, ...]] = {}

        def see(site: str, value: Tensor) -> Tensor:
            shapes[site] = tuple(value.shape)
            return value

        adapted.seen(example, see)
    if not shapes:
        raise UserError(f"The {type(module).__name__} has no sites: no part of it returns a tensor.")
    adapted.sites = shapes
    return adapted


def _traced(module: nn.Module, example: tuple[Tensor, ...], expected: Any) -> Graph | None:
    """The module's graph; None where it cannot be traced, or would not compute the same."""
    try:
        graph = Graph(module)
        found = graph.run(example, lambda site, value: value)
        same = isinstance(found, Tensor) and isinstance(expected, Tensor) and torch.equal(found, expected)
    except Exception:  # a tracer meets anything in a stranger's code; hooks remain
        return None
    return graph if same else None


def _hooked(module: nn.Module, inputs: tuple[Tensor, ...], see: See) -> Any:
    """Run the module with a hook on each part of it, for this pass alone."""
    calls: Counter[str] = Counter()
    token = object()

    def hook(name: str) -> Callable[..., Tensor | None]:
        def fire(part: nn.Module, given: Any, value: Any) -> Tensor | None:
            # A pass inside another, or in another thread, meets the hooks of both: only its own may act.
            if _RUNNING.get() is not token or not isinstance(value, Tensor):
                return None
            with _running(None):  # what is called in there is not this pass
                return see(_numbered(name, calls), value)

        return fire

    handles = []
    try:
        for name, part in module.named_modules():
            if name:
                handles.append(part.register_forward_hook(hook(name)))
        with _running(token):
            return module(*inputs)
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _running(token: object | None) -> Iterator[None]:
    before = _RUNNING.set(token)
    try:
        yield
    finally:
        _RUNNING.reset(before)


def _numbered(name: str, calls: Counter[str]) -> str:
    """The site's name: the plain one at the first call, then with a number."""
    calls[name] += 1
    return name if calls[name] == 1 else f"{name}:{calls[name] - 1}"
