"""`headwork lens`: what the network would say if it stopped at each layer, by the logit lens or a tuned one."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from headwork.analyses.published import Published, publish_analysis
from headwork.analyses.setting import Setting, both_runs, mean, plain, prompts_described
from headwork.draw import Picture, Series, curves, heatmap
from headwork.draw.style import token_text
from headwork.errors import UserError
from headwork.methods.logit_lens import logit_lens
from headwork.methods.translators import Translators, load_translators, save_translators
from headwork.methods.tuned_lens import train_tuned_lens, tuned_lens
from headwork.model.transformer import Transformer
from headwork.store.publish import require_folder
from headwork.tasks.prompt_pairs import PromptPairs
from headwork.tasks.task_prompts import TaskPrompts

if TYPE_CHECKING:
    import xarray

NAME = "lens"
_SHOWN = 10
"""Positions of the example that fit side by side with a word in each."""
_TRAINING_PROMPTS = 512


@dataclass(frozen=True, kw_only=True)
class Lensing:
    """`tuned` names a folder of translators to read; `train_tuned` one to train on the discovery prompts and write."""

    tuned: Path | None = None
    train_tuned: Path | None = None
    steps: int = 250

    def __post_init__(self) -> None:
        if self.tuned is not None and self.train_tuned is not None:
            raise UserError("--tuned and --train-tuned were given; a tuned lens is read or trained, not both.")
        if self.steps < 1:
            raise UserError(f"--steps is {self.steps}; training takes at least one step.")
        if self.train_tuned is not None:
            if self.train_tuned.exists():
                raise UserError(f"{self.train_tuned} is there already; choose another folder or remove it.")
            require_folder(self.train_tuned.expanduser().absolute())

    def options(self) -> dict[str, object]:
        """As options of the command line, the defaults left out."""
        return {
            "tuned": self.tuned,
            "train-tuned": self.train_tuned,
            "steps": None if self.steps == 250 else self.steps,
        }


def lens(setting: Setting, asked: Lensing) -> Published:
    """Read every layer, draw one example and the means, and publish.

    Prompts are held-out ones, since a tuned lens is trained on discovery ones; a pair that the user gives stands for
    itself. Raises `UserError`, before any long work, for what does not exist or fit.
    """
    started = time.perf_counter()
    out = setting.folder(NAME)
    model = setting.network()
    prompts = setting.source.build(model, "held-out" if setting.source.splits else "discovery")
    pairs = prompts.pairs.on(model)
    at_once = _prompts_at_once(setting, model, *pairs.clean.shape)
    clean, corrupt = both_runs(model, prompts)
    translators = _translators(setting, model, asked)
    targets = _targets(model, prompts)
    setting.progress("reading the layers", 0.8)
    found = {"logit_lens": _in_parts(logit_lens, model, pairs, targets, at_once)}
    if translators is not None:
        through = functools.partial(_tuned, translators=translators)
        found["tuned_lens"] = _in_parts(through, model, pairs, targets, at_once)
    setting.progress("drawing", 0.9)
    pictures = {"example": _example(model, prompts, found)} | _by_layer(prompts, found)
    summary = setting.described(NAME, model, asked.options())
    summary |= {
        "prompts": prompts_described(prompts, clean, corrupt),
        "target": _target_words(prompts),
        "layers": {name: _layers(prompts, data) for name, data in found.items()},
        "training": None if translators is None else dict(translators.training),
        "next": _next(setting, asked),
        "seconds": round(time.perf_counter() - started, 3),
    }
    if translators is not None and asked.train_tuned is not None:
        save_translators(translators, asked.train_tuned)
    return publish_analysis(out, found, pictures, summary)


def _prompts_at_once(setting: Setting, model: Transformer, n: int, length: int) -> int:
    """How many prompts fit the limit, by an estimate from above: one pass, its streams, and five rows of logits."""
    if setting.memory is None:
        return n
    c = model.config
    one_pass = 8 * c.d_model + 6 * c.n_heads * c.d_head + 5 * c.n_heads * length + 3 * c.d_mlp
    numbers = length * ((c.n_layers + 1) * c.d_model + one_pass + 5 * c.outputs)
    each = numbers * model.embed.weight.element_size()
    if setting.memory < each:
        raise UserError(
            f"The lens on one prompt of {length} tokens needs about {each / 1e6:,.1f} MB beside the weights; the limit "
            f"is {setting.memory / 1e6:,.1f} MB."
        )
    return min(n, setting.memory // each)


def _in_parts(
    read: Callable[..., xarray.Dataset],
    model: Transformer,
    pairs: PromptPairs,
    targets: Int[Tensor, "batch pos"] | None,
    at_once: int,
) -> xarray.Dataset:
    """What a lens reads on the clean prompts, so many at once."""
    import xarray

    found: list[xarray.Dataset] = []
    for first in range(0, len(pairs.clean), at_once):
        rows = slice(first, first + at_once)
        sought = None if targets is None else targets[rows]
        found.append(read(model, pairs.clean[rows], targets=sought, labels=pairs.labels[rows]))
    return xarray.concat(found, "prompt", data_vars="minimal", combine_attrs="override")


def _tuned(model: Transformer, tokens: Tensor, *, translators: Translators, **options: Any) -> xarray.Dataset:
    return tuned_lens(model, tokens, translators, **options)


def _translators(setting: Setting, model: Transformer, asked: Lensing) -> Translators | None:
    if asked.tuned is not None:
        return load_translators(asked.tuned, model)
    if asked.train_tuned is None:
        return None
    if not setting.source.splits:
        raise UserError("A tuned lens is trained on many prompts; take a task or a file instead of one pair.")
    wanted = max(setting.source.prompts, _TRAINING_PROMPTS)
    training = dataclasses.replace(setting.source, prompts=wanted).build(model)
    done = 0

    def report(count: int) -> None:
        nonlocal done
        done += count
        setting.progress("training the lens", 0.8 * done / asked.steps)

    return train_tuned_lens(
        model,
        training.pairs.clean,
        steps=asked.steps,
        seed=setting.source.seed,
        memory=setting.memory,
        progress=report,
    )


def _targets(model: Transformer, prompts: TaskPrompts) -> Int[Tensor, "batch pos"] | None:
    """The next token everywhere, and the answer where it is read; None, the network's own choice, without answers."""
    if prompts.answers is None:
        return None
    targets = prompts.pairs.clean.roll(-1, 1).clone()
    targets[torch.arange(len(prompts)), prompts.positions.cpu()] = prompts.answers.to(targets)
    return targets.to(model.device)


def _target_words(prompts: TaskPrompts) -> str:
    return "the network's own answer" if prompts.answers is None else "the answer"


def _read(prompts: TaskPrompts, data: xarray.DataArray) -> np.ndarray:
    """The values [site, prompt] where each prompt's answer is read."""
    values = data.transpose("site", "position", "prompt").values
    return values[:, prompts.positions.cpu().numpy(), np.arange(len(prompts))]


def _layers(prompts: TaskPrompts, data: xarray.Dataset) -> list[dict[str, Any]]:
    kl, rank, logprob = (_read(prompts, data[name]) for name in ("kl", "rank", "target_logprob"))
    return [
        {
            "site": str(site),
            "layer": int(data["layer"].values[i]),
            "kl": plain(mean(kl[i], prompts)),
            "logprob": plain(mean(logprob[i], prompts)),
            "median_rank": float(np.median(rank[i])),
            "first": float((rank[i] == 0).mean()),
        }
        for i, site in enumerate(data["site"].values)
    ]


def _example(model: Transformer, prompts: TaskPrompts, found: dict[str, xarray.Dataset]) -> Picture:
    """The last positions of the first prompt, by the best lens there is: the most likely token, and how far it is."""
    name, data = list(found.items())[-1]
    data = data.transpose("site", "position", "prompt")
    tokens = prompts.pairs.clean[0].tolist()
    last = int(prompts.positions[0]) + 1
    shown = range(max(0, last - _SHOWN), last)
    order = range(data.sizes["site"] - 1, -1, -1)
    top, kl = data["top"].values[..., 0], data["kl"].values[..., 0]
    words = [_words(model, [int(top[i, p]) for p in shown]) for i in order]
    rows = ["output" if site.endswith("resid_post") else f"before layer {n}" for site, n in _sites(data)]
    title = f"{name.replace('_', ' ')} on prompt {data['prompt'].values[0]} of {prompts.task}"
    return heatmap(
        [[kl[i, p] for p in shown] for i in order],
        rows=[rows[i] for i in order],
        columns=_words(model, [tokens[p] for p in shown]),
        column_label="read after token",
        value_label="KL from the output, nats",
        words=words,
        title=title,
        alt=(
            f"{title}: the most likely next token at the last {len(shown)} positions, by layer from the output down. "
            f"At the answer's position the output says {words[0][-1]}, layer 0 says {words[-1][-1]}."
        ),
    )


def _sites(data: xarray.Dataset) -> list[tuple[str, int]]:
    return [(str(site), int(n)) for site, n in zip(data["site"].values, data["layer"].values)]


def _words(model: Transformer, tokens: list[int]) -> list[str]:
    if model.tokenizer_source is None:
        return [str(t) for t in tokens]
    return [token_text(piece) for piece in model.tokenizer.pieces(tokens)]


def _by_layer(prompts: TaskPrompts, found: dict[str, xarray.Dataset]) -> dict[str, Picture]:
    """Means over prompts at the answer's position: the distance from the output, and the target's log-probability."""
    n = len(prompts)
    basis = f"mean of {n} prompts, 95 %" if n > 1 else "one prompt"
    shown = {
        "kl": ("kl", "KL from the output, nats", "how far each layer's reading is from the network's output"),
        "answer": (
            "target_logprob",
            f"log-probability of {_target_words(prompts)}, nats",
            f"when {_target_words(prompts)} becomes likely",
        ),
    }
    return {
        name: _curves(prompts, found, variable, f"{label} ({basis})", title)
        for name, (variable, label, title) in shown.items()
    }


def _curves(prompts: TaskPrompts, found: dict[str, xarray.Dataset], variable: str, label: str, title: str) -> Picture:
    series = []
    for name, data in found.items():
        values = _read(prompts, data[variable])
        means = [mean(row, prompts) for row in values]
        middle = [np.nan if m.value is None else m.value for m in means]
        low, high = ([np.nan if e is None else e for e in ends] for ends in zip(*((m.low, m.high) for m in means)))
        edges = (None, None) if np.isnan(low).all() else (low, high)
        series.append(Series(name.replace("_", " "), data["layer"].values, middle, *edges))
    ends = ", ".join(f"{s.name} from {s.y[0]:.2f} to {s.y[-1]:.2f}" for s in series)  # type: ignore[index]
    return curves(
        series,
        x_label="blocks before the reading",
        y_label=label,
        title=f"{prompts.task}: {title}",
        alt=f"{title.capitalize()}, by layer, at the answer's position: {ends}.",
        x_whole=True,
        width_cm=11.0,
        height_cm=5.5,
    )


def _next(setting: Setting, asked: Lensing) -> str:
    if asked.tuned is None and asked.train_tuned is None and setting.source.splits:
        return setting.command(NAME, {"train-tuned": "tuned-lens"})
    return setting.command("patch", {"site": "resid_pre"})
