"""Repositories on this machine that no hub's client made: a plain folder, a git clone.

A clone is read through git and never touched: no branch is checked out, nothing is fetched.
"""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Literal

from loaders.checkpoint.files import MAX_JSON_BYTES
from loaders.errors import CheckpointError
from loaders.repository.git_clone import (
    MAX_POINTER_BYTES,
    Pointer,
    commit_of,
    find_large_file,
    list_blobs,
    not_fetched,
    read_blob,
    read_pointer,
    resolve_commit,
    run_git,
)
from loaders.repository.local_files import list_paths, no_revision_in, read_piece
from loaders.repository.protocol import (
    MAX_FILES,
    RepositoryFile,
    Revision,
    checked_path,
    is_revision_name,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_REF_KINDS: tuple[tuple[str, Literal["branch", "tag"]], ...] = (
    ("refs/heads/", "branch"),
    ("refs/remotes/origin/", "branch"),
    ("refs/tags/", "tag"),
)


class FolderFiles:
    """A folder's files as a repository of one nameless state."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def name(self) -> str:
        """The folder's name."""
        return self._folder.name

    def revisions(self) -> Sequence[Revision]:
        """Return the one state there is."""
        return [Revision(None, "folder", None)]

    def find_revision(self, name: str | None) -> Revision:
        """Return the one state there is; raise RevisionNotFoundError for any name."""
        if name is not None:
            raise no_revision_in(self._folder, name)
        return self.revisions()[0]

    def files(self, revision: Revision) -> Sequence[RepositoryFile]:  # noqa: ARG002 - the only one
        """List the folder's files; their hashes are not known."""
        return [
            RepositoryFile(path, (self._folder / path).stat().st_size, sha256=None, blob_id=None)
            for path in list_paths(self._folder)
        ]

    def read(
        self,
        revision: Revision,  # noqa: ARG002 - the only one
        path: str,
        *,
        start: int = 0,
        num_bytes: int | None = None,
    ) -> bytes:
        """Read (a piece of) one file; fewer bytes than asked for where the file ends."""
        return read_piece(self._folder, path, start=start, num_bytes=num_bytes)


class CloneFiles:
    """A git clone's branches and tags, those of its remote `origin` included."""

    def __init__(self, clone: Path) -> None:
        self._clone = clone
        self._lock = Lock()
        self._trees: dict[str, dict[str, _Entry]] = {}

    @property
    def name(self) -> str:
        """The clone's folder's name."""
        return self._clone.name

    def revisions(self) -> Sequence[Revision]:
        """List branches and tags, the one that is checked out first."""
        # A tag with a message is an object of its own: `*objectname` is the commit it names.
        listing = run_git(
            self._clone, "for-each-ref", "--format=%(objectname) %(*objectname) %(refname)",
            "refs/heads", "refs/remotes/origin", "refs/tags",
        )  # fmt: skip
        found: dict[str, Revision] = {}
        for line in listing.decode(errors="replace").splitlines():
            own, peeled, ref = line.split(" ", 2)
            prefix, kind = next(entry for entry in _REF_KINDS if ref.startswith(entry[0]))
            name = ref.removeprefix(prefix)
            if name != "HEAD" and is_revision_name(name):
                found.setdefault(name, Revision(name, kind, peeled or own))
        head = self._head()
        return sorted(found.values(), key=lambda r: (r.kind == "tag", r.name != head))

    def find_revision(self, name: str | None) -> Revision:
        """Resolve a branch, tag or commit; None is what is checked out."""
        wanted = name or self._head()
        if wanted is None:
            return Revision("HEAD", "commit", commit_of(self._clone, "HEAD"))
        for revision in self.revisions():
            if revision.name == wanted:
                return revision
        return Revision(wanted, "commit", resolve_commit(self._clone, wanted))

    def files(self, revision: Revision) -> Sequence[RepositoryFile]:
        """List the files at a revision; a large one by what its git-lfs pointer says."""
        return [entry.as_file(path) for path, entry in self._tree(revision).items()]

    def read(
        self, revision: Revision, path: str, *, start: int = 0, num_bytes: int | None = None
    ) -> bytes:
        """Read (a piece of) one file; raise CheckpointError where git-lfs did not fetch it."""
        entry = self._tree(revision).get(checked_path(path))
        if entry is None:
            raise CheckpointError(f"{self._clone} has no file {path} at {revision.name}")
        if num_bytes is None and entry.num_bytes > MAX_JSON_BYTES:
            raise CheckpointError(
                f"{path} is larger than {MAX_JSON_BYTES} bytes; it is no settings file"
            )
        if entry.pointer is None:
            wanted = entry.num_bytes if num_bytes is None else num_bytes
            return read_blob(self._clone, entry.blob_id, start=start, num_bytes=wanted)
        stored = find_large_file(self._clone, entry.pointer.sha256)
        if stored is None:
            raise not_fetched(self._clone, path)
        return read_piece(stored.parent, stored.name, start=start, num_bytes=num_bytes)

    def _head(self) -> str | None:
        """Name the branch that is checked out; None where it is a commit."""
        try:
            return run_git(self._clone, "symbolic-ref", "-q", "--short", "HEAD").decode().strip()
        except CheckpointError:
            return None

    def _tree(self, revision: Revision) -> dict[str, _Entry]:
        commit = str(revision.commit)
        with self._lock:
            if commit not in self._trees:
                self._trees[commit] = _read_tree(self._clone, commit)
            return self._trees[commit]


class _Entry:
    """One file of a commit, and what its pointer says where it is a large one."""

    __slots__ = ("blob_id", "pointer", "size")

    def __init__(self, blob_id: str, size: int, pointer: Pointer | None) -> None:
        self.blob_id = blob_id
        self.size = size
        self.pointer = pointer

    @property
    def num_bytes(self) -> int:
        return self.pointer.num_bytes if self.pointer else self.size

    def as_file(self, path: str) -> RepositoryFile:
        sha256 = self.pointer.sha256 if self.pointer else None
        return RepositoryFile(path, self.num_bytes, sha256=sha256, blob_id=self.blob_id)


def _read_tree(clone: Path, commit: str) -> dict[str, _Entry]:
    blobs = list_blobs(clone, commit)
    if len(blobs) > MAX_FILES:
        raise CheckpointError(f"{clone} holds more than {MAX_FILES} files; it is no model")
    sizes: dict[str, int] = {}
    for path, blob in blobs.items():
        if blob.num_bytes is None:
            raise CheckpointError(
                f"{clone} is a partial clone and lacks {path} of {commit}; fetch it with git"
            )
        sizes[blob.name] = blob.num_bytes
    pointers = read_pointers(clone, {n for n, size in sizes.items() if size <= MAX_POINTER_BYTES})
    return {
        checked_path(path): _Entry(blob.name, sizes[blob.name], pointers.get(blob.name))
        for path, blob in blobs.items()
    }


def read_pointers(clone: Path, blobs: set[str]) -> dict[str, Pointer]:
    """Read all small files in one run of git; return those that are git-lfs pointers."""
    names = sorted(blobs)
    answer = run_git(clone, "cat-file", "--batch", stdin="\n".join(names).encode() + b"\n")
    found: dict[str, Pointer] = {}
    position = 0
    for name in names:  # each: "<hash> blob <size>\n<content>\n"
        end = answer.find(b"\n", position)
        size = int(answer[position:end].rsplit(b" ", 1)[1])
        if pointer := read_pointer(answer[end + 1 : end + 1 + size]):
            found[name] = pointer
        position = end + size + 2
    return found
