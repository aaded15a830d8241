"""Where networks come from: what a SPEC stands for, what is fetched and checked, and what is said when it cannot be."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pooch
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import save as to_bytes
from safetensors.torch import save_file
from tests import foreign
from tests.architectures import network, prompts

from headwork.errors import UserError
from headwork.model import artifacts, sources
from headwork.model import shards as shards_index
from headwork.model.artifacts import artifact, fetch
from headwork.model.card import ModelCard
from headwork.model.checkpoints import save
from headwork.model.files import sha256_of
from headwork.model.layouts import LAYOUTS, MODULES
from headwork.model.sources import check_device, load, locate, zoo_names
from headwork.model.transformer import Transformer
from headwork.notices import notice

TOKENS = torch.randint(0, 11, (3, 6), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No test here reaches a network or the user's caches; each sees every notice anew."""

    def refuse(*args: object, **kwargs: object) -> str:
        raise ConnectionError("no network in tests")

    def nothing(*args: object, local_files_only: bool, **kwargs: object) -> str:
        raise LocalEntryNotFoundError("nothing cached") if local_files_only else ConnectionError("no network")

    monkeypatch.setattr(pooch, "retrieve", refuse)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", nothing)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    notice.cache_clear()
    yield
    notice.cache_clear()


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A zoo of two networks."""
    monkeypatch.setattr(sources, "ZOO", tmp_path / "zoo")
    for seed, name in enumerate(("attn-only-1l", "attn-only-2l")):
        save(network("attention-only-learned", seed), tmp_path / "zoo" / name, ModelCard(name=name))
    return tmp_path / "zoo"


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table with one artefact, `toy`, and HEADWORK_ARTIFACTS pointing to a folder that has it."""
    file = tmp_path / "published" / "lab" / "toy.pth"
    file.parent.mkdir(parents=True)
    torch.save({"model": foreign.nanda_state()}, file)
    toy = artifacts.Artifact(
        id="toy",
        description="a toy",
        repo="lab/toys",
        commit="abc",
        path="runs/toy.pth",
        file="lab/toy.pth",
        sha256=sha256_of(file),
        licence="none stated",
        layout="nanda",
        config={"p": 10, "fn_name": "add"},
    )
    monkeypatch.setattr(artifacts, "artifacts", lambda: {"toy": toy})
    monkeypatch.setenv("HEADWORK_ARTIFACTS", str(tmp_path / "published"))
    return file


# --- zoo and folders -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("zoo")
def test_the_zoo_is_listed_and_loaded() -> None:
    assert zoo_names() == ["attn-only-1l", "attn-only-2l"]
    model = load("zoo:attn-only-2l", dtype=torch.float64)
    tokens = prompts("attention-only-learned")
    assert torch.equal(model(tokens), network("attention-only-learned", 1)(tokens))
    assert model.card is not None
    assert (model.card.name, model.card.spec) == ("attn-only-2l", "zoo:attn-only-2l")


def test_a_folder_is_located_and_loaded(zoo: Path) -> None:
    folder = str(zoo / "attn-only-1l")
    found = locate(folder)
    model = load(folder)
    assert found.kind == "folder"
    assert found.architecture == model.config
    assert found.card == model.card
    assert found.sha256 == sha256_of(zoo / "attn-only-1l" / "weights.safetensors")


def test_the_identity_of_a_network_does_not_depend_on_where_it_lies(zoo: Path) -> None:
    assert locate("zoo:attn-only-1l").identity() == locate(str(zoo / "attn-only-1l")).identity()
    assert locate("zoo:attn-only-1l").identity() != locate("zoo:attn-only-2l").identity()
    json.dumps(locate("zoo:attn-only-1l").identity())


def test_the_identity_follows_the_weights_that_are_there(zoo: Path) -> None:
    before = locate("zoo:attn-only-1l").identity()
    path = zoo / "attn-only-1l" / "weights.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert locate("zoo:attn-only-1l").identity() != before
    with pytest.raises(UserError, match="sha256"):
        load("zoo:attn-only-1l")


def test_everything_is_located_without_torch(published: Path, zoo: Path) -> None:
    code = (
        "import sys; from headwork.model import locate\n"
        f"locate({str(zoo / 'attn-only-1l')!r}); locate('artifact:nanda-induction'); print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("zoo:attn-only-3l", r"Unknown zoo model 'attn-only-3l': the nearest valid ones are attn-only-"),
        ("artifact:tox", r"Unknown artefact 'tox': the nearest valid one is toy"),
        ("attn-only-2l", r"Unknown model 'attn-only-2l': .*; nearest: zoo:attn-only-2l\."),
        ("attn-only-2", r"Unknown model 'attn-only-2': .*; nearest: zoo:attn-only-2l"),
        ("gpt2", r"Unknown model 'gpt2': .*; nearest: hf:gpt2\."),
        ("zooo:attn-only-2l", r"Unknown model 'zooo:attn-only-2l': .*; nearest: zoo:attn-only-2l\."),
        ("./nowhere", r"There is no model folder \./nowhere: a model is given as zoo:NAME"),
        ("", r"No model is named: a model is given as zoo:NAME"),
        ("{tmp}", r"is not a model folder: it has no config\.json"),
        ("{tmp}/zoo/attn-only-1l/weights.safetensors", r"is a file; give the model folder that has it"),
        ("{tmp}/zoo/attn-only-1l/config.json", r"is a file; give the model folder that has it"),
    ],
)
@pytest.mark.usefixtures("zoo", "published")
def test_what_is_no_model_names_the_nearest(tmp_path: Path, spec: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        locate(spec.format(tmp=tmp_path))
    assert "\n" not in str(error.value)


# --- artefacts -------------------------------------------------------------------------------------------------------


def test_an_artefact_is_read_from_the_folder_that_the_user_names(published: Path) -> None:
    model = load("artifact:toy", dtype=torch.float64)
    expected = foreign.nanda_logits(foreign.nanda_state(), TOKENS)
    torch.testing.assert_close(model(TOKENS).detach(), expected, rtol=0, atol=1e-9 * float(expected.abs().max()))
    assert model.card is not None
    assert model.card.spec == "artifact:toy"
    assert model.card.source == "https://raw.githubusercontent.com/lab/toys/abc/runs/toy.pth"
    assert model.card.sha256 == sha256_of(published)
    assert model.card.data == {"generator": "modular-addition", "modulus": 10, "equals": 10}


@pytest.mark.usefixtures("published")
def test_a_missing_licence_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="headwork"):
        load("artifact:toy")
        load("artifact:toy")
    assert [r.getMessage() for r in caplog.records] == ["artifact:toy comes from lab/toys, which states no licence."]


def test_an_artefact_with_other_contents_is_refused(published: Path) -> None:
    torch.save({"model": foreign.nanda_state(seed=1)}, published)
    with pytest.raises(UserError, match=r"toy\.pth has the sha256 [0-9a-f]{64}, but artifact:toy has [0-9a-f]{64}"):
        load("artifact:toy")


def test_an_artefact_is_downloaded_once_with_its_hash(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, str]] = []

    def retrieve(url: str, known_hash: str, fname: str, path: Path) -> str:
        calls.append((url, known_hash))
        path.mkdir(parents=True)
        (path / fname).write_bytes(content)
        return str(path / fname)

    content = published.read_bytes()
    published.unlink()
    monkeypatch.setattr(pooch, "retrieve", retrieve)
    assert locate("artifact:toy").path is None
    load("artifact:toy")
    load("artifact:toy")
    toy = artifacts.artifact("toy")
    assert calls == [(toy.url, f"sha256:{toy.sha256}")]
    assert locate("artifact:toy").path is not None


def test_without_a_network_the_error_says_what_to_do(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published.unlink()
    says = r"Could not fetch artifact:toy from https://raw\S+: connect to the network, or set HEADWORK_ARTIFACTS"
    with pytest.raises(UserError, match=says):
        load("artifact:toy")
    monkeypatch.delenv("HEADWORK_ARTIFACTS")
    with pytest.raises(UserError, match=says):
        load("artifact:toy")


def test_a_download_with_other_contents_is_refused(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(*args: object, **kwargs: object) -> str:
        raise ValueError("hash of downloaded file does not match")

    published.unlink()
    monkeypatch.setattr(pooch, "retrieve", changed)
    with pytest.raises(UserError, match=r"no longer has the sha256"):
        load("artifact:toy")


@pytest.mark.usefixtures("published")
def test_a_wrong_artefact_folder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWORK_ARTIFACTS", "/no/such/folder")
    with pytest.raises(UserError, match="HEADWORK_ARTIFACTS names /no/such/folder, which is not a folder"):
        locate("artifact:toy")


def test_the_table_of_artefacts_is_complete() -> None:
    for name, entry in artifacts.artifacts().items():
        assert entry.id == name
        assert len(entry.sha256) == 64
        assert entry.url.startswith(f"https://raw.githubusercontent.com/{entry.repo}/{entry.commit}/")
        optional = {"config", "data", "beside", "tokenizer", "contents"}
        assert all(getattr(entry, field.name) for field in dataclasses.fields(entry) if field.name not in optional)
        assert entry.layout in {*LAYOUTS, *MODULES}
        assert all(len(part.sha256) == 64 for part in entry.parts)
        assert entry.tokenizer in ("", *entry.beside)


@pytest.mark.artifacts
@pytest.mark.parametrize("name", artifacts.artifacts())
def test_every_artefact_loads_with_all_its_files(artifacts: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("HEADWORK_ARTIFACTS", str(artifacts))
    model = load(f"artifact:{name}")
    inputs = torch.zeros(1, 2, dtype=torch.long) if isinstance(model, Transformer) else model.example[0]
    with torch.no_grad():
        assert model(inputs).isfinite().all()
    for part in artifact(name).parts:
        assert fetch(part).parent == artifacts / Path(part.file).parent


# --- the hub ---------------------------------------------------------------------------------------------------------


class Hub:
    """A stand-in for the hub: serves folders of files and counts what was asked of the network."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.repos: dict[str, dict[str, bytes]] = {}
        self.asked: list[list[str]] = []

    def snapshot_download(
        self, repo: str, *, revision: str | None, allow_patterns: list[str], local_files_only: bool
    ) -> str:
        folder = self.root / repo / "snapshots" / (revision or "c0ffee")
        if local_files_only:
            if not folder.is_dir():
                raise LocalEntryNotFoundError("nothing cached")
            return str(folder)
        self.asked.append(allow_patterns)
        if repo not in self.repos:
            raise not_found()
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.repos[repo].items():
            if any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                (folder / name).write_bytes(content)
        return str(folder)


def not_found() -> RepositoryNotFoundError:
    """As the client raises it; its constructor differs by version."""
    error = RepositoryNotFoundError.__new__(RepositoryNotFoundError)
    Exception.__init__(error, "404")
    return error


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub with a GPT-2 in either format, a network of another family, and a repository without weights."""
    found = Hub(tmp_path / "hub")
    save_file(foreign.gpt2_state(), tmp_path / "model.safetensors")
    torch.save(foreign.gpt2_state(prefix="transformer."), tmp_path / "pytorch_model.bin")
    config = json.dumps(foreign.GPT2_CONFIG).encode()
    safe, pickled = (tmp_path / "model.safetensors").read_bytes(), (tmp_path / "pytorch_model.bin").read_bytes()
    found.repos = {
        "org/safe": {"config.json": config, "model.safetensors": safe, "pytorch_model.bin": pickled},
        "org/old": {"config.json": config, "pytorch_model.bin": pickled},
        "org/other": {"config.json": b'{"model_type": "bert"}', "model.safetensors": safe},
        "org/empty": {"config.json": config},
        "org/shards": {"config.json": config, **shards(foreign.gpt2_state())},
    }
    found.repos["org/torn"] = {name: data for name, data in found.repos["org/shards"].items() if "00002" not in name}
    found.repos["org/twice"] = found.repos["org/shards"] | {
        "model-00002-of-00003.safetensors": found.repos["org/shards"]["model-00001-of-00003.safetensors"]
    }
    monkeypatch.setattr(huggingface_hub, "snapshot_download", found.snapshot_download)
    return found


def shards(state: dict[str, torch.Tensor]) -> dict[str, bytes]:
    """The files of three shards and their index."""
    parts = [dict(list(state.items())[i::3]) for i in range(3)]
    files = {f"model-0000{i + 1}-of-00003.safetensors": part for i, part in enumerate(parts)}
    index = {"metadata": {}, "weight_map": {tensor: file for file, part in files.items() for tensor in part}}
    return {name: to_bytes(part) for name, part in files.items()} | {shards_index.INDEX: json.dumps(index).encode()}


@pytest.mark.parametrize("repo", ["org/safe", "org/old", "org/shards"])
def test_a_network_of_the_hub_is_loaded(hub: Hub, repo: str) -> None:
    model = load(f"hf:{repo}", dtype=torch.float64)
    expected = foreign.gpt2_logits(foreign.gpt2_state(), TOKENS)
    torch.testing.assert_close(model(TOKENS).detach(), expected, rtol=0, atol=1e-9 * float(expected.abs().max()))
    assert model.card is not None
    assert model.card.source == f"huggingface.co/{repo} at c0ffee"


def test_only_the_better_format_is_fetched_and_only_once(hub: Hub) -> None:
    locate("hf:org/safe")
    locate("hf:org/safe")
    assert len(hub.asked) == 1
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(hub.asked[0])
    assert "pytorch_model.bin" not in hub.asked[0]


def test_every_shard_is_part_of_the_identity(hub: Hub) -> None:
    before = locate("hf:org/shards").identity()
    folder = locate("hf:org/shards").path
    assert folder is not None
    changed = foreign.gpt2_state(seed=1)
    save_file({name: changed[name] for name in list(changed)[2::3]}, folder / "model-00003-of-00003.safetensors")
    assert locate("hf:org/shards").identity() != before


@pytest.mark.parametrize(
    ("has", "config", "told"),
    [
        ({}, {"act_fn": "gelu", "attn_only": True, "shortformer_pos": True}, {"shortformer": True}),
        ({"mlp": 12}, {"act_fn": "gelu", "shortformer_pos": False}, {"act": "gelu"}),
        ({"mlp": 12, "neuron_norm": True}, {"act_fn": "solu_ln"}, {"act": "solu_ln"}),
    ],
    ids=["attention-only", "gelu", "solu"],
)
def test_toys_of_transformer_lens_are_loaded_from_the_hub(
    hub: Hub, tmp_path: Path, has: dict[str, Any], config: dict[str, Any], told: dict[str, Any]
) -> None:
    """Their repositories hold a state dict and a configuration in its words."""
    state = foreign.lens_state(norm="LN", **has)
    torch.save(state, tmp_path / "model_final.pth")
    sizes = {"d_model": 8, "n_layers": 2, "n_heads": 2, "d_head": 4, "n_ctx": 7, "d_vocab": 11, "normalization": "LN"}
    written = json.dumps(sizes | config | {"tokenizer_name": "org/some", "lr": 0.001}).encode()
    hub.repos["org/toy"] = {"config.json": written, "model_final.pth": (tmp_path / "model_final.pth").read_bytes()}
    model = load("hf:org/toy", dtype=torch.float64)
    expected = foreign.lens_logits(state, TOKENS, norm="LN", **told)
    torch.testing.assert_close(model(TOKENS).detach(), expected, rtol=0, atol=1e-9 * float(expected.abs().max()))
    assert model.card is not None
    assert model.card.training["lr"] == 0.001


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ({"weight_map": {"wte.weight": "../model.safetensors"}}, r"'\.\./model\.safetensors', which is outside"),
        ({"weight_map": {"wte.weight": "/etc/passwd"}}, r"'/etc/passwd', which is outside its folder"),
        ({"weight_map": {"wte.weight": "model-9.safetensors"}}, r"model-9\.safetensors, which is not there"),
        ({"weight_map": {"wte.weight": 1}}, r"lacks a weight_map of tensors to files"),
        ({}, r"lacks a weight_map of tensors to files"),
    ],
)
def test_a_damaged_index_is_refused(tmp_path: Path, index: dict[str, object], says: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(foreign.GPT2_CONFIG))
    (tmp_path / shards_index.INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match=says):
        load(str(tmp_path))


def test_a_revision_can_be_named(hub: Hub) -> None:
    assert locate("hf:org/safe@v2").card.source == "huggingface.co/org/safe at v2"


def test_a_folder_in_the_hub_format_is_loaded(hub: Hub, tmp_path: Path) -> None:
    locate("hf:org/safe")
    folder = next(path.parent for path in (tmp_path / "hub").rglob("config.json"))
    assert locate(str(folder)).identity() == locate("hf:org/safe").identity()
    assert torch.equal(load(str(folder))(TOKENS), load("hf:org/safe")(TOKENS))


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("hf:org/nowhere", r"hf:org/nowhere is not on the Hugging Face hub, or needs permission"),
        ("hf:org/empty", r"hf:org/empty has no weights that Headwork reads"),
        ("hf:org/torn", r"hf:org/torn has no weights that Headwork reads"),
        ("hf:org/twice", r"00002-of-00003\.safetensors holds the tensor .*, and so does another file"),
        ("hf:org/other", r"hf:org/other is of the architecture family 'bert'; families that Headwork reads: gpt2"),
    ],
)
@pytest.mark.usefixtures("hub")
def test_what_the_hub_does_not_have_is_said_plainly(spec: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        load(spec)


def test_without_a_network_the_hub_cannot_be_reached() -> None:
    with pytest.raises(UserError, match=r"Could not fetch hf:gpt2 from huggingface\.co.*: connect to the network"):
        load("hf:gpt2")


# --- devices ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "says"),
    [("gpu", "Unknown device 'gpu': "), ("cuda:1", "Unknown device 'cuda:1': .* cuda"), ("", "cpu, cuda")],
)
def test_an_unknown_device_is_refused(device: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        check_device(device)


@pytest.mark.usefixtures("zoo")
def test_cuda_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no CUDA device that PyTorch can use; take --device cpu"):
        load("zoo:attn-only-1l", device="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_device("cuda")
