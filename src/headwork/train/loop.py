"""The training loop: deterministic given recipe and seed, and continued after a kill from its last checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load, save
from torch import Tensor

from headwork.errors import UserError
from headwork.model.initialise import initialise
from headwork.model.transformer import Transformer
from headwork.store.atomic import write_file
from headwork.tasks.repeated_sequences import RepeatedBatch
from headwork.train.recipe import Recipe, derived_seed

CHECKPOINT_EVERY = 250
CURVE_EVERY = 50


class Diverged(Exception):
    """The loss stopped being finite; `step` says when."""

    def __init__(self, step: int) -> None:
        super().__init__(f"The loss is not finite at step {step}.")
        self.step = step


@dataclass
class Training:
    """The state of one training run: what a checkpoint holds."""

    recipe: Recipe
    seed: int
    model: Transformer
    optimizer: torch.optim.AdamW
    data: torch.Generator
    step: int = 0
    curve: list[tuple[int, float]] = field(default_factory=list)

    @classmethod
    def fresh(cls, recipe: Recipe, seed: int, device: str = "cpu") -> Training:
        """The state before the first step."""
        recipe.check_seed(seed)
        model = initialise(recipe.architecture, derived_seed(seed, "weights"), recipe.weights_std).to(device).train()
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, betas=recipe.betas
        )
        data = torch.Generator().manual_seed(derived_seed(seed, "data"))
        return cls(recipe, seed, model, optimizer, data)

    def advance(self) -> float:
        """One step; the loss in nats per token before it. Raises `Diverged`."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * rate(self.step, self.recipe)
        batch = self.recipe.data.sample(self.recipe.batch, self.data)
        loss = next_token_loss(self.model, batch)
        if not math.isfinite(loss.item()):
            raise Diverged(self.step)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.step % CURVE_EVERY == 0:
            self.curve.append((self.step, loss.item()))
        self.step += 1
        return loss.item()

    def to_bytes(self) -> bytes:
        """The checkpoint, as safetensors."""
        tensors = {f"model.{name}": p.detach() for name, p in self.model.named_parameters()}
        for name, parameter in self.model.named_parameters():
            state = self.optimizer.state[parameter]
            tensors |= {f"adam.{part}.{name}": state[part].contiguous() for part in ("exp_avg", "exp_avg_sq", "step")}
        tensors["data"] = self.data.get_state()
        tensors["curve"] = torch.tensor(self.curve, dtype=torch.float64).view(-1, 2)
        return save(tensors, {"step": str(self.step), "seed": str(self.seed), "settings": _fingerprint(self.recipe)})

    def restore(self, blob: bytes, metadata: dict[str, str]) -> None:
        """Go on from a checkpoint of the same recipe and seed; KeyError, ValueError, RuntimeError for a damaged one."""
        tensors = load(blob)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(tensors[f"model.{name}"])
                self.optimizer.state[parameter] = {
                    part: tensors[f"adam.{part}.{name}"].to("cpu" if part == "step" else parameter.device)
                    for part in ("exp_avg", "exp_avg_sq", "step")
                }
        self.data.set_state(tensors["data"])
        self.curve = [(int(step), loss) for step, loss in tensors["curve"].tolist()]
        self.step = int(metadata["step"])


def train(
    recipe: Recipe,
    seed: int,
    *,
    device: str = "cpu",
    checkpoint: Path | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> Training:
    """Train to the end of the recipe, from `checkpoint` if it holds an unfinished run of this recipe and seed.

    The checkpoint is replaced every 250 steps and a killed run continues from it with the same result as an unbroken
    one. `progress` is called with the step and the loss. Raises `Diverged`, and `UserError` for a checkpoint of another
    run.
    """
    flushed_before = _flushes_denormals()
    torch.set_flush_denormal(True)
    try:
        state = Training.fresh(recipe, seed, device)
        if checkpoint is not None and checkpoint.exists():
            _restore(state, checkpoint)
        while state.step < recipe.steps:
            loss = state.advance()
            if progress is not None:
                progress(state.step, loss)
            if checkpoint is not None and (state.step % CHECKPOINT_EVERY == 0 or state.step == recipe.steps):
                write_file(checkpoint, state.to_bytes())
    finally:
        torch.set_flush_denormal(flushed_before)
    if not all(bool(parameter.isfinite().all()) for parameter in state.model.parameters()):
        raise Diverged(state.step)  # in the last step, after which no loss is computed
    state.model.eval()
    return state


def next_token_loss(model: Transformer, batch: RepeatedBatch) -> Tensor:
    """Mean cross-entropy in nats over all positions that have a next token."""
    tokens = batch.tokens.to(model.device)
    logits = model(tokens)[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def rate(step: int, recipe: Recipe) -> float:
    """The share of the learning rate at a step: linear warm-up times a cosine that ends at zero."""
    return min(1.0, (step + 1) / recipe.warmup) * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))


def _fingerprint(recipe: Recipe) -> str:
    return repr(sorted(recipe.settings().items()))


def _flushes_denormals() -> bool:
    """Whether this thread takes numbers too small for full precision as zero; torch can set this, but not say it."""
    return not bool(torch.tensor(1e-310, dtype=torch.float64) * 1.0)


def _restore(state: Training, checkpoint: Path) -> None:
    recipe, seed = state.recipe, state.seed
    try:
        blob = checkpoint.read_bytes()
        with safetensors.safe_open(checkpoint, "pt") as opened:
            metadata = opened.metadata() or {}
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"The checkpoint {checkpoint} cannot be read ({error}); remove it to start anew.") from None
    if metadata.get("settings") != _fingerprint(recipe) or metadata.get("seed") != str(seed):
        raise UserError(
            f"The checkpoint {checkpoint} is of another recipe or seed than {recipe.name} with seed {seed}; "
            "remove it or choose another --out."
        )
    try:
        state.restore(blob, metadata)
    except (KeyError, ValueError, RuntimeError) as error:
        raise UserError(f"The checkpoint {checkpoint} is damaged ({error}); remove it to start anew.") from None
