"""A disk that is really full: a small one in memory, which root may mount."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from service.batches import disk_faults
from service.batches.attempts import Answer
from service.batches.errors import StorageError
from service.batches.file_store import Page
from service.batches.keeper import BatchKeeper
from service.batches.records import BatchStatus, Purpose
from service.errors import ConflictError
from tests.service.kept_batches import COMPLETIONS, jsonl, limits, line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NUM_LINES = 60


@pytest.fixture(params=["300k", "1m"])
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("only root mounts a disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    asked = [mount, "-t", "tmpfs", "-o", f"size={request.param}", "tmpfs", str(folder)]
    if subprocess.run(asked, check=False, capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # also after a failure


def fill(disk: Path) -> None:
    with contextlib.suppress(OSError), (disk / "more").open("ab", 0) as file:
        while True:
            file.write(b"x" * 512)


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not is_so():
            await asyncio.sleep(0.01)


async def keep(keeper: BatchKeeper, content: bytes) -> str:
    async with await keeper.begin_upload("me") as upload:
        await upload.write(content)
        return (await upload.finish("a", Purpose.BATCH)).id


def test_files_can_be_removed_and_the_batch_ended_once_there_is_room(disk, monkeypatch):
    monkeypatch.setattr(disk_faults, "FIRST_WAIT_S", 0.05)

    async def check() -> None:
        may_answer = asyncio.Event()

        async def execute(url: str, body: bytes, owner: str, request_id: str) -> Answer:
            await may_answer.wait()
            return Answer(status=200, request_id=request_id, body=b'"%s"' % (b"x" * 2000))

        keeper = BatchKeeper(disk / "batches", limits())
        await keeper.start(execute)
        others = [await keep(keeper, b"x" * 8000) for _ in range(2)]
        file_id = await keep(keeper, jsonl(*(line(str(each)) for each in range(NUM_LINES))))
        asked = {"input_file_id": file_id, "endpoint": COMPLETIONS, "completion_window": "24h"}
        times = {"created_at": 1, "expires_at": 2**40, "output_expires_after_s": None}
        batch = await keeper.create_batch("me", {**asked, **times, "metadata": None})
        await until(lambda: keeper.counts.num_running == 4)
        fill(disk)
        may_answer.set()
        await until(lambda: keeper.num_stopped_batches == 1)
        assert keeper.num_open_batches == 1
        with pytest.raises(StorageError):
            await keep(keeper, b"x" * 8000)
        with pytest.raises(ConflictError):
            await keeper.delete_file("me", file_id)
        for other in others:
            await keeper.delete_file("me", other)
        left = await keeper.files("me", Page(), after=None, purpose=None)
        assert [each.id for each in left] == [file_id]
        (disk / "more").unlink()
        await keeper.cancel_batch("me", batch.id)
        await until(lambda: keeper.num_open_batches == 0)
        assert (await keeper.batch("me", batch.id)).status is BatchStatus.CANCELLED
        await keeper.delete_file("me", file_id)
        await keeper.close()

    asyncio.run(check())
