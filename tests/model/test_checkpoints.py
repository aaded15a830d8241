"""Model folders: what is saved comes back bit for bit, and what is damaged is refused in one sentence."""

from __future__ import annotations

import errno
import json
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load as from_bytes
from safetensors.torch import save_file
from tests.architectures import ARCHITECTURES, network, prompts

from headwork.errors import UserError
from headwork.model import checkpoints
from headwork.model.card import ModelCard
from headwork.model.checkpoints import load, save
from headwork.model.config import TransformerConfig
from headwork.model.files import sha256_of
from headwork.model.folder import read_card
from headwork.model.initialise import initialise

CARD = ModelCard(
    name="small",
    training={"recipe": "none", "seed": 0},
    data={"generator": "repeated-sequences", "segment": [2, 4]},
    inferred=("activation = relu: the file does not say",),
)

configs = st.builds(
    TransformerConfig,
    n_layers=st.integers(0, 2),
    d_model=st.integers(1, 6),
    n_heads=st.sampled_from([2, 4]),
    n_kv_heads=st.sampled_from([None, 1, 2]),
    d_head=st.sampled_from([2, 4]),
    d_vocab=st.integers(1, 7),
    n_ctx=st.integers(1, 5),
    d_mlp=st.integers(0, 5),
    positions=st.sampled_from(["learned", "shortformer", "rotary", "none"]),
    norm=st.sampled_from(["none", "layernorm", "rmsnorm"]),
    gated_mlp=st.booleans(),
    parallel=st.booleans(),
    qkv_bias=st.booleans(),
    out_bias=st.booleans(),
    mlp_bias=st.booleans(),
    unembed_bias=st.booleans(),
    tied=st.booleans(),
)


@given(configs, st.integers(0, 99))
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_saved_network_comes_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, config: TransformerConfig, seed: int
) -> None:
    model = initialise(config, seed)
    folder = save(model, tmp_path_factory.mktemp("models") / "one", CARD)
    found = load(folder)
    assert found.config == config
    assert found.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
    assert not found.training
    assert all(parameter.requires_grad for parameter in found.parameters())


def test_a_loaded_network_does_not_change_with_its_file(tmp_path: Path) -> None:
    model = load(save(network("one-layer"), tmp_path / "m", CARD))
    before = model.W_E.detach().clone()
    path = tmp_path / "m" / "weights.safetensors"
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert torch.equal(model.W_E, before)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_loaded_network_gives_the_same_logits(tmp_path: Path, name: str) -> None:
    model = network(name)
    found = load(save(model, tmp_path / name, CARD), dtype=torch.float64)
    assert torch.equal(found(prompts(name)), model(prompts(name)))


def test_weights_are_float32_unless_asked_otherwise(tmp_path: Path) -> None:
    folder = save(network("gpt2"), tmp_path / "m", CARD)
    assert load(folder).dtype == torch.float32
    assert load(folder, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_a_tied_embedding_is_written_once_and_stays_tied(tmp_path: Path) -> None:
    folder = save(network("gpt2"), tmp_path / "m", CARD)
    assert "unembed.weight" not in from_bytes((folder / "weights.safetensors").read_bytes())
    found = load(folder)
    assert found.unembed.weight is found.embed.weight


def test_the_card_comes_back_with_the_hash_of_the_weights(tmp_path: Path) -> None:
    folder = save(network("one-layer"), tmp_path / "m", CARD)
    card = load(folder).card
    assert card == read_card(folder)
    assert card is not None
    assert card.sha256 == sha256_of(folder / "weights.safetensors")
    assert (card.training, card.data, card.inferred) == (CARD.training, CARD.data, CARD.inferred)


def test_a_card_is_read_without_torch(tmp_path: Path) -> None:
    folder = save(network("one-layer"), tmp_path / "m", CARD)
    code = (
        "import sys; from headwork.model import read_card; "
        f"print(read_card({str(folder)!r}).name, 'torch' in sys.modules, 'safetensors' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["small", "False", "False"]


def test_saving_again_changes_nothing(tmp_path: Path) -> None:
    folder = save(network("one-layer"), tmp_path / "m", CARD)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    save(network("one-layer"), folder, CARD)
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()} == before


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    assert load(save(network("one-layer"), tmp_path / "m", CARD)).card


def test_what_is_there_already_is_never_overwritten(tmp_path: Path) -> None:
    folder = save(network("one-layer"), tmp_path / "m", CARD)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match=r"m already holds something else"):
        save(network("one-layer", seed=1), folder, CARD)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file already holds something else"):
        save(network("one-layer"), tmp_path / "file", CARD)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = checkpoints.write_file

    def full(path: Path, content: bytes | str) -> None:
        if path.name == "config.json":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, content)

    monkeypatch.setattr(checkpoints, "write_file", full)
    with pytest.raises(UserError, match="disk is full"):
        save(network("one-layer"), tmp_path / "m", CARD)
    assert list(tmp_path.iterdir()) == []


class Bomb:
    """Unpickling this creates a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.mark,)


def _damage(how: str, folder: Path) -> None:
    path = folder / "weights.safetensors"
    content = path.read_bytes()
    state = from_bytes(content)
    key = "blocks.0.attn.qkv.weight"
    match how:
        case "truncated":
            path.write_bytes(content[:-10])
        case "empty":
            path.write_bytes(b"")
        case "header cut":
            path.write_bytes(content[:20])
        case "noise":
            path.write_bytes(bytes(range(256)) * 40)
        case "pickled":
            path.write_bytes(pickle.dumps(Bomb(folder / "exploded")))
        case "torch file":
            torch.save(state, path)
        case "missing file":
            path.unlink()
        case "wrong shape":
            save_file({**state, key: state[key][1:].clone()}, path)
        case "missing tensor":
            save_file({name: t for name, t in state.items() if name != key}, path)
        case "foreign tensor":
            save_file({**state, "blocks.0.attn.extra": torch.zeros(1)}, path)
        case "integers":
            save_file({**state, key: state[key].long()}, path)
        case "NaN":
            state[key][3, 2] = torch.nan
            save_file(state, path)
        case "infinite":
            state[key][3, 2] = -torch.inf
            save_file(state, path)
        case "other weights":
            save_file({**state, key: state[key] + 1}, path)
        case "bit flipped":
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert not (folder / "exploded").exists()


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("truncated", "weights.safetensors is truncated or corrupt"),
        ("empty", "weights.safetensors is truncated or corrupt"),
        ("header cut", "weights.safetensors is truncated or corrupt"),
        ("noise", "weights.safetensors is truncated or corrupt"),
        ("pickled", r"is a pickled PyTorch file, not safetensors; convert it once with `headwork models import"),
        ("torch file", r"is a pickled PyTorch file, not safetensors; convert it once with `headwork models import"),
        ("missing file", "has no weights.safetensors"),
        ("wrong shape", r"blocks\.0\.attn\.qkv\.weight has shape \[23, 8\], but \[24, 8\] is expected"),
        ("missing tensor", r"lacks the tensor blocks\.0\.attn\.qkv\.weight of shape \[24, 8\]"),
        ("foreign tensor", r"holds a tensor blocks\.0\.attn\.extra that"),
        ("integers", r"blocks\.0\.attn\.qkv\.weight is of type torch\.int64"),
        ("NaN", r"blocks\.0\.attn\.qkv\.weight has NaN entries"),
        ("infinite", r"blocks\.0\.attn\.qkv\.weight has infinite entries"),
        ("other weights", r"has the sha256 [0-9a-f]{64}, but config\.json records [0-9a-f]{64}"),
        ("bit flipped", r"has the sha256 [0-9a-f]{64}, but config\.json records [0-9a-f]{64}"),
    ],
)
def test_damaged_weights_are_refused(tmp_path: Path, how: str, says: str) -> None:
    folder = save(network("one-layer"), tmp_path / "m", CARD)
    _damage(how, folder)
    with pytest.raises(UserError, match=says) as error:
        load(folder)
    assert "\n" not in str(error.value)
    assert not (folder / "exploded").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda c: c | {"weights": "x"},
            r"Unknown key in .*config\.json: 'weights': the nearest valid .*weights_sha256",
        ),
        (lambda c: c | {"format": 2}, r"has format 2; this version of Headwork reads format 1"),
        (lambda c: {k: v for k, v in c.items() if k != "card"}, r"lacks the key 'card'"),
        (lambda c: c | {"card": []}, r"has card = \[\]; it must be a JSON object"),
        (lambda c: c | {"card": {"name": "a", "seed": 1}}, r"Unknown key in the model's card: 'seed'"),
        (lambda c: c | {"card": {"name": "a", "inferred": 1}}, r"inferred = 1; it must be a list of texts"),
        (lambda c: c | {"card": {}}, r"card lacks name"),
        (lambda c: _architecture(c, n_layer=2), r"Unknown key in the model's configuration: 'n_layer'.*n_layers"),
        (lambda c: _architecture(c, d_model=0), r"config\.json: The model's configuration has d_model = 0; it must be"),
        (lambda c: _architecture(c, norm="layer"), r"Unknown norm in the model's configuration: 'layer'.*layernorm"),
        (lambda c: _architecture(c, n_layers=10**9), r"holds \d+ tensors, too few for 1000000000 layers"),
        (lambda c: _architecture(c, d_model=10**30), r"too large for any tensor"),
        (lambda c: _architecture(c, d_model=10**18), r"too large for any tensor"),
        (lambda c: _architecture(c, d_model=16), r"embed\.weight has shape \[11, 8\], but \[11, 16\] is expected"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_broken_configuration_is_refused(tmp_path: Path, change: Callable[[dict], dict], says: str) -> None:
    folder = save(network("one-layer"), tmp_path / "m", CARD)
    path = folder / "config.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(UserError, match=says):
        load(folder)


def _architecture(config: dict, **changes: object) -> dict:
    return config | {"architecture": config["architecture"] | changes}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", r"config\.json is not JSON"),
        (b"\xff\xfe", r"config\.json is not JSON"),
        (b"[1]", r"holds a JSON list; it must hold an object"),
        (b"[" * 100_000, r"is not JSON: it is nested too deeply"),
    ],
)
def test_what_is_not_json_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    folder = save(network("one-layer"), tmp_path / "m", CARD)
    (folder / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=says):
        load(folder)


def test_what_is_not_a_model_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no model folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"is not a model folder: it has no config\.json"):
        load(tmp_path)
    torch.save({}, tmp_path / "model.pt")
    with pytest.raises(UserError, match=re.escape("headwork models import model.pt --layout LAYOUT --out DIR")):
        load(tmp_path / "model.pt")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match=r"notes\.txt is a file, not a model folder"):
        load(tmp_path / "notes.txt")
