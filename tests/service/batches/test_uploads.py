from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from service.batches.errors import StorageError
from service.batches.file_store import FileStore, Page
from service.batches.records import Purpose
from service.batches.tables import open_database
from service.batches.uploads import Space, Upload

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
    space = Space(files, 100 * MEGABYTE)
    return Upload(files, space, at_once, owner="me", max_bytes=100 * MEGABYTE)


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
            assert upload._space.num_coming == 2 * MEGABYTE
        assert list((tmp_path / "files").iterdir()) == []
        assert upload._space.num_coming == 0

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
