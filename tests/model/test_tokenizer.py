"""Tokenizers: against a slow pair encoding of each kind, on made-up vocabularies; from every place they lie in."""

from __future__ import annotations

import csv
import json
import re
import struct
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from tests import foreign
from tests.architectures import network

from headwork.errors import UserError
from headwork.model.artifacts import artifact, tokenizer_of
from headwork.model.card import ModelCard
from headwork.model.checkpoints import load as load_folder
from headwork.model.checkpoints import save
from headwork.model.importing import import_checkpoint
from headwork.model.sources import load
from headwork.model.tokenizer import Tokenizer, read_tokenizer

CORPUS = ["a banana", "an anna ban", "bananas and naan", "nan  a\n\nban", "é ana, ünana", ""]

# --- made-up tokenizers, and how they split ---------------------------------------------------------------------------

MERGES = [("Ġ", "a"), ("a", "n"), ("b", "an"), ("an", "an"), ("Ġ", "ban"), ("n", "a"), ("Ġban", "ana"), ("an", "a")]
"""GPT-2's form: Ġ is a space."""


@cache
def byte_names() -> dict[int, str]:
    """GPT-2's names for the bytes: themselves where they are printable, otherwise from 256 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(rest)}


def gpt2_ids() -> dict[str, int]:
    names = [*byte_names().values(), *("".join(pair) for pair in MERGES), "<|endoftext|>"]
    return {name: index for index, name in enumerate(names)}


def write_gpt2(folder: Path, names: tuple[str, str] = ("vocab.json", "merges.txt")) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / names[0]).write_text(json.dumps(gpt2_ids()))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in MERGES)]
    (folder / names[1]).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def slow_gpt2(text: str, ids: dict[str, int], merges: dict[tuple[str, str], int]) -> list[int]:
    """Words with the space before them, then the earliest-ranked pair first."""
    found = []
    for word in re.findall(r"'(?:s|t|re|ve|m|ll|d)| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+", text):
        parts = [byte_names()[byte] for byte in word.encode()]
        while True:
            ranked = [(merges[pair], i) for i, pair in enumerate(pairwise(parts)) if pair in merges]
            if not ranked:
                break
            _, at = min(ranked)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        found += [ids[part] for part in parts]
    return found


PIECES = [("<unk>", 0.0), ("\n<s>\n", 0.0), ("\n</s>\n", 0.0), *((f"<0x{byte:02X}>", 0.0) for byte in range(256))]
PIECES += [
    (piece, -float(rank)) for rank, piece in enumerate(["an", " a", "ana", " b", "na", " ban", "ban", " banana"])
]
PIECES += [(letter, -1e9) for letter in " abns"]


def write_llama2c(path: Path, pieces: list[tuple[str, float]] = PIECES) -> Path:
    parts = [struct.pack("<fi", score, len(piece.encode())) + piece.encode() for piece, score in pieces]
    path.write_bytes(struct.pack("<i", 9) + b"".join(parts))
    return path


def slow_llama2c(text: str, pieces: list[tuple[str, float]]) -> list[int]:
    """Characters, in bytes where there is no piece, then the best-scored join first."""
    ids = {piece: index for index, (piece, _) in enumerate(pieces)}
    parts: list[int] = []
    for letter in " " + text if text else "":
        parts += [ids[letter]] if letter in ids else [3 + byte for byte in letter.encode()]
    while True:
        joins = [(pieces[a][0] + pieces[b][0], i) for i, (a, b) in enumerate(pairwise(parts))]
        scored = [(-pieces[ids[join]][1], i, ids[join]) for join, i in joins if join in ids]
        if not scored:
            return parts
        _, at, joined = min(scored)
        parts[at : at + 2] = [joined]


@pytest.fixture
def gpt2(tmp_path: Path) -> Tokenizer:
    return read_tokenizer(write_gpt2(tmp_path / "gpt2"))


@pytest.fixture
def llama2c(tmp_path: Path) -> Tokenizer:
    return read_tokenizer(write_llama2c(tmp_path / "tok.bin"))


# --- splitting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")])
def test_gpt2_files_split_as_the_slow_encoding_does(tmp_path: Path, names: tuple[str, str]) -> None:
    found = read_tokenizer(write_gpt2(tmp_path / "x", names))
    ranks = {pair: rank for rank, pair in enumerate(MERGES)}
    for text in CORPUS:
        assert found.to_tokens(text) == slow_gpt2(text, gpt2_ids(), ranks)
        assert found.to_text(found.to_tokens(text)) == text
    assert found.to_tokens("banana", bos=True) == [gpt2_ids()["<|endoftext|>"], *found.to_tokens("banana")]
    assert found.d_vocab == len(gpt2_ids())


def test_llama2c_files_split_as_the_slow_encoding_does(llama2c: Tokenizer) -> None:
    for text in CORPUS:
        assert llama2c.to_tokens(text) == slow_llama2c(text, PIECES)
        assert llama2c.to_tokens(text, bos=True) == [1, *slow_llama2c(text, PIECES)]
        assert llama2c.to_text(llama2c.to_tokens(text)) == llama2c.to_text(llama2c.to_tokens(text, bos=True)) == text


@given(text=st.text(alphabet=st.sampled_from("abn é\n7,"), max_size=30))
def test_every_text_comes_back(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("t")
    for found in (read_tokenizer(write_gpt2(folder)), read_tokenizer(write_llama2c(folder / "tok.bin"))):
        ids = found.to_tokens(text)
        assert found.to_text(ids) == text
        assert "".join(found.pieces(found.to_tokens("ban"))).strip() == "ban"
    assert ids == slow_llama2c(text, PIECES)


def test_each_token_has_its_text_with_its_space(gpt2: Tokenizer, llama2c: Tokenizer) -> None:
    assert gpt2.pieces(gpt2.to_tokens("ban banana")) == ["ban", " banana"]
    assert llama2c.pieces(llama2c.to_tokens("ban banana")) == [" ban", " banana"]
    assert llama2c.pieces([1, 3 + ord("x")]) == ["\n<s>\n", "x"]


def test_one_token_is_found_as_it_continues_a_text(gpt2: Tokenizer, llama2c: Tokenizer) -> None:
    for found in (gpt2, llama2c):
        for text in (" ban", "ban", "an", " banana", "s"):
            assert found.pieces([found.single_token(text)]) == [text]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("bananas", r"'bananas' is \d tokens here, \['ban', 'ana', 's'\], but one is needed\.$"),
        ("", r"'' is 0 tokens here"),
        ("banana", r"'banana' is 2 tokens here, \['ban', 'ana'\], .*; with a space before it, ' banana', it is one"),
    ],
)
def test_several_tokens_where_one_is_needed_are_refused(
    gpt2: Tokenizer, llama2c: Tokenizer, text: str, says: str
) -> None:
    for found in (gpt2, llama2c):
        with pytest.raises(UserError, match=says):
            found.single_token(text)


def test_what_cannot_be_said_or_read_is_refused(gpt2: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not valid Unicode"):
        gpt2.to_tokens("\ud800")
    with pytest.raises(UserError, match=r"Token 265 is outside this tokenizer's vocabulary 0–264"):
        gpt2.to_text([265])
    with pytest.raises(UserError, match=r"Token -1 is outside"):
        gpt2.to_text([-1])
    (tmp_path / "word.json").write_text(word_level().to_str())
    with pytest.raises(UserError, match=r"has no token that starts a text; leave bos out"):
        read_tokenizer(tmp_path / "word.json").to_tokens("no", bos=True)


# --- where they lie --------------------------------------------------------------------------------------------------


def word_level() -> tokenizers.Tokenizer:
    start = "<s>"
    found = tokenizers.Tokenizer(tokenizers.models.WordLevel({start: 0, "yes": 1, "no": 2}, unk_token=start))
    found.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return found


def write_hub(folder: Path, beside: dict[str, object]) -> Path:
    """A GPT-2 of the hub with a tokenizer.json of words."""
    folder.mkdir()
    save_file(foreign.gpt2_state(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(foreign.GPT2_CONFIG))
    (folder / "tokenizer.json").write_text(word_level().to_str())
    for name, content in beside.items():
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("beside", "bos"),
    [
        ({}, None),
        ({"tokenizer_config.json": {"bos_token": "<s>"}}, 0),
        ({"tokenizer_config.json": {"bos_token": {"content": "<s>", "special": True}}}, 0),
        ({"tokenizer_config.json": {"bos_token": None}}, None),
        ({"tokenizer_config.json": {}}, None),
    ],
)
def test_a_folder_of_the_hub_has_its_own_tokenizer(tmp_path: Path, beside: dict[str, object], bos: int | None) -> None:
    model = load(str(write_hub(tmp_path / "hub", beside)))
    assert model.tokenizer.to_tokens("yes no") == [1, 2]
    assert model.tokenizer.bos == bos
    assert model.tokenizer is model.tokenizer


def test_a_tokenizer_goes_into_the_model_folder_and_comes_back(tmp_path: Path) -> None:
    hub = write_hub(tmp_path / "hub", {"tokenizer_config.json": {"bos_token": "<s>"}})
    folder = import_checkpoint(hub, "gpt2", tmp_path / "ours")
    assert import_checkpoint(hub, "gpt2", tmp_path / "ours") == folder
    model = load(str(folder))
    assert model.tokenizer.to_tokens("no", bos=True) == [0, 2]
    assert model.card is not None
    save(model, tmp_path / "again", model.card)
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    with pytest.raises(UserError, match="already holds something else"):
        import_checkpoint(hub, "gpt2", tmp_path / "ours", tokenizer=write_gpt2(tmp_path / "other"))
    (folder / "tokenizer.json").write_text(word_level().to_str())
    with pytest.raises(UserError, match=r"tokenizer\.json has the sha256 .*, but config\.json records"):
        _ = load_folder(folder).tokenizer


def test_a_checkpoint_file_is_imported_with_the_tokenizer_that_is_named(tmp_path: Path) -> None:
    torch.save({"model": foreign.nanda_state()}, tmp_path / "theirs.pth")
    tokenizer = write_llama2c(tmp_path / "tok.bin")
    folder = import_checkpoint(tmp_path / "theirs.pth", "nanda", tmp_path / "ours", tokenizer=tokenizer)
    found = load(str(folder)).tokenizer
    for text in CORPUS:
        assert found.to_tokens(text, bos=True) == [1, *slow_llama2c(text, PIECES)]
        assert found.to_text(found.to_tokens(text)) == text


def test_a_network_without_one_says_so(tmp_path: Path) -> None:
    model = load(str(save(network("gpt2"), tmp_path / "plain", ModelCard(name="plain"))))
    with pytest.raises(UserError, match="This network has no tokenizer; give it token ids instead of text"):
        _ = model.tokenizer


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("tokenizer.json", b"{", r"tokenizer\.json is not JSON"),
        ("tokenizer.json", b"{}", r"tokenizer\.json is not a tokenizer: "),
        ("vocab.json", b'{"a": "b"}', r"vocab\.json is not a vocabulary: it must give a whole number"),
        ("merges.txt", b"qq zz\n", r"merges\.txt does not fit its vocabulary"),
        ("merges.txt", b"\xff", r"merges\.txt is not text in UTF-8"),
        ("tok.bin", b"", r"tok\.bin is not a tokenizer of llama2\.c: it holds 0 pieces, too few for all bytes"),
        ("tok.bin", bytes(30), r"tok\.bin is not a tokenizer of llama2\.c: a piece is cut off"),
        ("tok.bin", bytes(7), r"tok\.bin is not a tokenizer of llama2\.c: "),
    ],
)
def test_a_damaged_tokenizer_is_refused(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    folder = write_gpt2(tmp_path / "x")
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=says) as error:
        read_tokenizer(folder / name if name == "tok.bin" else folder)
    assert "\n" not in str(error.value)


def test_a_place_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no tokenizer: neither tokenizer\.json nor vocab\.json with merges\.txt"):
        read_tokenizer(tmp_path)
    for name in ("no.json", "no.bin"):
        with pytest.raises(UserError, match=rf"no\.{name[3:]}"):
            read_tokenizer(tmp_path / name)
    twice = [*PIECES, ("an", -100.0)]
    with pytest.raises(UserError, match="holds a piece twice"):
        read_tokenizer(write_llama2c(tmp_path / "twice.bin", twice))


# --- GPT-2's own files, and llama2.c's -------------------------------------------------------------------------------


@pytest.mark.artifacts
def test_gpt2s_ids_are_those_of_the_published_prompts(artifacts: Path) -> None:
    found = read_tokenizer(artifacts / "gpt2")
    assert (found.d_vocab, found.bos) == (50257, 50256)
    with (artifacts / "prompts" / "ioi-gpt2.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1000
    for row in rows:
        right, wrong = int(row["correct_idx"]), int(row["incorrect_idx"])
        assert found.single_token(found.pieces([right])[0]) == right
        ids = found.to_tokens(row["clean"])
        assert (ids.count(right), ids.count(wrong)) == (1, 2)
    with (artifacts / "prompts" / "gender-bias-gpt2.csv").open() as file:
        pronouns = {int(row["clean_answer_idx"]) for row in csv.DictReader(file)}
    assert pronouns <= {found.single_token(" she"), found.single_token(" he")}


@pytest.mark.artifacts
def test_gpt2s_ids_are_those_that_its_activations_were_recorded_on(artifacts: Path) -> None:
    found = read_tokenizer(artifacts / "gpt2")
    texts = []
    for path in sorted((artifacts / "gpt2").glob("ex*_decoded.npz")):
        ids = np.load(path)["token_ids"].tolist()
        texts.append(found.to_text(ids))
        assert found.to_tokens(texts[-1]) == ids
    assert texts[0] == "Data visualization empowers users to"


@pytest.mark.artifacts
def test_gpt2s_files_split_every_published_prompt_as_the_slow_encoding_does(artifacts: Path) -> None:
    found = read_tokenizer(artifacts / "gpt2")
    ids = json.loads((artifacts / "gpt2" / "encoder.json").read_text())
    lines = (artifacts / "gpt2" / "vocab.bpe").read_text(encoding="utf-8").split("\n")[1:]
    ranks = {(left, right): i for i, line in enumerate(lines) if line for left, right in [line.split(" ")]}
    texts = [p["clean"] for p in json.loads((artifacts / "prompts" / "docstring.json").read_text())["prompts"][:100]]
    for name in ("ioi", "greater-than", "sva", "gender-bias"):
        with (artifacts / "prompts" / f"{name}-gpt2.csv").open() as file:
            texts += [row["clean"] for row in csv.DictReader(file)][:200]
    for text in texts:
        assert found.to_tokens(text) == slow_gpt2(text, ids, ranks)


@pytest.mark.artifacts
def test_the_stories_tokenizer_splits_stories_as_the_slow_encoding_does(artifacts: Path) -> None:
    wanted = tokenizer_of(artifact("stories260k"))
    assert wanted is not None
    found = read_tokenizer(artifacts / wanted.file)
    pieces = [(found.backend.id_to_token(i) or "", 0.0) for i in range(found.d_vocab)]
    content, at = (artifacts / wanted.file).read_bytes(), 4
    for i, (piece, _) in enumerate(pieces):
        score, length = struct.unpack_from("<fi", content, at)
        pieces[i] = (piece, score)
        at += 8 + length
    for story in json.loads((artifacts / "text" / "tinystories_1000.json").read_text())[:8]:
        assert found.to_tokens(story[:400]) == slow_llama2c(story[:400], pieces)
        assert found.to_text(found.to_tokens(story)) == story
