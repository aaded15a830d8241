"""Networks that their authors published: a table of where each lies, and fetching one with its hash checked."""

from __future__ import annotations

import functools
import os
import posixpath
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from headwork.errors import UserError, unknown
from headwork.model.files import sha256_of
from headwork.notices import notice

FOLDER = "HEADWORK_ARTIFACTS"
"""The environment variable that names a folder to look into before anything is downloaded."""

UNLICENSED = "none stated"


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """One published file: `path` at `commit` of the GitHub repository `repo`, `file` in the folder of the artefacts.

    `config` adds to what the file states, `data` says what the network was trained on. `beside` are further files of
    the same repository folder by name, with their sha256: settings, tokenizer (the name in `tokenizer`), results.
    Where `contents` is not empty, the file at `path` has another form than `file`; both hold tensors with that hash.
    """

    id: str
    description: str
    repo: str
    commit: str
    path: str
    file: str
    sha256: str
    licence: str
    layout: str
    config: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] | None = None
    beside: Mapping[str, str] = field(default_factory=dict)
    tokenizer: str = ""
    contents: str = ""

    @property
    def url(self) -> str:
        """Where anyone can download it."""
        return f"https://raw.githubusercontent.com/{self.repo}/{self.commit}/{self.path}"

    def part(self, name: str) -> Artifact:
        """A file beside this one, to be fetched like it. Raises `UserError` where there is none of this name."""
        if name not in self.beside:
            raise unknown(f"file beside artifact:{self.id}", name, self.beside)
        return replace(
            self,
            path=posixpath.join(posixpath.dirname(self.path), name),
            file=posixpath.join(posixpath.dirname(self.file), name),
            sha256=self.beside[name],
            layout="",
            config={},
            data=None,
            beside={},
            tokenizer="",
            contents="",
        )

    @property
    def parts(self) -> tuple[Artifact, ...]:
        """The file itself and all those beside it."""
        return (self, *map(self.part, self.beside))


def tokenizer_of(wanted: Artifact) -> Artifact | None:
    """The file of a network's tokenizer, to be fetched like the network; None where it has none."""
    return wanted.part(wanted.tokenizer) if wanted.tokenizer else None


@functools.cache
def artifacts() -> dict[str, Artifact]:
    """All known artefacts by id, in the order of the table."""
    table = tomllib.loads(resources.files("headwork.model").joinpath("artifacts.toml").read_text(encoding="utf-8"))
    return {name: _artifact(name, entry, table["sources"]) for name, entry in table["networks"].items()}


def _artifact(name: str, entry: Mapping[str, Any], sources: Mapping[str, Mapping[str, str]]) -> Artifact:
    source = sources[entry["source"]]
    rest = {key: value for key, value in entry.items() if key not in ("source", "file", "path")}
    return Artifact(
        id=name,
        repo=source["repo"],
        commit=source["commit"],
        licence=source["licence"],
        path=entry.get("path", posixpath.join(source["path"], entry["file"])),
        file=posixpath.join(entry["source"], entry["file"]),
        **rest,
    )


def artifact(name: str) -> Artifact:
    """One artefact. Raises `UserError` naming the nearest ids for one that is not in the table."""
    known = artifacts()
    if name not in known:
        raise unknown("artefact", name, known)
    return known[name]


def at_hand(wanted: Artifact) -> Path | None:
    """The artefact's file if it is on this machine already, its hash not yet checked; None if it is not.

    Raises `UserError` where HEADWORK_ARTIFACTS names no folder.
    """
    named = os.environ.get(FOLDER)
    if named:
        folder = Path(named).expanduser()
        if not folder.is_dir():
            raise UserError(f"{FOLDER} names {named}, which is not a folder.")
        if (folder / wanted.file).is_file():
            return folder / wanted.file
    cached = _cache(wanted) / posixpath.basename(wanted.path)
    return cached if cached.is_file() else None


def fetch(wanted: Artifact) -> Path:
    """The artefact's file, from HEADWORK_ARTIFACTS, the cache or its public source, with its contents checked.

    Says in one line where no licence is stated. Raises `UserError` where the file is not the one in the table, or is
    not here and cannot be downloaded.
    """
    path = at_hand(wanted) or _download(wanted)
    _check(path, wanted)
    if wanted.licence.startswith(UNLICENSED):
        notice(f"artifact:{wanted.id} comes from {wanted.repo}, which states no licence.")
    return path


def _check(path: Path, wanted: Artifact) -> None:
    """Raise `UserError` unless this is the file of the table, or holds the same tensors in the form of the source."""
    what, expected = ("sha256", wanted.sha256)
    if _other_form(wanted) and path.name == posixpath.basename(wanted.path):
        from headwork.model.layouts.max_of_two import contents

        what, expected = ("tensors with the sha256", wanted.contents)
        found = contents(path)
    else:
        found = sha256_of(path)
    if found != expected:
        raise UserError(
            f"{path} has the {what} {found}, but artifact:{wanted.id} has {expected}; remove or replace the file."
        )


def _other_form(wanted: Artifact) -> bool:
    """Whether what the source has is not `file` itself."""
    return bool(wanted.contents)


def _download(wanted: Artifact) -> Path:
    import pooch  # only here: listing artefacts must stay quick

    pooch.get_logger().setLevel("WARNING")  # not a line of its own on stderr for every file
    known = None if _other_form(wanted) else f"sha256:{wanted.sha256}"
    try:
        found = pooch.retrieve(wanted.url, known_hash=known, fname=posixpath.basename(wanted.path), path=_cache(wanted))
    except ValueError as error:  # pooch's word for a hash that differs
        raise UserError(f"{wanted.url} no longer has the sha256 {wanted.sha256} of artifact:{wanted.id}.") from error
    except OSError as error:  # all of requests' errors are OSErrors too
        raise UserError(
            f"Could not fetch artifact:{wanted.id} from {wanted.url}: connect to the network, or set {FOLDER} to a "
            f"folder that has {wanted.file}."
        ) from error
    return Path(found)


def _cache(wanted: Artifact) -> Path:
    """The folder of an artefact's files, under their own names, so that settings lie beside weights."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("headwork", appauthor=False)) / "artifacts" / wanted.id
