"""What a network for modular addition does with every pair of numbers: logits, neurons and attention over all p².

The whole domain is computed, so what is measured on it has no interval. Where the network was trained to subtract, the
second number's axis runs over −b: the network then adds, and everything said of a + b holds.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from headwork.engine.run import run
from headwork.errors import UserError
from headwork.model.transformer import Transformer
from headwork.tasks.examples import every_pair
from headwork.tasks.modular_addition import ModularAddition
from headwork.tasks.published import task_of

PAIRS_AT_ONCE = 4096

Table = Float[Tensor, "first second answer"]


@dataclass(frozen=True, eq=False)
class PairActivations:
    """Activations at the position where the answer is read, for every a (`first`) and b (`second`).

    `logits` are those of the p answers. `pattern` is each head's attention from that position. `neurons` is None in a
    network without MLPs; both are of `layer`.
    """

    task: ModularAddition
    layer: int
    logits: Float[Tensor, "first second answer"]
    neurons: Float[Tensor, "first second neuron"] | None
    pattern: Float[Tensor, "first second head key"]


def addition_of(model: Transformer, task: ModularAddition | None = None) -> ModularAddition:
    """The task, as given or as the network's card describes it, checked against the network's vocabulary and outputs.

    Raises `UserError` where the card describes another task or none, or the network cannot be run on it.
    """
    if task is None:
        found = task_of(None if model.card is None else model.card.data)
        if not isinstance(found, ModularAddition):
            raise UserError(
                f"The network was trained for {found.GENERATOR}; this needs one for {ModularAddition.GENERATOR}, or "
                "give its modulus and tokens with task=ModularAddition(…)."
            )
        task = found
    config, p = model.config, task.modulus
    if p < 3:
        raise UserError(f"The modulus is {p}; frequencies need one of 3 or more.")
    tokens = 1 + max(p - 1 + task.second, -1 if task.equals is None else task.equals)
    length = 2 + (task.equals is not None)
    for what, has, needs in (
        ("tokens", config.d_vocab, tokens),
        ("outputs", config.outputs, p),
        ("positions", config.n_ctx, length),
    ):
        if has < needs:
            raise UserError(f"The network has {has} {what}; addition modulo {p} as described needs {needs} or more.")
    return task


def adding_pairs(task: ModularAddition) -> Int[Tensor, "pair 2"]:
    """All pairs of numbers (a, b), b running fastest; where the network subtracts, the second number is −b."""
    pairs = every_pair(task.modulus)
    if task.subtract:
        pairs[:, 1] = -pairs[:, 1] % task.modulus
    return pairs


def pair_activations(
    model: Transformer, task: ModularAddition | None = None, *, layer: int | None = None
) -> PairActivations:
    """Run the network on all p² pairs; `layer` (the last where it is None) is that of the neurons and the attention.

    Memory is p² · (p + d_mlp + heads · positions) numbers of the network's own precision. Raises `UserError` for a
    network that does not add, a layer that does not exist, and logits that are not finite.
    """
    task = addition_of(model, task)
    config, p = model.config, task.modulus
    if not config.n_layers:
        raise UserError("The network has no layers, so it has neither attention nor neurons to look at.")
    layer = config.n_layers - 1 if layer is None else layer
    if not 0 <= layer < config.n_layers:
        raise UserError(f"The network has layers 0–{config.n_layers - 1}; layer {layer} does not exist.")
    pattern_site, neuron_site = f"blocks.{layer}.attn.pattern", f"blocks.{layer}.mlp.post"
    kept = [pattern_site] if config.attention_only else [pattern_site, neuron_site]
    examples = task.of(adding_pairs(task))
    at, logits, neurons, pattern = examples.read[0], [], [], []
    for part in examples.tokens.split(PAIRS_AT_ONCE):
        found = run(model, part, kept)
        logits.append(found.logits[:, at, :p].cpu())
        pattern.append(found[pattern_site][:, :, at].cpu())
        if not config.attention_only:
            neurons.append(found[neuron_site][:, at].cpu())
    every = checked_table(torch.cat(logits).unflatten(0, (p, p)))
    post = torch.cat(neurons).unflatten(0, (p, p)) if neurons else None
    return PairActivations(task, layer, every, post, torch.cat(pattern).unflatten(0, (p, p)))


def checked_table(logits: Table) -> Table:
    """Logits of p answers for p × p pairs. Raises `UserError` for other shapes, p < 3 and what is not finite."""
    shape = list(logits.shape)
    if len(shape) != 3 or len(set(shape)) > 1 or shape[0] < 3:
        raise UserError(f"The logits have shape {shape}; needed is [p, p, p] for every a, b and answer, p 3 or more.")
    if not logits.isfinite().all():
        wrong = (~logits.isfinite()).nonzero()[0].tolist()
        raise UserError(f"The logit of {wrong[2]} for the numbers {wrong[0]} and {wrong[1]} is not finite.")
    return logits


def right_answers(p: int) -> Int[Tensor, "first second"]:
    """(a + b) mod p."""
    numbers = torch.arange(p)
    return (numbers[:, None] + numbers) % p


def distances(p: int) -> Int[Tensor, "first second"]:
    """(a − b) mod p."""
    numbers = torch.arange(p)
    return (numbers[:, None] - numbers) % p


def renamed(values: Float[Tensor, "first second n"], generator: torch.Generator) -> Float[Tensor, "first second n"]:
    """The same network with its numbers renamed at random, a and b alike: all that it does but its arithmetic."""
    order = torch.randperm(len(values), generator=generator)
    return values[order][:, order]


def shuffled_split(p: int, fraction: float, seed: int) -> Bool[Tensor, "first second"]:
    """The pairs that Nanda's code trains on: all pairs in order, shuffled by Python's `random`, the first `fraction`.

    Raises `UserError` for a fraction that is not between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise UserError(f"fraction = {fraction}; it must lie between 0 and 1.")
    places = list(range(p * p))
    random.Random(seed).shuffle(places)  # noqa: S311 – the authors' draw
    train = torch.zeros(p * p, dtype=torch.bool)
    train[places[: int(fraction * len(places))]] = True
    return train.view(p, p)


def recorded_split(model: Transformer, logits: Table) -> Bool[Tensor, "first second"] | None:
    """The pairs that one of Nanda's networks was trained on, if its card tells how they were drawn and that is true.

    The card must hold `seed`, `frac_train` and the last training loss; the split is given only where the loss on it is
    within 1 % of the recorded one, so that another network's split is never taken for its own. None otherwise.
    """
    stated, p = {} if model.card is None else model.card.training, len(logits)
    seed, fraction, loss = (stated.get(key) for key in ("seed", "frac_train", "loss"))
    if not isinstance(seed, int) or not isinstance(fraction, float) or not isinstance(loss, float):
        return None
    train = shuffled_split(p, fraction, seed)
    found = functional.cross_entropy(logits.double()[train], right_answers(p)[train]).item()
    return train if abs(found - loss) < 0.01 * loss else None


def as_mask(train: Bool[Tensor, "first second"] | None, p: int) -> Bool[Tensor, "first second"] | None:
    """Which pairs were trained on, checked. Raises `UserError` for another shape or type, and where it holds none."""
    if train is None:
        return None
    if train.shape != (p, p) or train.dtype != torch.bool:
        raise UserError(f"train has shape {list(train.shape)} and type {train.dtype}; needed is bool [{p}, {p}].")
    if not train.any():
        raise UserError("train marks no pair.")
    return train
