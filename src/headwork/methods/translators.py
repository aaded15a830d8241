"""The affine translators of a tuned lens (Belrose et al. 2023): what they are, for which network, and on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save as to_bytes
from torch import Tensor

from headwork.errors import UserError, unknown
from headwork.model.checkpoints import TIED, check_tensor, read_safetensors
from headwork.model.config import TransformerConfig
from headwork.model.files import read_json, sha256_of
from headwork.model.transformer import Transformer
from headwork.store.atomic import write_file, write_folder

RECORD = "tuned_lens.json"
TENSORS = "translators.safetensors"
FORMAT = 1
_KINDS: dict[str, type] = {"format": int, "network": dict, "sites": list, "training": dict, "translators_sha256": str}


@dataclass(frozen=True)
class Network:
    """Which network translators are for; `weights_sha256` is over the weights themselves, as float32."""

    name: str
    weights_sha256: str
    architecture: TransformerConfig

    @classmethod
    def of(cls, model: Transformer) -> Network:
        """The identity of a network as it is now, edits of its weights included."""
        digest = hashlib.sha256()
        for name, tensor in sorted(model.state_dict().items()):
            if name != TIED or not model.config.tied:
                digest.update(f"{name} {list(tensor.shape)}\n".encode())
                digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
        return cls("unnamed" if model.card is None else model.card.name, digest.hexdigest(), model.config)

    def require(self, model: Transformer) -> None:
        """Raise `UserError` unless this is the network, with these weights, whatever it is called."""
        found = Network.of(model)
        if dataclasses.replace(found, name=self.name) != self:
            what = "set of weights is" if found.architecture == self.architecture else "architecture is"
            raise UserError(
                f"The translators are for the network {self.name!r}, whose {what} not that of the network given, "
                f"{found.name!r}; train a tuned lens for it."
            )


@dataclass(frozen=True, eq=False)
class Translators:
    """One affine map for each stream: x ↦ x + x · weight + bias, so that zeros are the identity.

    `sites` are the streams before each block; the final stream has no translator. `loss` [step, site] is the training's
    KL in nats on the prompts of each step, before it; `training` is plain data that says how they were trained.
    """

    sites: tuple[str, ...]
    weight: Float[Tensor, "site d_model d_model"]
    bias: Float[Tensor, "site d_model"]
    loss: Float[Tensor, "step site"]
    network: Network
    training: Mapping[str, Any]

    def apply(self, index: int, stream: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows d_model"]:
        """What the network would hold at its end, as the translator of one site sees it."""
        return translated(stream, self.weight[index], self.bias[index])

    def on(self, device: torch.device) -> Translators:
        """The same translators on another device."""
        moved = {name: getattr(self, name).to(device) for name in ("weight", "bias", "loss")}
        return dataclasses.replace(self, **moved)


def translated(
    stream: Float[Tensor, "rows d_model"], weight: Float[Tensor, "d_model d_model"], bias: Float[Tensor, " d_model"]
) -> Float[Tensor, "rows d_model"]:
    """x + x · weight + bias in the translator's precision, which is never below float32; returned in the stream's."""
    wide = stream.to(weight.dtype)
    return (wide + (wide @ weight + bias)).to(stream.dtype)


def translated_sites(config: TransformerConfig) -> tuple[str, ...]:
    """The streams that have a translator. Raises `UserError` for a network without layers."""
    if not config.n_layers:
        raise UserError("This network has no layers: its embeddings already are what it predicts from.")
    return tuple(f"blocks.{layer}.resid_pre" for layer in range(config.n_layers))


def identity_translators(model: Transformer) -> Translators:
    """Translators that change nothing: with them the tuned lens is the logit lens."""
    sites, width = translated_sites(model.config), model.config.d_model
    dtype = torch.promote_types(model.dtype, torch.float32)
    zeros = torch.zeros(len(sites), width, width + 1, dtype=dtype, device=model.device)
    loss = torch.zeros(0, len(sites), dtype=dtype, device=model.device)
    return Translators(sites, zeros[..., :-1], zeros[..., -1], loss, Network.of(model), {"steps": 0})


def save_translators(translators: Translators, folder: Path | str) -> Path:
    """Write translators to a new folder in one step and return its path.

    `translators.safetensors` holds `weight`, `bias` and `loss`, `tuned_lens.json` the rest. Raises `UserError` where
    the folder is there already or cannot be written.
    """
    folder = Path(folder)
    if folder.exists():
        raise UserError(f"{folder} is there already; choose another folder or remove it.")
    tensors = {name: getattr(translators, name).detach().cpu().contiguous() for name in ("weight", "bias", "loss")}
    content = to_bytes(tensors, metadata={"format": "pt"})
    network = translators.network
    record = {
        "format": FORMAT,
        "network": {
            "name": network.name,
            "weights_sha256": network.weights_sha256,
            "architecture": network.architecture.to_dict(),
        },
        "sites": list(translators.sites),
        "training": dict(translators.training),
        "translators_sha256": hashlib.sha256(content).hexdigest(),
    }
    with write_folder(folder) as temporary:
        write_file(temporary / TENSORS, content)
        write_file(temporary / RECORD, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    return folder


def load_translators(folder: Path | str, model: Transformer) -> Translators:
    """Read translators for this network, on its device.

    Raises `UserError` where a file is missing, damaged or not of this format, where entries are not finite or shapes do
    not fit, and where they were trained for another network.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder} with translators.")
    values = _record(folder / RECORD)
    sites = translated_sites(model.config)
    network = _network(values["network"], folder / RECORD)
    steps = values["training"].get("steps")
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 0:
        raise UserError(f"{folder / RECORD} has training steps = {steps!r}; it must be a whole number, 0 or more.")
    network.require(model)
    if tuple(values["sites"]) != sites:
        raise UserError(f"{folder / RECORD} has the sites {values['sites']}; this network's are {list(sites)}.")
    tensors = _tensors(folder / TENSORS, values["translators_sha256"])
    width = model.config.d_model
    shapes = {"weight": (len(sites), width, width), "bias": (len(sites), width), "loss": (steps, len(sites))}
    if set(tensors) != set(shapes):
        raise UserError(f"{folder / TENSORS} holds {sorted(tensors)}; it must hold {sorted(shapes)}.")
    for name, shape in shapes.items():
        check_tensor(name, tensors[name], shape, str(folder / TENSORS))
    return Translators(sites, tensors["weight"], tensors["bias"], tensors["loss"], network, values["training"]).on(
        model.device
    )


def _record(path: Path) -> dict[str, Any]:
    values = read_json(path)
    if "format" in values and values["format"] != FORMAT:
        raise UserError(f"{path} has format {values['format']!r}; this version of Headwork reads format {FORMAT}.")
    for key in values:
        if key not in _KINDS:
            raise unknown(f"key in {path}:", key, _KINDS)
    for key, kind in _KINDS.items():
        if key not in values:
            raise UserError(f"{path} lacks the key {key!r}.")
        if not isinstance(values[key], kind):
            names = {int: "number", str: "string", dict: "object", list: "list"}
            raise UserError(f"{path} has {key} = {values[key]!r}; it must be a JSON {names[kind]}.")
    return values


def _network(values: Mapping[str, Any], path: Path) -> Network:
    kinds = {"name": str, "weights_sha256": str, "architecture": dict}
    if set(values) != set(kinds) or any(not isinstance(values[key], kind) for key, kind in kinds.items()):
        raise UserError(f"{path} describes its network by {sorted(values)}; it must be by {', '.join(kinds)}.")
    try:
        architecture = TransformerConfig.from_dict(values["architecture"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return Network(values["name"], values["weights_sha256"], architecture)


def _tensors(path: Path, sha256: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"{path.parent} has no {path.name}.")
    found = read_safetensors(path)
    digest = sha256_of(path)
    if digest != sha256:
        raise UserError(f"{path} has the sha256 {digest}, but {RECORD} records {sha256}.")
    return found
