"""Text to token ids and back, by the tokenizer that lies beside a network's weights."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from headwork.errors import UserError
from headwork.model.files import read_json

JSON = "tokenizer.json"
_GPT2_FILES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
_GPT2_BOS = "<|endoftext|>"
_LLAMA2C_BOS = 1
_LLAMA2C_FIRST_PIECE = 3 + 256
"""In llama2.c's files unknown, start and end come first, then the 256 bytes, then the pieces."""


@dataclass(frozen=True)
class Tokenizer:
    """Text to token ids and back. `bos` is the token that starts a text, None where the network knows none."""

    backend: tokenizers.Tokenizer
    bos: int | None = None

    @property
    def d_vocab(self) -> int:
        """How many tokens there are."""
        return self.backend.get_vocab_size()

    def to_tokens(self, text: str, bos: bool = False) -> list[int]:
        """The token ids of a text, after `bos` if asked for. Raises `UserError` where there is no such token."""
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UserError(f"The text {text!r} is not valid Unicode.") from None
        ids = self.backend.encode(text, add_special_tokens=False).ids
        if not bos:
            return ids
        if self.bos is None:
            raise UserError("This network's tokenizer has no token that starts a text; leave bos out.")
        return [self.bos, *ids]

    def to_text(self, tokens: Iterable[int]) -> str:
        """The text of token ids, without a `bos` at its start. Raises `UserError` for ids that do not exist."""
        ids = [self._known(token) for token in tokens]
        return self.backend.decode(ids[1:] if ids[:1] == [self.bos] else ids, skip_special_tokens=False)

    def pieces(self, tokens: Iterable[int]) -> list[str]:
        """The text that each token adds to what stands before it, its space included."""
        anchor = self.to_tokens("\n")
        before = len(self.to_text(anchor))
        return [self.to_text([*anchor, token])[before:] for token in tokens]

    def single_token(self, text: str) -> int:
        """The one token whose text this is, its space included. Raises `UserError` where it is not one token."""
        split = self._continuing(text)
        for ids in (self.to_tokens(text), split):
            if len(ids) == 1 and self.pieces(ids) == [text]:
                return ids[0]
        spaced = f"; with a space before it, {' ' + text!r}, it is one" if self._is_one(" " + text) else ""
        raise UserError(f"{text!r} is {len(split)} tokens here, {self.pieces(split)}, but one is needed{spaced}.")

    def _is_one(self, text: str) -> bool:
        ids = self._continuing(text)
        return len(ids) == 1 and self.pieces(ids) == [text]

    def _continuing(self, text: str) -> list[int]:
        """The tokens of a text that something stands before: some tokenizers put a space at the start of all."""
        anchor = self.to_tokens("\n")
        ids = self.to_tokens("\n" + text)
        return ids[len(anchor) :] if ids[: len(anchor)] == anchor else self.to_tokens(text)

    def _known(self, token: int) -> int:
        if not 0 <= token < self.d_vocab:
            raise UserError(f"Token {token} is outside this tokenizer's vocabulary 0–{self.d_vocab - 1}.")
        return int(token)

    def to_json(self) -> str:
        """The tokenizer as the text of a `tokenizer.json`, its `bos` included."""
        copy = tokenizers.Tokenizer.from_str(self.backend.to_str())
        if self.bos is not None:
            name = self.backend.id_to_token(self.bos)
            copy.post_processor = processors.TemplateProcessing(single=[name, "$A"], special_tokens=[(name, self.bos)])
        return copy.to_str(pretty=False)


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder of the hub's format holds a tokenizer that can be read."""
    return (folder / JSON).is_file() or any((folder / a).is_file() and (folder / b).is_file() for a, b in _GPT2_FILES)


def read_tokenizer(path: Path | str) -> Tokenizer:
    """The tokenizer in a folder of the hub's format, a `tokenizer.json`, or a `.bin` file of llama2.c.

    A folder may hold GPT-2's own two files instead: `vocab.json` and `merges.txt`, or `encoder.json` and `vocab.bpe`.
    Raises `UserError` where there is none or it is damaged.
    """
    path = Path(path)
    if not path.is_dir():
        return _llama2c(path) if path.suffix == ".bin" else _from_json(path)
    if (path / JSON).is_file():
        return _from_json(path / JSON)
    for vocabulary, merges in _GPT2_FILES:
        if (path / vocabulary).is_file() and (path / merges).is_file():
            return _gpt2(path / vocabulary, path / merges)
    pairs = " or ".join(f"{a} with {b}" for a, b in _GPT2_FILES)
    raise UserError(f"{path} has no tokenizer: neither {JSON} nor {pairs} is there.")


def _from_json(path: Path) -> Tokenizer:
    read_json(path)  # for its plain errors: the library's do not name the file
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more special
        raise UserError(f"{path} is not a tokenizer: {error}.") from error
    return Tokenizer(backend, _bos(backend, path.parent))


def _bos(backend: tokenizers.Tokenizer, folder: Path) -> int | None:
    """The starting token: named beside the tokenizer, or put before an empty text by the tokenizer itself."""
    settings = folder / "tokenizer_config.json"
    if settings.is_file():
        stated: Any = read_json(settings).get("bos_token")
        name = stated.get("content") if isinstance(stated, dict) else stated
        return backend.token_to_id(name) if isinstance(name, str) else None
    ids = backend.encode("").ids
    return ids[0] if len(ids) == 1 else None


def _gpt2(vocabulary: Path, merges: Path) -> Tokenizer:
    """Byte-level pair encoding (Radford et al. 2019)."""
    ids = read_json(vocabulary)
    if not all(isinstance(index, int) for index in ids.values()):
        raise UserError(f"{vocabulary} is not a vocabulary: it must give a whole number for each token.")
    lines = [line for line in _text(merges).split("\n") if line and not line.startswith("#version")]
    pairs = [(left, right) for left, _, right in (line.partition(" ") for line in lines)]
    backend = _pair_encoding(ids, pairs, merges)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if _GPT2_BOS in ids:
        backend.add_special_tokens([_GPT2_BOS])
    return Tokenizer(backend, ids.get(_GPT2_BOS))


def _llama2c(path: Path) -> Tokenizer:
    """Pair encoding as sentencepiece has it: the pair whose joined piece scores best is joined first.

    What is in no piece is spelt in bytes, and every text gets a space in front.
    """
    pieces = _llama2c_pieces(path)
    ids = {piece: index for index, (piece, _) in enumerate(pieces)}
    if len(ids) != len(pieces):
        raise UserError(f"{path} is not a tokenizer of llama2.c: it holds a piece twice.")
    joined = sorted(pieces[_LLAMA2C_FIRST_PIECE:], key=lambda scored: -scored[1])
    pairs = [
        (piece[:cut], piece[cut:])
        for piece, _ in joined
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    backend = _pair_encoding(ids, pairs, path, unk_token=pieces[0][0], byte_fallback=True)
    backend.normalizer = normalizers.Prepend(" ")
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return Tokenizer(backend, _LLAMA2C_BOS)


def _llama2c_pieces(path: Path) -> list[tuple[str, float]]:
    """Pieces and scores: after four bytes, each has a score, a length and its UTF-8."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"Cannot read {path}: {(error.strerror or str(error)).lower()}.") from error
    found: list[tuple[str, float]] = []
    at = 4
    try:
        while at < len(content):
            score, length = struct.unpack_from("<fi", content, at)
            piece = content[at + 8 : at + 8 + length]
            if not 0 < length == len(piece):
                raise ValueError("a piece is cut off")
            found.append((piece.decode(), score))
            at += 8 + length
    except (struct.error, ValueError) as error:
        raise UserError(f"{path} is not a tokenizer of llama2.c: {error}.") from error
    if len(found) < _LLAMA2C_FIRST_PIECE:
        raise UserError(f"{path} is not a tokenizer of llama2.c: it holds {len(found)} pieces, too few for all bytes.")
    return found


def _pair_encoding(
    ids: dict[str, int], pairs: list[tuple[str, str]], path: Path, **settings: Any
) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer(models.BPE(vocab=ids, merges=pairs, **settings))
    except Exception as error:  # the library raises nothing more special
        raise UserError(f"{path} does not fit its vocabulary: {error}.") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8: {error.reason}.") from error
    except OSError as error:
        raise UserError(f"Cannot read {path}: {(error.strerror or str(error)).lower()}.") from error
