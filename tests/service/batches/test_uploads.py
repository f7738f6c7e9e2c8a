from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.exc import OperationalError

from service.batches.errors import StorageError
from service.batches.file_store import FileStore, Page
from service.batches.records import Purpose
from service.batches.tables import open_database
from service.batches.uploads import DATABASE_FREE, Space, Upload
from service.errors import BodyTooLargeError, ConflictError
from tests.service.kept_batches import fill

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MEGABYTE = 1024 * 1024


@pytest.fixture
def files(tmp_path: Path) -> Iterator[FileStore]:
    database = open_database(tmp_path / "db")
    yield FileStore(database, tmp_path / "files")
    database.dispose()


async def at_once(work: Callable[[], Any]) -> Any:
    return work()


def upload_to(files: FileStore) -> Upload:
    space = Space(files, 100 * MEGABYTE, 100 * MEGABYTE)
    return Upload(files, space, at_once, owner="me", max_bytes=100 * MEGABYTE)


def test_what_the_database_takes_is_not_there_for_files(files):
    space = Space(files, MEGABYTE, MEGABYTE)
    files.database_bytes = DATABASE_FREE
    space.take("me", MEGABYTE)
    space.give_back("me", MEGABYTE)
    files.database_bytes += 1000
    with pytest.raises(BodyTooLargeError, match="results of batches"):
        space.take("me", MEGABYTE - 999)
    space.take("me", MEGABYTE - 1000)
    with pytest.raises(ConflictError, match="wait until batches are over"):
        space.require_some("other")
    files.database_bytes -= 1
    space.require_some("other")


def test_content_goes_to_the_disk_as_it_comes(files, tmp_path):
    async def check() -> None:
        async with upload_to(files) as upload:
            for _ in range(5):
                await upload.write(b"x" * MEGABYTE)
            (part,) = (tmp_path / "files").iterdir()
            assert part.stat().st_size >= 3 * MEGABYTE
            assert len(upload._waiting) <= MEGABYTE
            record = await upload.finish("a", Purpose.BATCH)
        assert files.path_of(record.id).stat().st_size == record.num_bytes == 5 * MEGABYTE

    asyncio.run(check())


def test_an_empty_file_is_one_too(files):
    async def check() -> None:
        async with upload_to(files) as upload:
            record = await upload.finish("a", Purpose.BATCH)
        assert files.path_of(record.id).read_bytes() == b""

    asyncio.run(check())


def test_what_is_broken_off_leaves_nothing(files, tmp_path):
    async def check() -> None:
        async with upload_to(files) as upload:
            await upload.write(b"x" * 2 * MEGABYTE)
            assert upload._space._coming == {"me": 2 * MEGABYTE}
        assert list((tmp_path / "files").iterdir()) == []
        assert upload._space._coming == {}

    asyncio.run(check())


def test_a_full_disk_is_told_and_leaves_nothing(files, tmp_path, monkeypatch):
    class Full:
        def write(self, _: bytes) -> int:
            raise OSError(28, "No space left on device")

        def close(self) -> None:
            """Nothing is left to write."""

    async def check() -> None:
        upload = upload_to(files)
        upload._file = Full()  # type: ignore[assignment]
        with pytest.raises(StorageError, match="No space left"):
            async with upload:
                await upload.write(b"x" * 2 * MEGABYTE)
        assert files.page("me", Page()) == []

    asyncio.run(check())


def test_a_file_whose_row_cannot_be_written_leaves_nothing(files, tmp_path):
    async def check() -> None:
        upload = upload_to(files)
        fill(files._database)
        with pytest.raises(OperationalError):
            async with upload:
                await upload.finish("a" * 100_000, Purpose.BATCH)
        assert list((tmp_path / "files").iterdir()) == []

    asyncio.run(check())


@pytest.fixture
def space(files: FileStore) -> Space:
    return Space(files, 100, 60)


def test_a_caller_may_take_its_share_and_others_what_is_left(space):
    space.take("greedy", 60)
    with pytest.raises(BodyTooLargeError, match=r"your files .*\(max_files_size_per_caller"):
        space.take("greedy", 1)
    space.take("other", 40)
    with pytest.raises(BodyTooLargeError, match=r"all callers' files .*max_files_size"):
        space.take("other", 1)
    space.give_back("greedy", 60)
    space.take("other", 20)


def test_results_beyond_a_callers_share_take_no_room_from_others(space, files):
    files.num_bytes = {"greedy": 5000}
    with pytest.raises(ConflictError, match=r"5000 bytes, at most 60 .*max_files_size_per_caller"):
        space.require_some("greedy")
    space.require_some("other")
    space.take("other", 40)
    with pytest.raises(BodyTooLargeError, match="all callers"):
        space.take("third", 1)


def test_a_share_is_never_more_than_all(files):
    space = Space(files, 100, 1000)
    with pytest.raises(BodyTooLargeError, match="may take 100 bytes"):
        space.take("me", 101)
