"""Networks that their authors published: a table of where each lies, and fetching one with its hash checked."""

from __future__ import annotations

import functools
import os
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
    """One published file: `path` at `commit` of the GitHub repository `repo`; `config` adds to what the file states.

    `tokenizer` has the `path`, `file` and `sha256` of the network's tokenizer in the same repository, if it has one.
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
    tokenizer: Mapping[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Where anyone can download it."""
        return f"https://raw.githubusercontent.com/{self.repo}/{self.commit}/{self.path}"


def tokenizer_of(wanted: Artifact) -> Artifact | None:
    """The file of a network's tokenizer, to be fetched like the network; None where it has none."""
    if not wanted.tokenizer:
        return None
    return replace(wanted, id=f"{wanted.id}-tokenizer", layout="tokenizer", config={}, tokenizer={}, **wanted.tokenizer)


@functools.cache
def artifacts() -> dict[str, Artifact]:
    """All known artefacts by id, in the order of the table."""
    table = tomllib.loads(resources.files("headwork.model").joinpath("artifacts.toml").read_text(encoding="utf-8"))
    return {name: Artifact(id=name, **entry) for name, entry in table.items()}


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
    cached = _cache() / _cached_name(wanted)
    return cached if cached.is_file() else None


def fetch(wanted: Artifact) -> Path:
    """The artefact's file, from HEADWORK_ARTIFACTS, the cache or its public source, with its sha256 checked.

    Says in one line where no licence is stated. Raises `UserError` where the file is not the one in the table, or is
    not here and cannot be downloaded.
    """
    path = at_hand(wanted) or _download(wanted)
    found = sha256_of(path)
    if found != wanted.sha256:
        raise UserError(
            f"{path} has the sha256 {found}, but artifact:{wanted.id} has {wanted.sha256}; remove or replace the file."
        )
    if wanted.licence.startswith(UNLICENSED):
        notice(f"artifact:{wanted.id} comes from {wanted.repo}, which states no licence.")
    return path


def _download(wanted: Artifact) -> Path:
    import pooch  # only here: listing artefacts must stay quick

    try:
        found = pooch.retrieve(
            wanted.url, known_hash=f"sha256:{wanted.sha256}", fname=_cached_name(wanted), path=_cache()
        )
    except ValueError as error:  # pooch's word for a hash that differs
        raise UserError(f"{wanted.url} no longer has the sha256 {wanted.sha256} of artifact:{wanted.id}.") from error
    except OSError as error:  # all of requests' errors are OSErrors too
        raise UserError(
            f"Could not fetch artifact:{wanted.id} from {wanted.url}: connect to the network, or set {FOLDER} to a "
            f"folder that has {wanted.file}."
        ) from error
    return Path(found)


def _cache() -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("headwork", appauthor=False)) / "artifacts"


def _cached_name(wanted: Artifact) -> str:
    return f"{wanted.id}{Path(wanted.path).suffix}"
