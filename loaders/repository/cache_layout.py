"""One repository in a cache of the hub's own layout, so that other programs find it as well.

    models--owner--name/
        blobs/<sha256 or git's id>            contents, by what the hub names them
        snapshots/<commit>/<file>             relative links to blobs refs/<branch>
        the commit that a branch pointed to manifests/<commit>.json               ours: what was
        checked, see `loaders.repository.manifest`

Knows paths, links and locks; what is fetched, and how it is checked, is
`loaders.repository.download`'s.
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
from loaders.repository.manifest import (
    CheckedFile,
    Manifest,
    read_manifest,
    write_manifest,
    write_whole,
)
from loaders.repository.protocol import is_commit, is_revision_name

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from loaders.repository.protocol import RepositoryFile

_SHORT_COMMIT = re.compile(r"[0-9a-f]{7,64}")
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_MAX_REF_BYTES = 200
_LOCK_POLL_S = 0.2
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class CachedRepository:
    """The folder of one repository in a cache; nothing is written outside it."""

    def __init__(self, cache_dir: Path, repo: str) -> None:
        self.cache_dir = cache_dir
        self.repo = repo
        self.folder = repository_folder(cache_dir, repo)

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

    def manifest_path(self, commit: str) -> Path:
        """Say where a commit's manifest is kept."""
        return self.folder / "manifests" / f"{self.snapshot(commit).name}.json"

    def manifest(self, commit: str) -> Manifest | None:
        """Return what is known of a commit; None where another program fetched it, or none."""
        return read_manifest(self.manifest_path(commit))

    def revisions(self) -> list[str]:
        """List the branches and tags that the cache knows."""
        refs = self.folder / "refs"
        return sorted(str(path.relative_to(refs)) for path in refs.rglob("*") if path.is_file())

    def commit_of(self, revision: str) -> str | None:
        """Return the commit that a branch, a tag or a commit's name stands for here."""
        ref = self._ref(revision)
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
        for file in checked:
            self._link(self.snapshot(commit) / file.path, self.blob(file))
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

    def point(self, revision: str, commit: str) -> None:
        """Remember what a branch or tag points to; a commit's own name needs no memory."""
        if commit.startswith(revision) and _SHORT_COMMIT.fullmatch(revision):
            return
        ref = self._ref(revision)
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

    def _ref(self, revision: str) -> Path:
        if not is_revision_name(revision):
            raise InvalidSpecError(f"{revision[:80]!r} cannot be a branch's name")
        return self.folder / "refs" / revision

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
    if not _HASH.fullmatch(name):
        raise UnsafeCheckpointError(f"the hub names {file.path} by no hash it could be checked by")
    return name


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
