"""Compares a variant's files with the hashes that are known of them, while they are loaded.

Small files are compared before anybody reads them. Weights are hashed in threads beside the reading
of weights, and the load waits for them before anything that it made is used. A record of what was
found whole lets the next load pass over files whose size, time and inode are still the same.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import time
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias

import structlog

from loaders.checkpoint.files import read_named
from loaders.checkpoint.own_places import OwnPlaces
from loaders.errors import (
    BackendError,
    CheckpointError,
    InvalidPlanError,
    LoadError,
    NotEnoughMemoryError,
    QuantizationNotFoundError,
    SettingsError,
    UnsafeCheckpointError,
    UnsupportedModelError,
    UnsupportedQuantizationError,
)
from loaders.gguf.parts import is_gguf
from loaders.reports.suspicion import Suspicion
from loaders.repository.download import Digest
from loaders.repository.known_hashes import KnownHashes, known_hashes
from loaders.repository.links import is_opened
from loaders.repository.selection import find_local, is_small

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from loaders.records import Records
    from loaders.repository.protocol import RepositoryFile
    from loaders.repository.snapshot import Snapshot
    from loaders.repository.spec import VariantSpec

log = structlog.get_logger(__name__)

# When files are hashed: the first time and when they changed since, each time, not at all.
VerifyMode: TypeAlias = Literal["changed", "always", "never"]
OnProgress: TypeAlias = "Callable[[str, float | None], None]"

PHASE = "verifying the files"
_RECORD_KEY = "verified"
_MAX_THREADS = 16
# Each piece takes the interpreter's lock twice, and may wait 5 ms for it each time: pieces this
# large keep that below a tenth of the hashing.
_PIECE_BYTES = 8 << 20
_REPORT_INTERVAL_S = 0.5
# Errors that no damaged file explains.
_UNRELATED = (NotEnoughMemoryError, BackendError, InvalidPlanError, UnsafeCheckpointError)
# Errors that come from settings and names, which were compared before; a GGUF file holds its own.
_OF_SETTINGS = (
    SettingsError, UnsupportedModelError, UnsupportedQuantizationError, QuantizationNotFoundError,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedFiles:
    """What a load has compared."""

    num_files: int  # hashed now
    num_bytes: int  # of them
    num_unchanged: int  # found whole by an earlier load, and not touched since
    num_unknown: int  # files with weights of which no hash is known
    waited_s: float  # that the load spent on it, besides what ran beside other work
    suspicions: tuple[Suspicion, ...] = ()


@dataclass(frozen=True, slots=True)
class _Damage:
    path: str  # in the variant's folder
    found: str  # what was expected, and what was found instead


@dataclass(slots=True)
class _Tally:
    """What the threads have done so far."""

    stop: threading.Event = field(default_factory=threading.Event)
    num_bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, num_bytes: int) -> None:
        with self._lock:
            self.num_bytes += num_bytes


class Verification:
    """The comparison of one variant's files, from the small ones to the last shard."""

    def __init__(
        self, spec: VariantSpec, snapshot: Snapshot, mode: VerifyMode, records: Records
    ) -> None:
        is_on = mode != "never"
        self._known = known_hashes(spec, snapshot) if is_on else KnownHashes({})
        self._spec, self._folder, self._mode, self._records = spec, snapshot.folder, mode, records
        self._places = OwnPlaces(snapshot.folder)
        self._seen: dict[str, list[int | str]] = {}  # real path → what the record will say of it
        self._tally = _Tally()
        self._pool: ThreadPoolExecutor | None = None
        self._running: list[Future[_Damage | None]] = []
        self._num_files = self._num_unchanged = self._num_unknown = 0
        self._total_bytes = 0  # of the weights that are hashed now
        self._waited_s = 0.0
        self._suspicions: tuple[Suspicion, ...] = ()

    def check_small_files(self) -> None:
        """Compare settings, tokenizer and templates. Raises CheckpointError.

        They are hashed each time: all of them take milliseconds.
        """
        began = time.monotonic()
        small = [
            file
            for path, file in sorted(self._known.files.items())
            if is_small(path) and self._is_own(path)
        ]
        found = [_compare(self._folder / file.path, file, self._tally) for file in small]
        self._num_files += len(small)
        self._waited_s += time.monotonic() - began
        damage = [entry for entry in found if entry is not None]
        if damage and not self._known.may_be_edited:
            raise self._error(damage)
        self._suspicions = tuple(_as_suspicion(entry) for entry in damage)

    def begin(self, weights: Iterable[Path]) -> None:
        """Hash those files with weights that must be, in threads of their own."""
        if self._mode == "never" or self._pool is not None:
            return
        jobs = list(self._jobs(weights))
        jobs.sort(key=lambda job: job[1].num_bytes, reverse=True)  # the longest decides the end
        num_threads = min(len(jobs), len(os.sched_getaffinity(0)), _MAX_THREADS)
        self._pool = ThreadPoolExecutor(max(1, num_threads), thread_name_prefix="verify")
        self._running = [
            self._pool.submit(_compare, path, file, self._tally) for path, file in jobs
        ]
        self._num_files += len(jobs)
        self._total_bytes = sum(file.num_bytes for _, file in jobs)

    def finish(self, on_progress: OnProgress) -> VerifiedFiles:
        """Wait for the hashes and note what is whole. Raises CheckpointError, naming the files."""
        began = time.monotonic()
        damage = self._wait(on_progress)
        self._waited_s += time.monotonic() - began
        if damage:
            self._forget_whole()
            raise self._error(damage)
        self._note_whole()
        if self._mode != "never" and not self._known.files:
            log.info("files_without_hashes", folder=str(self._folder), files=self._num_unknown)
        return VerifiedFiles(
            num_files=self._num_files,
            num_bytes=self._tally.num_bytes,
            num_unchanged=self._num_unchanged,
            num_unknown=self._num_unknown,
            waited_s=round(self._waited_s, 3),
            suspicions=self._suspicions,
        )

    @contextmanager
    def explaining_errors(self, on_progress: OnProgress) -> Iterator[None]:
        """Put a damaged file in place of the errors that it leads to; end the threads with them."""
        try:
            yield
        except LoadError as error:
            try:
                damage = self._explain(error, on_progress)
            finally:
                self._abandon()
            if damage:
                self._forget_whole()
                raise self._error(damage) from error
            raise
        except BaseException:
            self._abandon()
            raise

    def _explain(self, error: LoadError, on_progress: OnProgress) -> list[_Damage]:
        """Find the damage that may have led to an error; what is found whole is noted."""
        if self._mode == "never" or isinstance(error, _UNRELATED):
            return []
        weights = self._weights_by_name()
        settings_are_apart = not any(is_gguf(path.name) for path in weights)
        if isinstance(error, _OF_SETTINGS) and settings_are_apart:
            return []
        if misfits := list(self._misfits(weights)):
            return misfits
        self.begin(weights)
        damage = self._wait(on_progress)
        if not damage:
            self._note_whole()
        return damage

    def _misfits(self, weights: Iterable[Path]) -> Iterator[_Damage]:
        """Yield the files of another size, or missing, for which none needs to be hashed."""
        for path in weights:
            file = self._known.files.get(os.path.relpath(path, self._folder))
            if file is None:
                continue
            try:
                found = path.stat().st_size
            except OSError as error:
                yield _unreadable(file, error)
                continue
            if found != file.num_bytes:
                yield _other_size(file, found)

    def _is_own(self, path: str) -> bool:
        """Whether a file is there, and no link to somebody else's, which nothing opens."""
        file = self._folder / path
        return file.exists() and (is_opened(self._folder, path) or self._places.hold(file))

    def _jobs(self, weights: Iterable[Path]) -> Iterator[tuple[Path, RepositoryFile]]:
        """Yield what is to be hashed: it has a hash, and no record says that it was whole."""
        noted = self._read_record() if self._mode == "changed" else {}
        for path in weights:
            file = self._known.files.get(os.path.relpath(path, self._folder))
            if file is None:
                self._num_unknown += 1
                continue
            real = str(path.resolve())
            self._seen[real] = _identity(path, file)
            if noted.get(real) == self._seen[real]:
                self._num_unchanged += 1
            else:
                yield path, file

    def _weights_by_name(self) -> list[Path]:
        """Guess which files hold the weights, where opening them has failed."""
        selection = find_local(
            list(self._known.files), self._spec, partial(read_named, self._folder)
        )
        return [self._folder / path for path in selection.weights] if selection else []

    def _wait(self, on_progress: OnProgress) -> list[_Damage]:
        """Wait for all files, and end the threads: also where one fails, or the wait is ended."""
        try:
            while True:
                done, waiting = wait(self._running, _REPORT_INTERVAL_S, FIRST_EXCEPTION)
                results = [future.result() for future in done]
                if not waiting:
                    break
                percent = 100 * self._tally.num_bytes / max(1, self._total_bytes)
                on_progress(PHASE, min(100.0, percent))
            results = [future.result() for future in self._running]  # in their order
        finally:
            self._abandon()
        return [damage for damage in results if damage is not None]

    def _abandon(self) -> None:
        self._tally.stop.set()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _error(self, damage: Sequence[_Damage]) -> CheckpointError:
        files = "; ".join(f"{entry.path} is damaged: {entry.found}" for entry in damage)
        return CheckpointError(
            f"{files} ({self._spec}, in {self._folder}); {self._known.remedy(damage[0].path)}"
        )

    @property
    def _record_name(self) -> str:
        """Name the record of this folder: what is kept by commit may lie in several places."""
        return hashlib.sha256(str(self._folder.resolve()).encode()).hexdigest()

    def _read_record(self) -> dict[str, list[int | str]]:
        record = self._records.read(self._record_name, _RECORD_KEY)
        return record if isinstance(record, dict) else {}

    def _forget_whole(self) -> None:
        """Have the next load hash all again: one that trusts notes would serve what is damaged."""
        record = self._read_record()
        if self._seen.keys() & record.keys():
            left = {path: entry for path, entry in record.items() if path not in self._seen}
            self._records.write(self._record_name, _RECORD_KEY, left)

    def _note_whole(self) -> None:
        record = self._read_record()
        if any(record.get(path) != entry for path, entry in self._seen.items()):
            self._records.write(self._record_name, _RECORD_KEY, {**record, **self._seen})


def _as_suspicion(damage: _Damage) -> Suspicion:
    return Suspicion("edited_file", f"{damage.path} was edited or damaged: {damage.found}")


def _identity(path: Path, file: RepositoryFile) -> list[int | str]:
    """Say what a record holds of a file: whoever changes it seldom keeps all of it."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino, file.sha256 or str(file.blob_id)]


def _other_size(file: RepositoryFile, found: int) -> _Damage:
    return _Damage(file.path, f"{file.num_bytes} bytes expected, {found} found")


def _unreadable(file: RepositoryFile, error: OSError) -> _Damage:
    return _Damage(file.path, f"it cannot be read ({error.strerror or error})")


def _compare(path: Path, file: RepositoryFile, tally: _Tally) -> _Damage | None:
    """Hash a file and compare; None where it is what it should be, or where nobody asks."""
    try:
        # Not blocking: whatever took the file's place may be a pipe.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb", buffering=0) as content:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return _Damage(file.path, "it is no regular file")
            if status.st_size != file.num_bytes:
                return _other_size(file, status.st_size)
            digest = Digest(file)
            buffer = memoryview(bytearray(min(_PIECE_BYTES, max(1, file.num_bytes))))
            while (size := content.readinto(buffer)) and not tally.stop.is_set():
                digest.update(buffer[:size])
                tally.add(size)
    except OSError as error:
        return _unreadable(file, error)
    if digest.fits or tally.stop.is_set():
        return None
    return _Damage(file.path, digest.difference)
