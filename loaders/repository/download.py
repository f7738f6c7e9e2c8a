"""Fetches the files of a commit into a cache, each checked against the hub's hash.

What is needed, what is here, whether it fits the disk; then several files at a time, each collected
in a `.partial` file that outlives any end of the process, verified, and only then given its name.
Where the bytes come from is a `FileSource`; the hub's is `loaders.repository.hub.transport`.
"""

from __future__ import annotations

import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from loaders.checkpoint.files import MAX_JSON_BYTES
from loaders.errors import CacheError, CheckpointError, HubError, LoadError
from loaders.repository.cache_layout import cache_errors, free_disk_bytes
from loaders.repository.download_progress import ProgressMeter
from loaders.repository.selection import select_files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path
    from typing import BinaryIO

    from loaders.checkpoint.weight_files import ReadJson
    from loaders.repository.cache_layout import CachedRepository
    from loaders.repository.download_progress import DownloadProgress
    from loaders.repository.protocol import RepositoryFile
    from loaders.repository.selection import Selection
    from loaders.repository.spec import VariantSpec

log = structlog.get_logger(__name__)

_AT_ONCE = 8  # files; one connection rarely fills a line, and a hub limits many
_PIECE = 1 << 20  # of what is read back from disk
_SHORT = 12  # characters of a hash that tell it apart from others
_SHA256_CHARACTERS = 64


class TransferError(Exception):
    """A request ended early, or was put off; another one may succeed."""

    def __init__(self, reason: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Body:
    """What a source answers."""

    start: int  # where the pieces begin; 0 where the source cannot begin elsewhere
    pieces: Iterator[bytes]  # raises TransferError where the connection breaks


class FileSource(Protocol):
    """Where the contents of one commit come from; several threads may ask at once."""

    def open(self, path: str, start: int) -> AbstractContextManager[Body]:
        """Read a file from a byte on. Raises TransferError, or LoadError for what stays."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long a source that fails is asked again."""

    max_tries: int = 6  # in a row without a new byte
    first_wait_s: float = 1.0  # doubled after every try
    longest_wait_s: float = 30.0
    longest_retry_after_s: float = 300.0  # that a hub may ask for
    logged_from_s: float = 0.0  # waits as long as this are logged


class Retries:
    """Counts failures without progress, waiting longer after each."""

    def __init__(self, retry_policy: RetryPolicy, stop: threading.Event | None = None) -> None:
        self._retry_policy = retry_policy
        self._stop = stop or threading.Event()
        self._failures = 0

    def progressed(self) -> None:
        """Forget the failures so far."""
        self._failures = 0

    def failed(self, what: str, error: TransferError) -> None:
        """Wait before the next try; HubError where there is none."""
        self._failures += 1
        wait_s = self._wait_s(error)
        if self._failures >= self._retry_policy.max_tries:
            raise HubError(
                f"{what} failed {self._failures} times in a row ({error}); try again later, or"
                " check the network and HF_ENDPOINT"
            ) from error
        if wait_s > self._retry_policy.longest_retry_after_s:
            raise HubError(
                f"{what} must wait {wait_s:.0f} s, says the hub ({error}); try again then"
            ) from error
        if wait_s >= self._retry_policy.logged_from_s:
            log.warning("retrying", what=what, reason=str(error), wait_s=wait_s)
        self._stop.wait(wait_s)

    def _wait_s(self, error: TransferError) -> float:
        if error.retry_after_s is not None:
            return error.retry_after_s
        doubled = self._retry_policy.first_wait_s * 2.0 ** (self._failures - 1)
        return min(doubled, self._retry_policy.longest_wait_s)


def needed_files(
    listing: Sequence[RepositoryFile], spec: VariantSpec, read: ReadJson
) -> tuple[Selection, tuple[RepositoryFile, ...]]:
    """Choose a variant's files from a commit's listing; see `select_files`.

    A small file that is too large to be read by anything here is left where it is.
    """
    by_path = {file.path: file for file in listing}
    selection = select_files(by_path, spec, read)
    large = {p for p in selection.small if by_path[p].num_bytes > MAX_JSON_BYTES}
    if large:
        log.warning("files_skipped", reason=f"above {MAX_JSON_BYTES} bytes", files=sorted(large))
    return selection, tuple(by_path[path] for path in selection.paths if path not in large)


def download_files(
    files: Sequence[RepositoryFile],
    source: FileSource,
    cached: CachedRepository,
    commit: str,
    *,
    retry_policy: RetryPolicy,
    on_progress: Callable[[DownloadProgress], None],
    free: Callable[[Path], int] = free_disk_bytes,
) -> dict[RepositoryFile, str]:
    """Fetch what is missing of a commit's files; return the sha256 of each.

    The caller holds the repository's lock. Raises CacheError where the disk has too little space,
    before a byte is fetched; CheckpointError for a file that came damaged twice; HubError.
    """
    with cache_errors(cached.cache_dir):
        missing = cached.unchecked(commit, files)
        _check_space(missing, cached, free)
        (cached.folder / "blobs").mkdir(parents=True, exist_ok=True)
        meter = ProgressMeter(sum(file.num_bytes for file in _distinct(missing)), on_progress)
        job = _Job(source, cached, retry_policy, meter, threading.Event())
        fetched = _fetch_all(_distinct(missing), job)
    known = cached.manifest(commit)
    hashes = {cached.blob(file): sha256 for file, sha256 in fetched.items()}
    for file in files:
        if cached.blob(file) not in hashes and known is not None:
            hashes[cached.blob(file)] = known.files[file.path].sha256
    return {file: hashes[cached.blob(file)] for file in files}


def _distinct(files: Iterable[RepositoryFile]) -> list[RepositoryFile]:
    """Leave one file of each content: a repository may hold the same bytes under two names."""
    first: dict[str | None, RepositoryFile] = {}
    for file in files:
        first.setdefault(file.sha256 or file.blob_id, file)
    return list(first.values())


def _check_space(
    missing: Sequence[RepositoryFile], cached: CachedRepository, free: Callable[[Path], int]
) -> None:
    needed = sum(_missing_bytes(file, cached) for file in _distinct(missing))
    there = free(cached.folder)
    if needed > there:
        raise CacheError(
            f"{cached.repo} needs {_in_words(needed)} more on the disk of {cached.cache_dir}, which"
            f" has {_in_words(there)} free; free some space, or name another folder with"
            " --cache-dir"
        )


def _missing_bytes(file: RepositoryFile, cached: CachedRepository) -> int:
    if cached.blob(file).exists():
        return 0
    partial = cached.partial(file)
    return max(0, file.num_bytes - (partial.stat().st_size if partial.exists() else 0))


def _in_words(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 10_000_000 else f"{num_bytes} bytes"


@dataclass(frozen=True, slots=True)
class _Job:
    """What the threads of one download share."""

    source: FileSource
    cached: CachedRepository
    retry_policy: RetryPolicy
    meter: ProgressMeter
    stop: threading.Event  # set once one of them failed, or the user gave up


def _fetch_all(files: Sequence[RepositoryFile], job: _Job) -> dict[RepositoryFile, str]:
    with ThreadPoolExecutor(max_workers=_AT_ONCE, thread_name_prefix="download") as pool:
        futures = {pool.submit(_fetch, file, job): file for file in files}
        try:
            return {futures[done]: done.result() for done in as_completed(futures)}
        except BaseException:
            job.stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _fetch(file: RepositoryFile, job: _Job) -> str:
    """Bring one file to its place and return its sha256; a damaged one is fetched again once."""
    blob, partial = job.cached.blob(file), job.cached.partial(file)
    if blob.exists():
        # Another program fetched it, or a download that never came to its manifest.
        if (digest := _digest_of(blob, file)).fits:
            job.meter.found(file.num_bytes)
            return digest.sha256
        log.warning("cached_file_damaged", path=file.path, found=digest.found)
        blob.unlink()
    digest = _receive(file, partial, job)
    if not digest.fits:
        log.warning("downloaded_file_damaged", path=file.path, found=digest.found, again=True)
        partial.unlink()
        job.meter.found(-file.num_bytes)
        digest = _receive(file, partial, job)
    if not digest.fits:
        partial.unlink()
        raise damaged(file, digest, job.cached.repo)
    partial.replace(blob)
    _sync_folder(blob.parent)
    return digest.sha256


def damaged(file: RepositoryFile, digest: Digest, repo: str) -> CheckpointError:
    """Say that a file came otherwise than the hub promised."""
    return CheckpointError(
        f"{file.path} of {repo} came damaged: expected {digest.expected}, found {digest.found}; try"
        " again later, or with another mirror (HF_ENDPOINT)"
    )


def _receive(file: RepositoryFile, partial: Path, job: _Job) -> Digest:
    """Collect all bytes of a file in its partial one, going on from what lies there."""
    # Unbuffered: what has come is the file's, however the process ends.
    with partial.open("a+b", buffering=0) as out:
        transfer = _Transfer(file, out, job)
        transfer.run()
        os.fsync(out.fileno())
    return transfer.digest


class _Transfer:
    """One file on its way: what has been written of it, and its hash so far."""

    def __init__(self, file: RepositoryFile, out: BinaryIO, job: _Job) -> None:
        self._file = file
        self._out = out
        self._job = job
        self._tries = Retries(job.retry_policy, job.stop)
        self._furthest = 0
        self.digest = Digest(file)
        self._read_back()

    def run(self) -> None:
        """Ask for the rest until all is here."""
        while self.digest.num_bytes < self._file.num_bytes:
            try:
                self._ask()
            except TransferError as error:
                self._tries.failed(f"fetching {self._file.path}", error)
            self._check_stopped()

    def _read_back(self) -> None:
        self._out.seek(0)
        while piece := self._out.read(_PIECE):
            self.digest.update(piece)
            self._check_stopped()
        self._job.meter.found(self.digest.num_bytes)
        if self.digest.num_bytes > self._file.num_bytes:
            self._restart()
        self._furthest = self.digest.num_bytes

    def _ask(self) -> None:
        start = self.digest.num_bytes
        with self._job.source.open(self._file.path, start) as body:
            if body.start not in (0, start):
                raise TransferError(f"asked for bytes from {start} on, got them from {body.start}")
            if body.start != start:
                self._restart()
            for piece in body.pieces:
                self._take(piece)
                self._check_stopped()
        if self.digest.num_bytes < self._file.num_bytes:
            raise TransferError(
                f"the answer ended after {self.digest.num_bytes} of {self._file.num_bytes} bytes"
            )

    def _take(self, piece: bytes) -> None:
        # More than promised is kept from filling the disk; the hash then tells.
        piece = piece[: self._file.num_bytes - self.digest.num_bytes]
        view = memoryview(piece)
        while view:
            view = view[self._out.write(view) :]
        self.digest.update(piece)
        self._job.meter.received(len(piece))
        # A server that always begins anew and always breaks off makes no progress.
        if self.digest.num_bytes > self._furthest:
            self._furthest = self.digest.num_bytes
            self._tries.progressed()

    def _restart(self) -> None:
        self._out.truncate(0)
        self._out.seek(0)
        self._job.meter.found(-self.digest.num_bytes)
        self.digest = Digest(self._file)

    def _check_stopped(self) -> None:
        if self._job.stop.is_set():
            raise LoadError("the download was stopped")


class Digest:
    """A file's hashes as its bytes come: sha256, and git's where the hub names it by that."""

    def __init__(self, file: RepositoryFile) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        header = b"blob %d\0" % file.num_bytes
        self._git = _git_hash(str(file.blob_id), header) if file.sha256 is None else None
        self.num_bytes = 0

    def update(self, piece: bytes | memoryview) -> None:
        """Add the next bytes."""
        self.num_bytes += len(piece)
        self._sha256.update(piece)
        if self._git is not None:
            self._git.update(piece)

    @property
    def sha256(self) -> str:
        """The content's sha256, for the manifest."""
        return self._sha256.hexdigest()

    @property
    def fits(self) -> bool:
        """Whether this is the content that the hub listed."""
        return self.expected == self.found

    @property
    def expected(self) -> str:
        """Say in words what the hub promised."""
        return f"{self._file.num_bytes} bytes with {self._kind} {self._expected_name}"

    @property
    def found(self) -> str:
        """Say in words what came."""
        return f"{self.num_bytes} bytes with {self._kind} {self._found_name}"

    @property
    def difference(self) -> str:
        """Say in words how the contents differ, in as much of the hashes as people compare."""
        expected, found = self._expected_name[:_SHORT], self._found_name[:_SHORT]
        return f"{self._kind} {expected}… expected, {found}… found"

    @property
    def _kind(self) -> str:
        return "sha256" if self._git is None else "git id"

    @property
    def _expected_name(self) -> str:
        return self._file.sha256 or str(self._file.blob_id)

    @property
    def _found_name(self) -> str:
        return self.sha256 if self._git is None else self._git.hexdigest()


def _git_hash(blob_id: str, header: bytes) -> Any:
    """Begin git's hash of a content: sha1, or sha256 in repositories of that format."""
    if len(blob_id) == _SHA256_CHARACTERS:
        return hashlib.sha256(header)
    return hashlib.sha1(header, usedforsecurity=False)


def _digest_of(path: Path, file: RepositoryFile) -> Digest:
    digest = Digest(file)
    with path.open("rb") as content:
        while piece := content.read(_PIECE):
            digest.update(piece)
    return digest


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
