"""Distributed alignment search: the subspace of a place whose interchange best gives a causal model's answers.

An orthonormal basis is learned by gradient descent on the answers under interchange (Geiger et al. 2024). Such a search
can succeed where there is nothing to find (Makelov et al. 2024), so it is always run on a shuffled variable and on an
untrained network as well, and everything is scored on held-out pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headwork.engine.edits import Edit
from headwork.engine.run import Watch, run
from headwork.errors import UserError
from headwork.methods.interchange import answer_logits, interchange
from headwork.methods.interchange_pairs import InterchangePairs
from headwork.methods.room import room
from headwork.methods.site_vectors import Place, forward_bytes
from headwork.methods.subspaces import Subspace, inside
from headwork.model.initialise import initialise
from headwork.model.sites import layer_of
from headwork.model.transformer import Transformer

if TYPE_CHECKING:
    import xarray

FITTED = ("das", "permuted", "untrained")


@dataclass(frozen=True)
class Training:
    """How a basis is learned: Adam on minibatches, the rate falling linearly to 0; the best of `restarts` is kept."""

    steps: int = 300
    batch: int = 64
    rate: float = 0.02
    restarts: int = 1

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "restarts"):
            if getattr(self, name) < 1:
                raise UserError(f"DAS was given {name} = {getattr(self, name)}; it must be 1 or more.")
        if not 0 < self.rate < float("inf"):
            raise UserError(f"DAS was given the rate {self.rate}; it must be above 0.")


def das(
    model: Transformer,
    fit: InterchangePairs,
    held_out: InterchangePairs,
    place: Place,
    k: int,
    *,
    training: Training | None = None,
    seed: int = 0,
    draws: int = 20,
    untrained: Transformer | None = None,
    memory: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> xarray.Dataset:
    """A `k`-dimensional subspace of `place` learned on `fit`, and how often its interchange gives the held-out answers.

    The controls, fitted and scored in the same way: `permuted`, where the pairs are for a variable that means nothing
    (`InterchangePairs.permuted`; its answers are shuffled anew on `held_out`, so there only chance can be reached, and
    what the search can do without a variable shows in its `fit_accuracy`), and `untrained`, a freshly initialised
    network of the same architecture (or the one given). `random` are `draws` random subspaces that move the activation
    as far as the learned one.

    `memory` (bytes, beside the weights) bounds how many pairs are held at once; a minibatch that does not fit is
    computed in parts. `progress` is called with the number of training steps done since the last call.

    The dataset:

    - `interchange_accuracy` [subspace: das, permuted, untrained, random], on `held_out`, and its 95 % Wilson
      `interchange_accuracy_interval` [bound, subspace]; for `random` the mean of the draws, without an interval;
    - `random_accuracy` [draw], `unchanged_accuracy` (no interchange); `reached` [prompt] of `das`;
    - `margin`: das − the best of permuted, untrained, every random draw, and no interchange;
    - `fit_accuracy` and `loss` [step] of each fitted subspace: what it reached on the pairs it was fitted to;
    - `basis` [unit, direction, fitted], for `Subspace`.

    Raises `UserError`, before any work, for what does not exist, pairs without expected answers, pairs that are both
    fitted and held out, and k below 1 or not below the place's width.
    """
    training = training or Training()
    place = place.checked(model.config)
    if not 1 <= k < place.width(model.config):
        raise UserError(f"DAS needs 1 to {place.width(model.config) - 1} directions at {place.site}; given was {k}.")
    _check_pairs(fit, held_out)
    for some in (fit, held_out):
        # Scoring comes after fitting; a limit that it exceeds is refused before.
        room(model, 1, max(some.base.shape[1], some.source.shape[1]), place.site, memory)
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(FITTED) + 1)]
    twin = untrained or initialise(model.config, seed).to(model.device, model.dtype)
    if twin.config != model.config:
        raise UserError("The untrained network must have the same architecture as the one it is compared with.")
    cases = {
        "das": (model, fit.on(model), held_out.on(model)),
        "permuted": (model, fit.permuted(generators[-1]).on(model), held_out.permuted(generators[-1]).on(model)),
        "untrained": (twin, fit.on(twin), held_out.on(twin)),
    }
    found = {}
    for generator, (name, (network, some, others)) in zip(generators, cases.items()):
        basis, losses = align(network, some, place, k, training, generator, memory, progress)
        subspace = Subspace(place, basis)
        scores = interchange(network, others, subspace, draws=draws, seed=seed, memory=memory)
        fitted = interchange(network, some, subspace, draws=1, seed=seed, memory=memory)
        found[name] = _Fitted(basis, losses, scores, float(fitted["interchange_accuracy"]))
    return _dataset(found, held_out, place, training, seed)


@dataclass(frozen=True, eq=False)
class _Fitted:
    """A learned basis, its losses, and what interchanges of it give."""

    basis: Float[Tensor, "width k"]
    losses: Float[Tensor, " step"]
    scores: xarray.Dataset
    fit_accuracy: float


def align(
    model: Transformer,
    pairs: InterchangePairs,
    place: Place,
    k: int,
    training: Training,
    generator: torch.Generator,
    memory: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[Float[Tensor, "width k"], Float[Tensor, " step"]]:
    """The basis with the lowest cross-entropy (nats) of the expected answers under interchange, and the loss by step.

    `pairs` as `InterchangePairs.on` gives them. The best of the restarts is the one with the lowest mean loss over the
    last tenth of its steps. Raises `UserError` where one pair exceeds the memory, or the loss is not finite.
    """
    task = _prepared(model, pairs, place, training.batch, memory)
    results = [_descend(task, k, training, generator, progress) for _ in range(training.restarts)]
    last = max(1, training.steps // 10)
    return min(results, key=lambda result: float(result[1][-last:].mean()))


def _descend(
    task: _Task, k: int, training: Training, generator: torch.Generator, progress: Callable[[int], None] | None
) -> tuple[Float[Tensor, "width k"], Float[Tensor, " step"]]:
    model, count = task.model, len(task.pairs.base)
    width, batch = task.place.width(model.config), min(training.batch, count)
    start = torch.randn(width, k, generator=generator, dtype=torch.float64) / width**0.5
    free = start.to(model.device, model.dtype).requires_grad_()
    adam = torch.optim.Adam([free], lr=training.rate)
    schedule = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.0, training.steps)
    losses = torch.zeros(training.steps, dtype=torch.float64)
    order = torch.empty(0, dtype=torch.long)
    for step in range(training.steps):
        if len(order) < batch:
            order = torch.randperm(count, generator=generator)
        rows, order = order[:batch], order[batch:]
        free.grad = torch.zeros_like(free)
        for part in rows.split(task.size):
            # QR keeps the span, and makes the columns orthonormal, at every step.
            loss = task.losses(part, torch.linalg.qr(free).Q).sum() / batch
            free.grad += torch.autograd.grad(loss, free)[0]
            losses[step] += loss.detach().cpu()
        if not losses[step].isfinite():
            raise UserError(
                f"The loss of DAS at {task.place.site} is {float(losses[step])} at step {step}; it must be finite: "
                "the network's logits may not be."
            )
        adam.step()
        schedule.step()
        if progress:
            progress(1)
    return torch.linalg.qr(free.detach().double()).Q.to(model.dtype).cpu(), losses


@dataclass(frozen=True, eq=False)
class _Task:
    """The pairs whose answers are to change, and what is known of their runs, where that is kept.

    `wanted` are the expected answers by index, `read` where answers are read, `mask` where the interchange happens.
    `known` are the stream that enters the place's block in the base's run and the source's activation there, moved to
    the base's positions. At most `size` pairs are computed at once.
    """

    model: Transformer
    pairs: InterchangePairs
    place: Place
    size: int
    wanted: Int[Tensor, " n"]
    read: Int[Tensor, " n"]
    mask: Bool[Tensor, "n pos"] | None
    known: tuple[Tensor, Tensor] | None = None

    def runs(self, rows: Int[Tensor, " n"]) -> tuple[Tensor, Tensor]:
        """What `known` holds, for some pairs."""
        if self.known is not None:
            return self.known[0][rows], self.known[1][rows]
        some, site = self.pairs.rows(rows), self.place.site
        layer = layer_of(site)
        enters = "embed" if layer is None else f"blocks.{layer}.resid_pre"
        base = run(self.model, some.base, [enters])[enters]
        return base, some.aligned(run(self.model, some.source, [site])[site])

    def losses(self, rows: Int[Tensor, " n"], basis: Float[Tensor, "width k"]) -> Float[Tensor, " n"]:
        """Cross-entropy of the expected answers under interchange, in nats, computed from the place's block on."""
        rows = rows.to(self.model.device)
        tokens, (resid, source) = self.pairs.base[rows], self.runs(rows)
        layer = layer_of(self.place.site)
        mask = None if self.mask is None else self.mask[rows]
        edit = Edit(self.place.site, lambda old, new: _swapped(old, new, basis), source, self.place.heads, mask)
        watch = Watch(self.model.config, (), [edit])
        if layer is None:
            resid = self.model.embedded(tokens, watch)
        frame = self.model.frame(tokens, tap=watch)
        for block in self.model.layers[layer or 0 :]:
            resid = block(resid, frame, watch)
        logits = answer_logits(self.model, resid, self.read[rows], self.pairs.answers)
        return torch.nn.functional.cross_entropy(logits, self.wanted[rows], reduction="none")


def _swapped(old: Tensor, new: Tensor | None, basis: Float[Tensor, "width k"]) -> Tensor:
    assert new is not None, "an interchange is built with a source"  # noqa: S101 – an invariant of this file
    return old + inside(basis, (new - old).flatten(2)).view_as(old)


def _prepared(model: Transformer, pairs: InterchangePairs, place: Place, batch: int, memory: int | None) -> _Task:
    """The task with as much kept and computed at once as fits."""
    count, length = pairs.base.shape
    each = _bytes_of_a_pair(model, pairs, place)
    size = min(batch, count) if memory is None else min(batch, count, memory // each)
    if not size:
        raise UserError(
            f"DAS on one pair of {length} tokens needs about {each / 1e6:,.1f} MB beside the weights; the limit is "
            f"{(memory or 0) / 1e6:,.1f} MB."
        )
    task = _Task(model, pairs, place, size, _wanted(pairs), pairs.read[:, 0].to(model.device), pairs.mask)
    element = model.embed.weight.element_size()
    kept = count * length * (model.config.d_model + Place(place.site).width(model.config)) * element
    if memory is not None and kept > memory - each:
        return task
    parts = [task.runs(rows) for rows in torch.arange(count).split(size)]
    size = size if memory is None else min(batch, count, (memory - kept) // each)
    return replace(task, known=(torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])), size=size)


def _wanted(pairs: InterchangePairs) -> Int[Tensor, " n"]:
    """Each pair's expected answer as an index among the answers."""
    expected = pairs.counterfactual
    assert expected is not None, "the pairs were checked to have expected answers"  # noqa: S101 – seen to by `das`
    if not pairs.answers:
        return expected
    return (expected[:, None] == torch.tensor(list(pairs.answers), device=expected.device)).int().argmax(1)


def _bytes_of_a_pair(model: Transformer, pairs: InterchangePairs, place: Place) -> int:
    """What the graph of one pair's loss holds, from above: activations of every layer, and as much again on the way."""
    length = max(pairs.base.shape[1], pairs.source.shape[1])
    layers = model.config.n_layers - (layer_of(place.site) or 0)
    return 2 * forward_bytes(model, length, layers)


def _check_pairs(fit: InterchangePairs, held_out: InterchangePairs) -> None:
    if fit.expected is None or held_out.expected is None:
        raise UserError("DAS needs pairs with expected answers, both to fit and to hold out.")
    known = {(*b, -1, *s) for b, s in zip(fit.base.tolist(), fit.source.tolist())}
    both = [(*b, -1, *s) in known for b, s in zip(held_out.base.tolist(), held_out.source.tolist())]
    if any(both):
        raise UserError(
            f"{sum(both)} of the {len(both)} held-out pairs are among the fitted ones (first: "
            f"{held_out.labels[both.index(True)]}); a score on them says nothing."
        )


def _dataset(
    found: dict[str, _Fitted], held_out: InterchangePairs, place: Place, training: Training, seed: int
) -> xarray.Dataset:
    import xarray

    real = found["das"].scores
    accuracy = [float(found[name].scores["interchange_accuracy"]) for name in FITTED]
    random, unchanged = real["random_accuracy"].values, float(real["unchanged_accuracy"])
    intervals = np.stack([found[name].scores["interchange_accuracy_interval"].values for name in FITTED], 1)
    rivals = [*accuracy[1:], float(random.max()), unchanged]
    share = {"units": "1"}
    return xarray.Dataset(
        {
            "interchange_accuracy": ("subspace", [*accuracy, float(random.mean())], share),
            "interchange_accuracy_interval": (
                ("bound", "subspace"),
                np.concatenate([intervals, np.full((2, 1), np.nan)], 1),
                share,
            ),
            "random_accuracy": ("draw", random, share),
            "unchanged_accuracy": ((), unchanged, share),
            "reached": ("prompt", real["reached"].values),
            "margin": ((), accuracy[0] - max(rivals), share),
            "fit_accuracy": ("fitted", [found[name].fit_accuracy for name in FITTED], share),
            "loss": (("fitted", "step"), np.stack([found[n].losses.numpy() for n in FITTED]), {"units": "nats"}),
            "basis": (
                ("fitted", "unit", "direction"),
                np.stack([found[name].basis.double().numpy() for name in FITTED]),
                share,
            ),
        },
        coords={
            "subspace": [*FITTED, "random"],
            "fitted": list(FITTED),
            "bound": ["low", "high"],
            "prompt": list(held_out.labels),
        },
        attrs=real.attrs | {"method": "distributed alignment search"} | asdict(training) | {"seed": seed},
    )
