"""Linear fits, many at once: softmax regression by L-BFGS, ridge regression in closed form, and which units to use.

A problem is one set of targets on the same examples. Problems are solved side by side, each with its own curvature and
step lengths, so that none depends on which others it is solved with. Everything is in float64.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

Objective = Callable[[Float[Tensor, "p m"]], tuple[Float[Tensor, " p"], Float[Tensor, "p m"]]]

_HISTORY, _STEPS, _HALVINGS, _TOLERANCE = 10, 300, 30, 1e-7
_PATH, _PATH_STEPS = 25, 60


def fit_classes(
    x: Float[Tensor, "#p n d"], y: Int[Tensor, "p n"], classes: int, penalty: float
) -> Float[Tensor, "p d_and_1 classes"]:
    """Weights, the intercepts last, that minimise mean cross-entropy + penalty/2 · Σ weights² (intercepts are free)."""
    problems, (count, width) = len(y), x.shape[1:]
    wanted = torch.nn.functional.one_hot(y, classes).to(x)
    shape = (problems, width + 1, classes)

    def objective(flat: Float[Tensor, "p m"]) -> tuple[Float[Tensor, " p"], Float[Tensor, "p m"]]:
        weights = flat.view(shape)
        logs = (x @ weights[:, :-1] + weights[:, -1:]).log_softmax(-1)
        loss = -(wanted * logs).sum((1, 2)) / count + penalty / 2 * weights[:, :-1].square().sum((1, 2))
        slope = (logs.exp() - wanted) / count
        inner = x.transpose(1, 2) @ slope + penalty * weights[:, :-1]
        return loss, torch.cat([inner, slope.sum(1, keepdim=True)], 1).flatten(1)

    return minimise(objective, x.new_zeros(problems, (width + 1) * classes)).view(shape)


def fit_numbers(x: Float[Tensor, "#p n d"], y: Float[Tensor, "p n"], penalty: float) -> Float[Tensor, "p d_and_1 one"]:
    """Weights, the intercept last, that minimise mean squared error + penalty · Σ weights² (the intercept is free)."""
    count, width = x.shape[1:]
    centre, mean = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
    centred = x - centre
    gram = centred.transpose(1, 2) @ centred / count + penalty * torch.eye(width, dtype=x.dtype, device=x.device)
    weights = torch.linalg.solve(gram, centred.transpose(1, 2) @ (y - mean)[..., None] / count)
    return torch.cat([weights, mean[..., None] - centre @ weights], 1)


def minimise(objective: Objective, start: Float[Tensor, "p m"]) -> Float[Tensor, "p m"]:
    """The minima of smooth convex functions by limited-memory BFGS with backtracking (Nocedal & Wright 2006, §7.2).

    A problem whose gradient is below 1e-7 everywhere, or that no step improves, stays where it is.
    """
    point = start
    loss, slope = objective(point)
    moves: list[tuple[Tensor, Tensor, Tensor]] = []
    scale = 1 / slope.abs().sum(1, keepdim=True).clamp(min=1.0)
    stuck = torch.zeros(len(point), dtype=torch.bool, device=point.device)
    for _ in range(_STEPS):
        done = stuck | (slope.abs().amax(1) <= _TOLERANCE)
        if bool(done.all()):
            break
        step = _towards_the_minimum(slope, moves, scale)
        fall = (step * slope).sum(1, keepdim=True)
        step = torch.where(fall < 0, step, -slope)
        fall = torch.where(fall < 0, fall, -slope.square().sum(1, keepdim=True))
        step, fall = step.masked_fill(done[:, None], 0), fall.masked_fill(done[:, None], 0)
        new, new_loss, new_slope = objective_along(objective, point, loss, step, fall)
        moved, turned = new - point, new_slope - slope
        curvature = (moved * turned).sum(1, keepdim=True)
        curved = curvature > 1e-12 * turned.square().sum(1, keepdim=True)
        moves.append((moved, turned, torch.where(curved, 1 / curvature.where(curved, 1.0), 0.0)))
        del moves[:-_HISTORY]
        size = turned.square().sum(1, keepdim=True)
        scale = torch.where(curved, curvature / size.where(curved, 1.0), scale)
        stuck = ~done & (new == point).all(1) | stuck
        point, loss, slope = new, new_loss, new_slope
    return point


def _towards_the_minimum(
    slope: Float[Tensor, "p m"], moves: list[tuple[Tensor, Tensor, Tensor]], scale: Float[Tensor, "p one"]
) -> Float[Tensor, "p m"]:
    """−(inverse Hessian, as past moves show it) · slope, by the two-loop recursion."""
    rest, used = slope, []
    for moved, turned, inverse in reversed(moves):
        share = inverse * (moved * rest).sum(1, keepdim=True)
        rest = rest - share * turned
        used.append(share)
    rest = scale * rest
    for (moved, turned, inverse), share in zip(moves, reversed(used)):
        rest = rest + (share - inverse * (turned * rest).sum(1, keepdim=True)) * moved
    return -rest


def objective_along(
    objective: Objective,
    point: Float[Tensor, "p m"],
    loss: Float[Tensor, " p"],
    step: Float[Tensor, "p m"],
    fall: Float[Tensor, "p one"],
) -> tuple[Float[Tensor, "p m"], Float[Tensor, " p"], Float[Tensor, "p m"]]:
    """The first of step, step/2, step/4 … at which each loss falls enough; where none does, the point itself."""
    length = torch.ones_like(fall)
    new = point + step
    new_loss, slope = objective(new)
    for left in reversed(range(_HALVINGS)):
        enough = (new_loss <= loss + 1e-4 * (length * fall)[:, 0])[:, None]
        if bool(enough.all()):
            break
        # After the last halving a problem without an improvement stays where it is.
        length = torch.where(enough, length, length / 2 if left else 0.0)
        new = point + length * step
        new_loss, slope = objective(new)
    return new, new_loss, slope


def informative_units(x: Float[Tensor, "n d"], targets: Float[Tensor, "p n target"]) -> Float[Tensor, "p d"]:
    """Share of each unit's variance that the targets explain: for a number, the squared correlation with it.

    For classes (`targets` one-hot) it is the variance between their means; of two classes, the squared difference.
    """
    centred = x - x.mean(0)
    variance = centred.square().mean(0)
    if targets.shape[-1] == 1:
        away = targets[..., 0] - targets[..., 0].mean(1, keepdim=True)
        between = (away @ centred / len(x)).square() / away.square().mean(1, keepdim=True).clamp(min=1e-300)
    else:
        counts = targets.sum(1)
        means = targets.transpose(1, 2) @ centred / counts.clamp(min=1)[..., None]
        between = (counts[..., None] / len(x) * means.square()).sum(1)
    return torch.where(variance > 0, between / variance.where(variance > 0, 1.0), 0.0)


def lasso_units(x: Float[Tensor, "n d"], targets: Float[Tensor, "p n target"]) -> Float[Tensor, "p d"]:
    """How early each unit enters the L1 path of a regression on all units; higher is earlier.

    The penalty falls geometrically from where all weights are zero; at each value accelerated proximal gradient steps
    (Beck & Teboulle 2009) start from the last solution. A unit's weights for all classes enter together (group lasso).
    The loss is cross-entropy for classes and squared error for a number.
    """
    spread = x.std(0, correction=0)
    z = torch.where(spread > 0, (x - x.mean(0)) / spread.where(spread > 0, 1.0), 0.0)
    count, number = len(x), targets.shape[-1] == 1
    if number:
        targets = targets - targets.mean(1, keepdim=True)

    def slope(weights: Tensor) -> Tensor:
        found = z @ weights
        # Centred targets stand for an intercept; in the softmax it is held at the classes' shares.
        apart = found - targets if number else (found + offsets).softmax(-1) - targets
        return z.T @ apart / count

    offsets = 0 if number else targets.mean(1, keepdim=True).clamp(min=1e-9).log()
    steepness = torch.linalg.matrix_norm(z, 2).square() / count * (1 if number else 0.5)
    weights = z.new_zeros(len(targets), x.shape[1], targets.shape[-1])
    top = slope(weights).norm(dim=-1).amax(1).view(-1, 1, 1)
    score = z.new_zeros(len(targets), x.shape[1])
    for place in range(_PATH):
        limit = top * 0.01 ** ((place + 1) / _PATH) / steepness
        ahead, pace = weights, 1.0
        for _ in range(_PATH_STEPS):
            moved = ahead - slope(ahead) / steepness
            size = moved.norm(dim=-1, keepdim=True)
            new = moved * (1 - limit / size.clamp(min=1e-300)).clamp(min=0)
            following = (1 + (1 + 4 * pace**2) ** 0.5) / 2
            ahead = new + (pace - 1) / following * (new - weights)
            weights, pace = new, following
        norm = weights.norm(dim=-1)
        # Units that enter at the same penalty are ordered by their weight.
        score = torch.where((score == 0) & (norm > 0), _PATH - place + norm / (1 + norm), score)
    return score
