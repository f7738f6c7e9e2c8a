"""What a repository of checkpoints offers, wherever it lies: revisions, files, and pieces of files.

The hub, its cache on this machine, a folder and a git clone each answer the same four questions
(`loaders.hub`, `loaders.local_repository`), so that a catalogue or a plan need not know where it
reads. Nothing here downloads a whole checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Revision:
    """A name under which a repository keeps a state of its files."""

    name: str | None  # None for a plain folder, which has one state and no name for it
    kind: Literal["branch", "tag", "commit", "folder"]
    commit: str | None  # None for a plain folder


@dataclass(frozen=True, slots=True)
class RepositoryFile:
    """One file at one commit."""

    path: str  # inside the repository, parts joined by "/"
    num_bytes: int
    sha256: str | None  # of large files, which a hub stores by it
    blob_id: str | None  # git's own hash: of small files it hashes the content


class RepositoryFiles(Protocol):
    """One repository. Every method raises LoadError; several threads may call them at once."""

    @property
    def name(self) -> str:
        """`owner/name`, or the folder's name."""

    def revisions(self) -> Sequence[Revision]:
        """List all branches and tags, the default branch first."""

    def find_revision(self, name: str | None) -> Revision:
        """Resolve a branch, tag or commit; None is the default branch.

        Raises RevisionNotFoundError with near matches.
        """

    def files(self, revision: Revision) -> Sequence[RepositoryFile]:
        """List the files at a revision."""

    def read(
        self, revision: Revision, path: str, *, start: int = 0, num_bytes: int | None = None
    ) -> bytes:
        """Read (a piece of) one file; fewer bytes than asked for where the file ends.

        A read without `num_bytes` is for small files: those larger than
        `loaders.checkpoint.MAX_JSON_BYTES` raise CheckpointError.
        """
