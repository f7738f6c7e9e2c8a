"""Brings one revision of a repository to this machine: one commit, one folder.

Everything after it reads that folder only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import filter_repo_objects

from loaders.cache import find_built, repository_folder
from loaders.checkpoint import PICKLE_SUFFIXES
from loaders.download_progress import quiet_bars
from loaders.errors import HubError, RepositoryNotFoundError, UnsafeCheckpointError
from loaders.hub.access import no_revision, translated_errors

if TYPE_CHECKING:
    from collections.abc import Callable

    from huggingface_hub import ModelInfo

    from loaders.spec import VariantSpec

log = structlog.get_logger(__name__)

DEFAULT_REVISION = "main"
_NEEDED_FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "README.md")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One revision of a repository, in a folder of its own."""

    folder: Path
    commit: str | None  # None for a plain local folder


def fetch(
    spec: VariantSpec,
    *,
    cache_dir: Path | None = None,
    token: str | None = None,
    local_files_only: bool = False,
    on_percent: Callable[[float], None] | None = None,
) -> Snapshot:
    """Return the folder of a repository's revision, downloading what is missing.

    A repository that was built on this machine (the demo) is used as it is. For others the hub is
    asked, and the cache used when it cannot be reached. Raises RepositoryNotFoundError,
    RevisionNotFoundError (naming the revisions there are), UnsafeCheckpointError or HubError.

    on_percent: told how much of a download is done; possibly by several threads.
    """
    revision = spec.revision or DEFAULT_REVISION
    built_in = find_built(spec.repo, cache_dir)
    hub_cache = built_in or cache_dir or default_hub_cache()
    if built_in is None and not local_files_only:
        return _download(spec.repo, revision, hub_cache, token, on_percent)
    if (found := _cached(spec.repo, revision, hub_cache)) is not None:
        return found
    known = cached_revisions(spec.repo, hub_cache)
    if known:
        verb = "built on this machine are" if built_in else "in the cache it has"
        raise no_revision(spec.repo, revision, known, verb)
    raise RepositoryNotFoundError(
        f"{spec.repo} is not in the cache ({hub_cache}) and downloads are off; check the name, or"
        " allow downloads"
    )


def default_hub_cache() -> Path:
    """Return the hub client's own cache folder (HF_HOME, HF_HUB_CACHE)."""
    return Path(constants.HF_HUB_CACHE)


def cached_revisions(repo: str, cache_dir: Path) -> list[str]:
    """List the branches and tags of a repository that a cache knows."""
    refs = repository_folder(cache_dir, repo) / "refs"
    return sorted(str(path.relative_to(refs)) for path in refs.rglob("*") if path.is_file())


def _cached(repo: str, revision: str, cache_dir: Path) -> Snapshot | None:
    try:
        folder = snapshot_download(
            repo,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=True,
            allow_patterns=list(_NEEDED_FILES),
        )
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    return _snapshot(Path(folder))


def _snapshot(folder: Path) -> Snapshot:
    return Snapshot(folder=folder, commit=folder.name)


def _download(
    repo: str,
    revision: str,
    cache_dir: Path,
    token: str | None,
    on_percent: Callable[[float], None] | None,
) -> Snapshot:
    api = HfApi(token=token)
    try:
        with translated_errors(api, repo, revision):
            info = api.model_info(repo, revision=revision, files_metadata=True)
            _refuse_pickles(repo, [file.rfilename for file in info.siblings or []])
            log.info("downloading", repo=repo, revision=revision, commit=info.sha)
            folder = snapshot_download(
                repo,
                revision=revision,  # by name: the cache remembers what the branch pointed to
                cache_dir=cache_dir,
                token=token,
                allow_patterns=list(_NEEDED_FILES),
                tqdm_class=quiet_bars(on_percent or _tell_nobody, needed_bytes(info)),
            )
    except HubError as error:
        return _cached_instead(repo, revision, cache_dir, error)
    return _snapshot(Path(folder))


def needed_bytes(info: ModelInfo) -> int:
    """Count the bytes of what is fetched; 0 where the hub does not tell sizes."""
    files = info.siblings or []
    needed = set(
        filter_repo_objects([file.rfilename for file in files], allow_patterns=list(_NEEDED_FILES))
    )
    return sum(file.size or 0 for file in files if file.rfilename in needed)


def _tell_nobody(percent: float) -> None:
    pass


def _cached_instead(repo: str, revision: str, cache_dir: Path, error: HubError) -> Snapshot:
    """Use what an earlier download left when the hub cannot be reached now."""
    found = _cached(repo, revision, cache_dir)
    if found is not None:
        log.warning("hub_unreachable", repo=repo, reason=str(error), using=found.commit)
        return found
    if known := cached_revisions(repo, cache_dir):
        raise no_revision(repo, revision, known, f"{error}; cached are") from error
    raise HubError(f"{error}; it is not cached: name a local folder, or try again") from error


def _refuse_pickles(repo: str, files: list[str]) -> None:
    if any(name.endswith(".safetensors") for name in files):
        return
    if pickles := sorted(name for name in files if name.endswith(PICKLE_SUFFIXES)):
        raise UnsafeCheckpointError(
            f"{repo} holds its weights as {', '.join(pickles[:4])}: a pickle can run any code when"
            " it is opened,"
            " so only safetensors are read; choose a revision that has them"
        )
