"""Networks of the Hugging Face hub: a local copy of a repository's configuration and weights, and its commit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from headwork.errors import UserError
from headwork.model.shards import HUB_WEIGHTS, INDEX, weight_files

_BESIDE = ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
_SHARDS = ("model-*-of-*.safetensors",)


@dataclass(frozen=True)
class Snapshot:
    """A copy in the hub's own cache; `commit` is the revision that was fetched."""

    folder: Path
    commit: str


def snapshot(repo: str, revision: str | None = None) -> Snapshot:
    """Configuration and weights of a repository, from the cache if they are there, otherwise downloaded.

    `revision` is a branch, tag or commit. Raises `UserError` where there is no such repository, it has no weights that
    can be read, or it cannot be reached.
    """
    for local in (True, False):
        for weights in HUB_WEIGHTS:
            folder = _fetch(repo, revision, [*_BESIDE, weights, *(_SHARDS if weights == INDEX else ())], local)
            if folder is not None and _complete(folder, weights):
                return Snapshot(folder, folder.name)
    raise UserError(
        f"hf:{repo} has no weights that Headwork reads: it needs config.json and {' or '.join(HUB_WEIGHTS)}."
    )


def _complete(folder: Path, weights: str) -> bool:
    """Whether the configuration and all files of the weights are there."""
    if not (folder / "config.json").is_file() or not (folder / weights).is_file():
        return False
    try:
        return bool(weight_files(folder / weights))
    except UserError:
        return False


def _fetch(repo: str, revision: str | None, files: list[str], local: bool) -> Path | None:
    """The snapshot's folder; None if only the cache was asked and it has none."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        found = huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=files, local_files_only=local)
    except errors.HFValidationError as error:
        raise UserError(f"hf:{repo} is not a name on the hub; write hf:ORG/NAME, for example hf:gpt2.") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"hf:{repo} has no revision {revision!r}.") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"hf:{repo} is not on the Hugging Face hub, or needs permission.") from error
    except Exception as error:  # no cache, no network, a server's answer: which error says so differs by version
        if local:
            return None
        raise UserError(
            f"Could not fetch hf:{repo} from huggingface.co, and it is not in the hub's cache: connect to the "
            "network, or give a folder with its config.json and weights instead."
        ) from error
    return Path(str(found))
