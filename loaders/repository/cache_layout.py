"""One repository in a cache of the hub's own layout, which other programs read and write as well.

    models--owner--name/
    ├── blobs/<hash>                 contents: sha256 of large files, git's hash of small ones
    ├── refs/<branch or tag>         the commit that it named when it was last asked for
    ├── snapshots/<commit>/<file>    relative links to the blobs; only files that were fetched
    └── manifests/<commit>.json      ours: what was checked, see `loaders.repository.manifest`

All who read or write a cache do it through `CachedRepository`, which knows paths, links and locks.
What is fetched, and how it is checked, is `loaders.repository.download`'s; what a variant needs of
a snapshot is `loaders.repository.hub.snapshots`'.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from loaders.cache import repository_folder
from loaders.errors import CacheError, InvalidSpecError, UnsafeCheckpointError
from loaders.repository.local_files import list_paths
from loaders.repository.manifest import (
    CheckedFile,
    Manifest,
    read_manifest,
    write_manifest,
    write_whole,
)
from loaders.repository.protocol import RepositoryFile, is_commit, is_revision_name

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

_SHORT_COMMIT = re.compile(r"[0-9a-f]{7,64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_BLOB_ID = re.compile(r"[0-9a-f]{40}")
_MAX_REF_BYTES = 200
_LOCK_POLL_S = 0.2
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class CachedRepository:
    """The folder of one repository in a cache; nothing is written outside it."""

    def __init__(self, cache_dir: Path, repo: str) -> None:
        self.cache_dir = cache_dir
        self.repo = repo
        self.folder = repository_folder(cache_dir, repo)

    @classmethod
    def of_snapshot(cls, snapshot: Path) -> CachedRepository:
        """Return the repository that a snapshot's folder belongs to."""
        folder = snapshot.parent.parent
        return cls(folder.parent, folder.name.removeprefix("models--").replace("--", "/"))

    def is_cached(self) -> bool:
        """Tell whether any commit of it is here."""
        snapshots = self.folder / "snapshots"
        return snapshots.is_dir() and any(snapshots.iterdir())

    def blob(self, file: RepositoryFile) -> Path:
        """Say where a file's content lies, once it is whole and checked."""
        return self.folder / "blobs" / _content_name(file)

    def partial(self, file: RepositoryFile) -> Path:
        """Say where a file's content is collected: by its hash, so it fits no other content."""
        return self.folder / "blobs" / f"{_content_name(file)}.partial"

    def snapshot(self, commit: str) -> Path:
        """Say where a commit's files are linked."""
        if not is_commit(commit):
            raise UnsafeCheckpointError(f"{self.repo}: {commit[:80]!r} is no commit's name")
        return self.folder / "snapshots" / commit

    def ref(self, revision: str) -> Path:
        """Say where it is kept what a branch or tag points to."""
        if not is_revision_name(revision):
            raise InvalidSpecError(f"{revision[:80]!r} cannot be a branch's name")
        return self.folder / "refs" / revision

    def manifest_path(self, commit: str) -> Path:
        """Say where a commit's manifest is kept."""
        return self.folder / "manifests" / f"{self.snapshot(commit).name}.json"

    def manifest(self, commit: str) -> Manifest | None:
        """Return what is known of a commit; None where another program fetched it, or none."""
        return read_manifest(self.manifest_path(commit))

    def has_snapshot(self, commit: str | None) -> bool:
        """Tell whether any file of a commit is here; what is no commit's whole name has none."""
        return commit is not None and is_commit(commit) and self.snapshot(commit).is_dir()

    def commits(self) -> list[str]:
        """List the commits of which any file is here."""
        return sorted(path.name for path in self.folder.glob("snapshots/*") if is_commit(path.name))

    def paths(self, commit: str) -> list[str]:
        """List the files of a commit that are here."""
        return list_paths(self.snapshot(commit))

    def files(self, commit: str) -> list[RepositoryFile]:
        """List the same with their sizes, and the hashes that their blobs are named by."""
        return [self._file(self.snapshot(commit), path) for path in self.paths(commit)]

    def revisions(self) -> list[str]:
        """List the branches and tags that the cache knows; it does not tell the two apart."""
        refs = self.folder / "refs"
        found = sorted(path for path in refs.rglob("*") if path.is_file())
        return [path.relative_to(refs).as_posix() for path in found]

    def commit_of(self, revision: str) -> str | None:
        """Return the commit that a branch, a tag or a commit's name stands for here."""
        ref = self.ref(revision)
        if ref.is_file() and ref.stat().st_size <= _MAX_REF_BYTES:
            commit = ref.read_text(encoding="utf-8", errors="replace").strip()
            return commit if is_commit(commit) else None
        if not _SHORT_COMMIT.fullmatch(revision):
            return None
        found = [path.name for path in self.folder.glob(f"snapshots/{revision}*")]
        return found[0] if len(found) == 1 else None

    def is_whole(self, commit: str, paths: Collection[str]) -> bool:
        """Tell whether all these files were fetched, checked, and still are there."""
        manifest, folder = self.manifest(commit), self.snapshot(commit)
        return manifest is not None and all(
            path in manifest.files and _size(folder / path) == manifest.files[path].num_bytes
            for path in paths
        )

    def unchecked(self, commit: str, files: Sequence[RepositoryFile]) -> list[RepositoryFile]:
        """List those whose content is not here, or was never compared with its hash."""
        manifest = self.manifest(commit)
        return [
            file
            for file in files
            if manifest is None
            or file.path not in manifest.files
            or _size(self.blob(file)) != file.num_bytes
        ]

    def publish(
        self,
        commit: str,
        listing: Sequence[RepositoryFile],
        checked: Mapping[RepositoryFile, str],
        endpoint: str,
    ) -> None:
        """Make files of a commit visible, all of which are whole.

        checked: file → its sha256.
        """
        self.link(commit, checked)
        known = self.manifest(commit)
        entries = {f.path: CheckedFile(f.num_bytes, sha256) for f, sha256 in checked.items()}
        manifest = Manifest(
            repo=self.repo,
            commit=commit,
            endpoint=endpoint,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            listing=tuple(listing),
            files={**(known.files if known else {}), **entries},
        )
        write_manifest(self.manifest_path(commit), manifest)

    def link(self, commit: str, files: Iterable[RepositoryFile]) -> None:
        """Make files of a commit appear in its snapshot; their contents are here."""
        for file in files:
            self._link(self.snapshot(commit) / file.path, self.blob(file))

    def point(self, revision: str, commit: str) -> None:
        """Remember what a branch or tag points to; a commit's own name needs no memory."""
        if commit.startswith(revision) and _SHORT_COMMIT.fullmatch(revision):
            return
        ref = self.ref(revision)
        if not ref.is_file() or ref.read_bytes() != commit.encode():
            ref.parent.mkdir(parents=True, exist_ok=True)
            write_whole(ref, commit.encode())

    def forget(self, commit: str, paths: Collection[str]) -> None:
        """Remove damaged contents, so that they are fetched again."""
        for path in paths:
            link = self.snapshot(commit) / path
            if link.is_symlink():
                target = link.resolve()
                if target.parent == (self.folder / "blobs").resolve():
                    target.unlink(missing_ok=True)
            link.unlink(missing_ok=True)

    @contextmanager
    def lock(self, on_wait: Callable[[], None]) -> Iterator[None]:
        """Let one process at a time fetch this repository; call `on_wait` where another does.

        The lock is the kernel's (flock): it goes with its process, however that ends.
        """
        path = self.cache_dir / ".locks" / self.folder.name / "tetrad.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            on_wait()
            lock.acquire(poll_interval=_LOCK_POLL_S)
        try:
            yield
        finally:
            lock.release()

    def _file(self, snapshot: Path, path: str) -> RepositoryFile:
        blob = (snapshot / path).resolve()
        return RepositoryFile(
            path=path,
            num_bytes=(snapshot / path).stat().st_size,
            sha256=blob.name if _SHA256.fullmatch(blob.name) else None,
            blob_id=blob.name if _BLOB_ID.fullmatch(blob.name) else None,
        )

    def _link(self, link: Path, blob: Path) -> None:
        target = os.path.relpath(blob, link.parent)
        if link.is_symlink() and os.readlink(link) == target:
            return
        link.parent.mkdir(parents=True, exist_ok=True)
        fresh = link.with_name(f".{blob.name}.link")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(target)
        fresh.replace(link)


@contextmanager
def cache_errors(cache_dir: Path) -> Iterator[None]:
    """Turn what writing to the cache may end in into CacheError, which says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise CacheError(
                f"the disk of {cache_dir} is full; free some space, or name another folder with"
                " --cache-dir, and try again: what was fetched is kept, and the download goes on"
                " from there"
            ) from error
        raise CacheError(
            f"the cache {cache_dir} cannot be used ({error.strerror or error}); check who may"
            " write there, or name another folder with --cache-dir"
        ) from error


def free_disk_bytes(folder: Path) -> int:
    """Ask how much the disk of a folder, which need not exist yet, has to spare."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _content_name(file: RepositoryFile) -> str:
    name = file.sha256 or file.blob_id or ""
    if not (_SHA256.fullmatch(name) or _BLOB_ID.fullmatch(name)):
        raise UnsafeCheckpointError(f"the hub names {file.path} by no hash it could be checked by")
    return name


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
