"""`headwork artifacts` and `headwork artifacts pull`, against a server on this machine."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.cli.conftest import Cli
from tests.model import authors

from headwork.model import artifacts
from headwork.model.artifacts import Artifact
from headwork.model.files import sha256_of
from headwork.model.layouts.max_of_two import contents
from headwork.model.sources import load
from headwork.notices import notice


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr, where commands say what is wrong."""


@pytest.fixture
def public(tmp_path: Path) -> Path:
    """What the server serves: one repository folder with a network and its settings, and one with a Coq file."""
    folder = tmp_path / "public"
    folder.mkdir()
    torch.save(authors.pair_state(7), folder / "model.pt")
    (folder / "cfg.json").write_text(json.dumps({"group": "CyclicGroup", "group_parameter": 7}))
    (folder / "key_reps.txt").write_text("freq_1\n")
    authors.write_coq(folder / "Parameters.v", authors.max_state())
    return folder


@pytest.fixture
def server(public: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A table of two artefacts, fetched from this machine into a cache of the test's own."""
    beside = {name: sha256_of(public / name) for name in ("cfg.json", "key_reps.txt")}
    rest: dict[str, Any] = {"description": "a toy", "repo": "lab/toys", "commit": "abc"}
    npz = authors.write_npz(tmp_path / "Max.npz", authors.max_state())
    known = {
        "group-toy": Artifact(
            id="group-toy",
            path="model.pt",
            file="group-composition/toy/model.pt",
            sha256=sha256_of(public / "model.pt"),
            licence="none stated",
            layout="group-mlp",
            beside=beside,
            **rest,
        ),
        "max-toy": Artifact(
            id="max-toy",
            path="Parameters.v",
            file="max-of-two/Max.npz",
            sha256=sha256_of(npz),
            licence="MIT",
            layout="max-of-two",
            contents=contents(npz),
            **rest,
        ),
    }
    monkeypatch.setattr(artifacts, "artifacts", lambda: known)
    monkeypatch.setattr("headwork.model.catalogue.artifacts", lambda: known)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HEADWORK_ARTIFACTS", raising=False)
    serve = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(public)))
    address = f"http://127.0.0.1:{serve.server_address[1]}"
    monkeypatch.setattr(Artifact, "url", property(lambda self: f"{address}/{self.path}"))
    thread = threading.Thread(target=serve.serve_forever, daemon=True)
    thread.start()
    notice.cache_clear()
    yield
    notice.cache_clear()
    serve.shutdown()
    serve.server_close()


def here(cli: Cli) -> dict[str, bool]:
    return {m["id"]: m["here"] for m in cli("artifacts", "--json").json["artifacts"]}


def test_the_list_has_source_licence_hash_and_whether_it_is_here(cli: Cli) -> None:
    listed = {m["id"]: m for m in cli("artifacts", "--json").json["artifacts"]}
    assert list(listed) == list(artifacts.artifacts())
    one = listed["pizza-l8k1hzciux"]
    assert (one["licence"], one["source"], len(one["sha256"])) == ("MIT", "github.com/fjzzq2002/pizza", 64)
    assert one["url"].startswith("https://raw.githubusercontent.com/fjzzq2002/pizza/")
    printed = cli("artifacts").out
    assert all(name in printed for name in listed)
    assert one["sha256"][:8] in printed


@pytest.mark.usefixtures("server")
def test_a_network_is_fetched_with_all_its_files_and_then_here(cli: Cli, caplog: pytest.LogCaptureFixture) -> None:
    assert here(cli) == {"group-toy": False, "max-toy": False}
    files = [Path(file) for file in cli("artifacts", "pull", "group-toy", "--json").json["files"]]
    assert [file.name for file in files] == ["model.pt", "cfg.json", "key_reps.txt"]
    assert len({file.parent for file in files}) == 1
    assert here(cli) == {"group-toy": True, "max-toy": False}
    pairs = torch.tensor([[0, 1], [3, 6]])
    state = authors.pair_state(7)
    torch.testing.assert_close(
        load("artifact:group-toy", dtype=torch.float64)(pairs).detach(), authors.pair_logits(state, pairs)
    )
    assert "artifact:group-toy comes from lab/toys, which states no licence." in caplog.messages
    assert "Next: headwork models show artifact:group-toy" in cli("artifacts", "pull", "artifact:group-toy").out


@pytest.mark.usefixtures("server")
def test_a_network_whose_source_has_another_form_is_checked_by_its_tensors(
    cli: Cli, public: Path, tmp_path: Path
) -> None:
    (file,) = cli("artifacts", "pull", "max-toy", "--json").json["files"]
    assert Path(file).name == "Parameters.v"
    tokens = torch.tensor([[1, 5, 3]])
    model = load("artifact:max-toy", dtype=torch.float64)
    torch.testing.assert_close(model(tokens).detach(), authors.max_logits(authors.max_state(), tokens))
    assert model.config.norm_eps == 1e-5
    # The converted file in the user's own folder is taken before the cache, and checked by its own hash.
    Path(file).unlink()
    authors.write_coq(public / "Parameters.v", authors.max_state(vocab=8))
    refused = cli("artifacts", "pull", "max-toy")
    assert refused.code == 2
    assert "has the tensors with the sha256" in refused.err


@pytest.mark.usefixtures("server")
def test_a_file_that_has_changed_at_its_source_is_refused_and_not_kept(cli: Cli, public: Path) -> None:
    (public / "cfg.json").write_text("{}")
    result = cli("artifacts", "pull", "group-toy")
    assert result.code == 2
    assert "no longer has the sha256" in result.err
    assert len(result.err.strip().splitlines()) == 1
    assert not here(cli)["group-toy"]


@pytest.mark.usefixtures("server")
def test_a_damaged_file_in_the_cache_is_refused(cli: Cli) -> None:
    files = cli("artifacts", "pull", "group-toy", "--json").json["files"]
    Path(files[0]).write_bytes(b"damaged")
    for command in (("artifacts", "pull", "group-toy"), ("models", "show", "artifact:group-toy")):
        result = cli(*command)
        assert result.code == 2
        assert "model.pt has the sha256" in result.err
        assert "remove or replace the file" in result.err


@pytest.mark.usefixtures("server")
def test_what_is_not_there_is_said_in_one_sentence(cli: Cli, public: Path) -> None:
    (public / "model.pt").unlink()
    result = cli("artifacts", "pull", "group-toy")
    assert result.code == 2
    assert (
        "connect to the network, or set HEADWORK_ARTIFACTS to a folder that has group-composition/toy/model.pt"
        in result.err
    )
    assert len(result.err.strip().splitlines()) == 1


@pytest.mark.usefixtures("server")
def test_an_unknown_name_brings_the_nearest(cli: Cli) -> None:
    result = cli("artifacts", "pull", "group-toys")
    assert result.code == 2
    assert "Unknown artefact 'group-toys': the nearest valid ones are group-toy, max-toy" in result.err


@pytest.mark.usefixtures("server")
def test_a_network_that_is_no_transformer_is_shown_with_its_sites(cli: Cli) -> None:
    cli("artifacts", "pull", "group-toy")
    shown = cli("models", "show", "artifact:group-toy", "--json").json
    assert (shown["architecture"], shown["sites"]) == (None, 6)
    assert shown["parameters"] == 7 * 6 * 2 + 12 * 5 + 5 * 7
    assert (
        "no transformer; its sites are x_embed, y_embed, cat, hidden_pre, hidden, logits"
        in cli("models", "show", "artifact:group-toy").out
    )
    refused = cli("sites", "artifact:group-toy")
    assert refused.code == 2
    assert "is no transformer" in refused.err
