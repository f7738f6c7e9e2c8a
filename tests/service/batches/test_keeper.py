from __future__ import annotations

import asyncio

import pytest

from service.batches.errors import FolderTakenError, StorageError
from service.batches.file_store import Page
from service.batches.keeper import BatchKeeper
from service.batches.records import Purpose
from service.batches.runner import Answer
from service.errors import BodyTooLargeError, ConflictError, NotFoundError
from tests.service.kept_batches import COMPLETIONS, jsonl, limits, line


async def answer(url: str, body: bytes, owner: str, request_id: str) -> Answer:
    return Answer(status=200, request_id=request_id, body=b"{}")


async def never(url: str, body: bytes, owner: str, request_id: str) -> Answer:
    await asyncio.Event().wait()
    raise AssertionError


async def kept(keeper: BatchKeeper, content: bytes, owner: str = "me") -> str:
    async with await keeper.begin_upload(owner) as upload:
        await upload.write(content)
        return (await upload.finish("a.jsonl", Purpose.BATCH)).id


def values(file_id: str) -> dict[str, object]:
    return {
        "input_file_id": file_id,
        "endpoint": COMPLETIONS,
        "completion_window": "24h",
        "metadata": None,
        "output_expires_after_s": None,
        "created_at": 1,
        "expires_at": 2**40,
    }


def test_nothing_is_made_before_anything_is_left_here(tmp_path):
    async def check() -> None:
        keeper = BatchKeeper(tmp_path / "state", limits())
        await keeper.start(answer)
        await keeper.close()

    asyncio.run(check())
    assert not (tmp_path / "state").exists()


def test_the_folder_is_its_owners_alone(tmp_path):
    async def check() -> None:
        keeper = BatchKeeper(tmp_path / "state", limits())
        await keeper.start(answer)
        await kept(keeper, b"x")
        await keeper.close()

    asyncio.run(check())
    assert (tmp_path / "state").stat().st_mode & 0o077 == 0


def test_two_servers_never_have_the_same_folder(tmp_path):
    async def check() -> None:
        first, second = (BatchKeeper(tmp_path, limits()) for _ in range(2))
        for keeper in (first, second):
            await keeper.start(answer)
        file_id = await kept(first, b"x")
        with pytest.raises(FolderTakenError, match="state_dir"):
            await second.file("me", file_id)
        await first.close()
        assert (await second.file("me", file_id)).id == file_id
        await second.close()

    asyncio.run(check())


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")

    async def check() -> None:
        keeper = BatchKeeper(tmp_path / "file" / "state", limits())
        await keeper.start(answer)
        with pytest.raises(StorageError):
            await keeper.begin_upload("me")
        await keeper.close()

    asyncio.run(check())


def test_open_batches_go_on_after_a_restart(tmp_path):
    async def check() -> None:
        keeper = BatchKeeper(tmp_path, limits())
        await keeper.start(never)
        content = jsonl(line("a"), line("b"))
        batch = await keeper.create_batch("me", values(await kept(keeper, content)))
        assert keeper.num_open_batches == 1
        await keeper.close()

        keeper = BatchKeeper(tmp_path, limits())
        await keeper.start(answer)
        assert keeper._runner is not None
        await keeper._runner.until_over(batch.id)
        done = await keeper.batch("me", batch.id)
        assert (done.status.value, done.num_completed) == ("completed", 2)
        await keeper.close()

    asyncio.run(check())


def test_files_and_batches_are_their_owners_alone(tmp_path):
    async def check() -> None:
        keeper = BatchKeeper(tmp_path, limits())
        await keeper.start(answer)
        file_id = await kept(keeper, jsonl(line("a")))
        batch = await keeper.create_batch("me", values(file_id))
        stranger = "somebody else"
        for ask in (
            lambda: keeper.file(stranger, file_id),
            lambda: keeper.path_of(stranger, file_id),
            lambda: keeper.delete_file(stranger, file_id),
            lambda: keeper.create_batch(stranger, values(file_id)),
            lambda: keeper.batch(stranger, batch.id),
            lambda: keeper.cancel_batch(stranger, batch.id),
            lambda: keeper.files(stranger, Page(), after=file_id, purpose=None),
        ):
            with pytest.raises(NotFoundError):
                await ask()
        assert await keeper.files(stranger, Page(), after=None, purpose=None) == []
        assert await keeper.batches(stranger, Page(), after=None) == []
        await keeper.close()

    asyncio.run(check())


def test_a_file_that_an_open_batch_needs_stays(tmp_path):
    async def check() -> None:
        keeper = BatchKeeper(tmp_path, limits())
        await keeper.start(never)
        file_id = await kept(keeper, jsonl(line("a")))
        batch = await keeper.create_batch("me", values(file_id))
        with pytest.raises(ConflictError, match="batch"):
            await keeper.delete_file("me", file_id)
        await keeper.cancel_batch("me", batch.id)
        assert keeper._runner is not None
        await keeper._runner.until_over(batch.id)
        await keeper.delete_file("me", file_id)
        with pytest.raises(ConflictError, match="cancelled"):
            await keeper.cancel_batch("me", batch.id)
        await keeper.close()

    asyncio.run(check())


def test_no_more_batches_are_open_than_allowed(tmp_path):
    async def check() -> None:
        keeper = BatchKeeper(tmp_path, limits(max_open_batches=2))
        await keeper.start(never)
        file_id = await kept(keeper, jsonl(line("a")))
        for _ in range(2):
            await keeper.create_batch("me", values(file_id))
        with pytest.raises(ConflictError, match="at most 2"):
            await keeper.create_batch("me", values(file_id))
        await keeper.close()

    asyncio.run(check())


def test_files_are_bounded_each_and_together_and_deleting_makes_room(tmp_path):
    async def check() -> None:
        keeper = BatchKeeper(tmp_path, limits(max_file_bytes=100, max_files_bytes=250))
        await keeper.start(answer)
        with pytest.raises(BodyTooLargeError, match="max_file_size"):
            await kept(keeper, b"x" * 101)
        first = await kept(keeper, b"x" * 100)
        await kept(keeper, b"x" * 100)
        with pytest.raises(BodyTooLargeError, match="delete some"):
            await kept(keeper, b"x" * 51)
        async with await keeper.begin_upload("me") as coming:
            await coming.write(b"x" * 40)
            with pytest.raises(BodyTooLargeError, match="delete some"):
                await kept(keeper, b"x" * 11)
        await kept(keeper, b"x" * 11)  # what was coming was given up, and its room
        await keeper.delete_file("me", first)
        await kept(keeper, b"x" * 100)
        await keeper.close()
        names = [path.name for path in (tmp_path / "files").iterdir()]
        assert len(names) == 3
        assert not any(name.endswith(".part") for name in names)

    asyncio.run(check())
