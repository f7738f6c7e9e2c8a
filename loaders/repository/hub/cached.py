"""The revisions and files of one repository in the hub's cache on this machine.

What lies where is `loaders.repository.cache_layout`'s. Only files that were fetched are there, so a
revision may be incomplete.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from loaders.errors import CheckpointError, HubError, RepositoryNotFoundError
from loaders.repository.cache_layout import CachedRepository
from loaders.repository.hub.access import no_revision
from loaders.repository.hub.repository import default_revision
from loaders.repository.local_files import read_piece
from loaders.repository.protocol import DEFAULT_BRANCH, Revision, is_revision_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from loaders.repository.protocol import RepositoryFile


class CachedFiles:
    """One repository of a cache (`loaders.repository.protocol.RepositoryFiles`).

    Raises RepositoryNotFoundError where the cache holds none of that name.
    """

    def __init__(self, repo: str, cache_dir: Path) -> None:
        self._cached = CachedRepository(cache_dir, repo)
        if not self._cached.is_cached():
            raise RepositoryNotFoundError(
                f"{repo} is not in the cache ({cache_dir}) and downloads are off; check the name,"
                " or allow downloads"
            )

    @property
    def name(self) -> str:
        """The repository's name, `owner/name`."""
        return self._cached.repo

    def revisions(self) -> Sequence[Revision]:
        """List the branches and tags that the cache knows; it does not tell the two apart.

        Where none was ever asked for by name, the commits that were fetched are listed.
        """
        named = [
            Revision(name, "branch", self._commit_of(name))
            for name in self._cached.revisions()
            if is_revision_name(name)
        ]
        present = [revision for revision in named if self._cached.has_snapshot(revision.commit)]
        if present:
            return sorted(present, key=lambda revision: revision.name != DEFAULT_BRANCH)
        return [Revision(commit, "commit", commit) for commit in self._cached.commits()]

    def find_revision(self, name: str | None) -> Revision:
        """Resolve a branch, tag or commit; None is the default branch."""
        known = self.revisions()
        wanted = name or default_revision(known)
        for revision in known:
            if wanted in (revision.name, revision.commit):
                return revision
        if self._cached.has_snapshot(wanted):
            return Revision(wanted, "commit", wanted)
        names = sorted(revision.name or "" for revision in known)
        raise no_revision(self.name, wanted or DEFAULT_BRANCH, names, "in the cache it has")

    def files(self, revision: Revision) -> Sequence[RepositoryFile]:
        """List the files of a revision that were fetched."""
        return self._cached.files(self._commit(revision))

    def read(
        self, revision: Revision, path: str, *, start: int = 0, num_bytes: int | None = None
    ) -> bytes:
        """Read (a piece of) one file; fewer bytes than asked for where the file ends."""
        folder = self._cached.snapshot(self._commit(revision))
        return read_piece(folder, path, start=start, num_bytes=num_bytes)

    def _commit(self, revision: Revision) -> str:
        if revision.commit is None or not self._cached.has_snapshot(revision.commit):
            raise CheckpointError(f"the cache lost {self.name} at {revision.name}")
        return revision.commit

    def _commit_of(self, name: str) -> str:
        commit = self._cached.commit_of(name)
        if commit is None:
            raise HubError(
                f"{self._cached.ref(name)} in the cache names no commit; remove it, or download"
                " again"
            )
        return commit
