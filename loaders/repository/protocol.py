"""What a repository of checkpoints offers, wherever it lies: revisions, files, and pieces of files.

The hub, its cache on this machine, a folder and a git clone each answer the same four questions
(`loaders.repository.hub`, `loaders.repository.local`), so that a catalogue or a plan need not know
where it reads. Nothing here downloads a whole checkpoint.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from loaders.errors import HubError, LoadError, RepositoryNotFoundError, UnsafeCheckpointError

if TYPE_CHECKING:
    from collections.abc import Sequence

# What says something of the hub, or of the right to read it, and nothing of a checkpoint.
HUB_FAILURES = (HubError, RepositoryNotFoundError)
DEFAULT_BRANCH = "main"
MAX_FILES = 20_000  # of one revision; the largest model repositories have some hundreds
_MAX_PATH_CHARACTERS = 512
_MAX_PART_BYTES = 255  # what file systems take as one name
# Git takes more, but nothing that names a variant does.
_REVISION = re.compile(r"\w[\w./+=@#-]{0,254}")
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def checked_path(path: object) -> str:
    """Return a file's path as a repository tells it, if it can only lie inside a folder.

    Raises UnsafeCheckpointError for `..`, absolute paths, backslashes, control characters and
    absurd lengths: a hub is not trusted with where files are written.
    """
    if not isinstance(path, str):
        raise UnsafeCheckpointError(f"the repository lists {path!r:.80}, which is no file's path")
    parts = path.split("/")
    if (
        len(path) > _MAX_PATH_CHARACTERS
        or any(part in ("", ".", "..") or _num_bytes(part) > _MAX_PART_BYTES for part in parts)
        or "\\" in path
        or ":" in parts[0]
        or not path.isprintable()
    ):
        raise UnsafeCheckpointError(
            f"the repository lists the file {path[:80]!r}, which is no path inside a folder;"
            " nothing of it was used"
        )
    return path


def _num_bytes(part: str) -> int:
    return len(part.encode(errors="surrogatepass"))


def is_revision_name(name: object) -> bool:
    """Tell whether a branch's or tag's name can be used in a path and on a terminal."""
    return isinstance(name, str) and bool(_REVISION.fullmatch(name)) and ".." not in name


def is_commit(text: object) -> bool:
    """Tell whether this is the whole id of a commit."""
    return isinstance(text, str) and bool(_COMMIT.fullmatch(text))


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
        `loaders.checkpoint.files.MAX_JSON_BYTES` raise CheckpointError.
        """


@runtime_checkable
class Replaceable(Protocol):
    """A repository that others can stand in for when it fails."""

    def substitute(self, error: LoadError) -> RepositoryFiles | None:
        """Return what is read in its place after an error of `HUB_FAILURES`, if there is any."""
