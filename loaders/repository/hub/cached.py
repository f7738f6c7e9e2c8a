"""A repository in the hub's cache on this machine: what was downloaded, or built here.

    models--owner--name/
    ├── blobs/<hash>                 content; sha256 of large files, git's hash of small ones
    ├── refs/<branch or tag>         the commit that it named when it was last asked for
    └── snapshots/<commit>/<file>    links to the blobs

Only files that were fetched are there, so a revision may be incomplete.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from loaders.cache import repository_folder
from loaders.errors import CheckpointError, HubError, RepositoryNotFoundError
from loaders.repository.hub.access import no_revision
from loaders.repository.hub.repository import DEFAULT_BRANCH, default_revision
from loaders.repository.local_files import list_paths, read_piece
from loaders.repository.protocol import RepositoryFile, Revision, is_commit, is_revision_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_SHA256 = re.compile(r"[0-9a-f]{64}")
_BLOB_ID = re.compile(r"[0-9a-f]{40}")


class CachedFiles:
    """One repository of a cache (`loaders.repository.protocol.RepositoryFiles`).

    Raises RepositoryNotFoundError where the cache holds none of that name.
    """

    def __init__(self, repo: str, cache_dir: Path) -> None:
        self._repo = repo
        self._root = repository_folder(cache_dir, repo)
        if not is_cached(repo, cache_dir):
            raise RepositoryNotFoundError(
                f"{repo} is not in the cache ({cache_dir}) and downloads are off; check the name,"
                " or allow downloads"
            )

    @property
    def name(self) -> str:
        """The repository's name, `owner/name`."""
        return self._repo

    def revisions(self) -> Sequence[Revision]:
        """List the branches and tags that the cache knows; it does not tell the two apart.

        Where none was ever asked for by name, the commits that were fetched are listed.
        """
        refs = self._root / "refs"
        found = []
        for path in sorted(refs.rglob("*")):
            name = path.relative_to(refs).as_posix()
            if path.is_file() and is_revision_name(name):
                found.append(Revision(name, "branch", self._commit_in(path)))
        present = [r for r in found if (self._root / "snapshots" / str(r.commit)).is_dir()]
        if present:
            return sorted(present, key=lambda revision: revision.name != DEFAULT_BRANCH)
        commits = sorted(path.name for path in (self._root / "snapshots").iterdir())
        return [Revision(name, "commit", name) for name in commits if is_commit(name)]

    def find_revision(self, name: str | None) -> Revision:
        """Resolve a branch, tag or commit; None is the default branch."""
        known = self.revisions()
        wanted = name or default_revision(known)
        for revision in known:
            if wanted in (revision.name, revision.commit):
                return revision
        if is_commit(wanted) and (self._root / "snapshots" / str(wanted)).is_dir():
            return Revision(wanted, "commit", wanted)
        names = sorted(revision.name or "" for revision in known)
        raise no_revision(self._repo, wanted or DEFAULT_BRANCH, names, "in the cache it has")

    def files(self, revision: Revision) -> Sequence[RepositoryFile]:
        """List the files of a revision that were fetched."""
        folder = self._snapshot(revision)
        return [self._file(folder, path) for path in list_paths(folder)]

    def read(
        self, revision: Revision, path: str, *, start: int = 0, num_bytes: int | None = None
    ) -> bytes:
        """Read (a piece of) one file; fewer bytes than asked for where the file ends."""
        folder = self._snapshot(revision)
        return read_piece(folder, path, inside=self._root, start=start, num_bytes=num_bytes)

    def _snapshot(self, revision: Revision) -> Path:
        folder = self._root / "snapshots" / str(revision.commit)
        if not is_commit(revision.commit) or not folder.is_dir():
            raise CheckpointError(f"the cache lost {self._repo} at {revision.name}")
        return folder

    def _file(self, folder: Path, path: str) -> RepositoryFile:
        stored = (folder / path).resolve().name  # a blob's name is its hash
        return RepositoryFile(
            path=path,
            num_bytes=(folder / path).stat().st_size,
            sha256=stored if _SHA256.fullmatch(stored) else None,
            blob_id=stored if _BLOB_ID.fullmatch(stored) else None,
        )

    def _commit_in(self, ref: Path) -> str:
        with ref.open("rb") as file:
            commit = file.read(100).decode(errors="replace").strip()
        if not is_commit(commit):
            raise HubError(f"{ref} in the cache names no commit; remove it, or download again")
        return commit


def is_cached(repo: str, cache_dir: Path) -> bool:
    """Tell whether a cache holds any revision of a repository."""
    snapshots = repository_folder(cache_dir, repo) / "snapshots"
    return snapshots.is_dir() and any(snapshots.iterdir())
