from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from service.batches import disk_faults, reopening
from service.batches import folder as folder_module
from service.batches import keeper as keeper_module
from service.batches.attempts import Answer, Execute
from service.batches.errors import FolderTakenError, StorageError
from service.batches.file_store import Page
from service.batches.keeper import BatchKeeper
from service.batches.records import BatchRecord, BatchStatus, Purpose
from service.errors import BodyTooLargeError, ConflictError, NotFoundError
from tests.service.kept_batches import COMPLETIONS, empty, fill, jsonl, limits, line

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sqlalchemy import Engine


async def answer(url: str, body: bytes, owner: str, request_id: str) -> Answer:
    return Answer(status=200, request_id=request_id, body=b"{}")


async def never(url: str, body: bytes, owner: str, request_id: str) -> Answer:
    await asyncio.Event().wait()
    raise AssertionError


async def kept(
    keeper: BatchKeeper, content: bytes, owner: str = "me", lasts_s: int | None = None
) -> str:
    async with await keeper.begin_upload(owner) as upload:
        await upload.write(content)
        return (await upload.finish("a.jsonl", Purpose.BATCH, lasts_s)).id


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_so():
            await asyncio.sleep(0.001)


def on_disk(folder: Path) -> set[str]:
    return {path.name for path in (folder / "files").iterdir()}


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
        asked = [keeper.create_batch("me", values(file_id)) for _ in range(6)]  # all at once
        got = await asyncio.gather(*asked, return_exceptions=True)
        assert sum(isinstance(each, ConflictError) for each in got) == 4
        assert keeper.num_open_batches == 2
        with pytest.raises(ConflictError, match=r"at most 2 .*max_open_batches\)"):
            await keeper.create_batch("me", values(file_id))
        await keeper.close()

    asyncio.run(check())


def test_no_caller_has_all_batches_that_may_be_open(tmp_path):
    async def check() -> None:
        own = limits(max_open_batches=4, max_open_batches_per_caller=2)
        keeper = BatchKeeper(tmp_path, own)
        await keeper.start(never)
        first, second = [await kept(keeper, jsonl(line("a")), owner=each) for each in "ab"]
        for _ in range(2):
            batch = await keeper.create_batch("a", values(first))
        with pytest.raises(ConflictError, match=r"2 of your .*max_open_batches_per_caller"):
            await keeper.create_batch("a", values(first))
        await keeper.create_batch("b", values(second))
        await keeper.cancel_batch("a", batch.id)
        assert keeper._runner is not None
        await keeper._runner.until_over(batch.id)
        await keeper.create_batch("a", values(first))
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


def test_a_file_goes_from_the_disk_when_its_time_is_over_and_others_stay(tmp_path):
    async def check() -> None:
        keeper = BatchKeeper(tmp_path, limits())
        await keeper.start(answer)
        lasting, later, soon = [await kept(keeper, b"x", lasts_s=s) for s in (None, 3600, 1)]
        assert (await keeper.file("me", soon)).id == soon
        await until(lambda: on_disk(tmp_path) == {lasting, later})
        with pytest.raises(NotFoundError):
            await keeper.file("me", soon)
        await keeper.close()

    asyncio.run(check())


def test_an_expired_file_is_not_found_though_it_lies_there_for_its_batch_and_goes_with_its_end(
    tmp_path,
):
    async def check() -> None:
        keeper = BatchKeeper(tmp_path, limits())
        await keeper.start(never)
        used = await kept(keeper, jsonl(line("a")), lasts_s=1)
        batch = await keeper.create_batch("me", values(used))
        gone = await kept(keeper, b"x", lasts_s=1)
        await until(lambda: on_disk(tmp_path) == {used})
        for ask in (keeper.file, keeper.path_of, keeper.delete_file):
            with pytest.raises(NotFoundError):
                await ask("me", used)
        await keeper.cancel_batch("me", batch.id)
        await until(lambda: used not in on_disk(tmp_path))
        assert (await keeper.batch("me", batch.id)).error_file_id in on_disk(tmp_path)
        assert gone not in on_disk(tmp_path)
        await keeper.close()

    asyncio.run(check())


def test_files_that_expired_while_no_server_ran_go_at_the_next_start(tmp_path):
    async def check() -> None:
        keeper = BatchKeeper(tmp_path, limits())
        await keeper.start(answer)
        await kept(keeper, b"x", lasts_s=1)
        await keeper.close()
        await asyncio.sleep(1.1)
        assert len(on_disk(tmp_path)) == 1
        again = BatchKeeper(tmp_path, limits())
        await again.start(answer)
        await until(lambda: on_disk(tmp_path) == set())
        await again.close()

    asyncio.run(check())


def test_batches_go_on_once_a_folder_that_could_not_be_opened_can(tmp_path, monkeypatch):
    monkeypatch.setattr(disk_faults, "FIRST_WAIT_S", 0.01)

    async def check() -> None:
        first = BatchKeeper(tmp_path, limits())
        await first.start(never)
        batch = await first.create_batch("me", values(await kept(first, jsonl(line("a")))))
        await first.close()

        faults = [OSError(5, "I/O error")] * 3
        real = folder_module.open_database

        def faulty(path: Path) -> Engine:
            if faults:
                raise faults.pop()
            return real(path)

        monkeypatch.setattr(folder_module, "open_database", faulty)
        second = BatchKeeper(tmp_path, limits())
        await second.start(answer)
        assert second.is_unavailable
        await until(lambda: not second.is_unavailable)
        await until(lambda: second.num_open_batches == 0)
        assert (await second.batch("me", batch.id)).status is BatchStatus.COMPLETED
        await second.close()

    with capture_logs() as logs:
        asyncio.run(check())
    told = [each["event"] for each in logs if "availab" in each["event"]]
    assert told == ["batches_unavailable", "batches_available"]


def test_the_next_server_takes_batches_over_by_itself_once_the_one_before_has_ended(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(reopening, "TAKEN_WAIT_S", 0.01)

    async def check() -> None:
        first = BatchKeeper(tmp_path, limits())
        await first.start(never)
        batch = await first.create_batch("me", values(await kept(first, jsonl(line("a")))))
        second = BatchKeeper(tmp_path, limits())
        await second.start(answer)
        await asyncio.sleep(0.1)  # tried some times meanwhile
        assert second.is_unavailable
        await first.close()
        await until(lambda: not second.is_unavailable)
        await until(lambda: second.num_open_batches == 0)
        assert (await second.batch("me", batch.id)).status is BatchStatus.COMPLETED
        await second.close()

    with capture_logs() as logs:
        asyncio.run(check())
    told = [each for each in logs if "availab" in each["event"]]
    assert [each["event"] for each in told] == ["batches_unavailable", "batches_available"]
    assert (told[0]["log_level"], told[0]["folder"]) == ("warning", str(tmp_path))


def test_callers_are_not_told_where_files_lie(tmp_path):
    (tmp_path / "file").write_text("")

    async def check() -> None:
        for folder in (tmp_path / "file" / "state", tmp_path):
            (tmp_path / "batches.sqlite").write_bytes(b"no database at all" * 100)
            keeper = BatchKeeper(folder, limits())
            await keeper.start(answer)
            with pytest.raises(StorageError) as told:
                await keeper.begin_upload("me")
            assert str(tmp_path) not in str(told.value)
            await keeper.close()

    asyncio.run(check())


@pytest.mark.parametrize("leaves", [False, True])
def test_a_folder_that_is_opened_while_the_server_ends_is_let_go_of(tmp_path, monkeypatch, leaves):
    begun, goes_on, real = threading.Event(), threading.Event(), keeper_module.open_state

    def slow(*arguments: Any, **named: Any) -> Any:
        begun.set()
        assert goes_on.wait(10)
        return real(*arguments, **named)

    async def check() -> None:
        first = BatchKeeper(tmp_path, limits())
        await first.start(never)
        file_id = await kept(first, jsonl(line("a")))
        await first.create_batch("me", values(file_id))
        await first.close()
        monkeypatch.setattr(keeper_module, "open_state", slow)
        second = BatchKeeper(tmp_path, limits())
        opening = asyncio.create_task(second.start(never))
        await asyncio.to_thread(begun.wait, 10)
        if leaves:  # whoever waits for it
            opening.cancel()
        closing = asyncio.create_task(second.close())
        await asyncio.wait((closing,), timeout=0.05)
        goes_on.set()
        await asyncio.gather(opening, return_exceptions=True)
        await asyncio.wait_for(closing, 10)
        assert second.num_open_batches == 0
        third = BatchKeeper(tmp_path, limits())
        await third.start(never)
        assert (third.is_unavailable, third.num_open_batches) == (False, 1)
        await third.close()

    asyncio.run(check())


def test_a_batch_that_is_taken_in_while_the_server_ends_is_run_by_the_next_one_alone(tmp_path):
    taken_in, goes_on = threading.Event(), threading.Event()
    asked: dict[str, list[str]] = {"first": [], "second": []}

    def answering(server: str) -> Execute:
        async def execute(url: str, body: bytes, owner: str, request_id: str) -> Answer:
            asked[server].append(request_id)
            return await answer(url, body, owner, request_id)

        return execute

    async def check() -> None:
        first, second = (BatchKeeper(tmp_path, limits()) for _ in range(2))
        await first.start(answering("first"))
        file_id = await kept(first, jsonl(line("a"), line("b")))
        assert first._opened is not None
        add = first._opened.batches.add

        def add_late(row: dict[str, Any]) -> BatchRecord:
            taken_in.set()
            assert goes_on.wait(10)
            return add(row)

        first._opened.batches.add = add_late  # type: ignore[method-assign, assignment]
        creating = asyncio.create_task(first.create_batch("me", values(file_id)))
        await until(taken_in.is_set)
        closing = asyncio.create_task(first.close())
        await asyncio.sleep(0.02)
        goes_on.set()
        batch = await creating
        await closing
        await second.start(answering("second"))
        async with asyncio.timeout(10):
            while (await second.batch("me", batch.id)).status is not BatchStatus.COMPLETED:
                await asyncio.sleep(0.01)
        await second.close()

    asyncio.run(check())
    assert asked["first"] == []
    assert len(asked["second"]) == 2


def test_a_folder_that_stays_unusable_does_not_keep_the_server_from_ending(tmp_path):
    async def check() -> None:
        (tmp_path / "batches.sqlite").write_bytes(b"no database at all" * 100)
        keeper = BatchKeeper(tmp_path, limits())
        await keeper.start(answer)
        assert keeper.is_unavailable
        await asyncio.wait_for(keeper.close(), 5)

    asyncio.run(check())


def test_who_asks_is_told_of_a_fault_of_the_disk(tmp_path):
    async def check() -> None:
        keeper = BatchKeeper(tmp_path, limits())
        await keeper.start(never)
        file_id = await kept(keeper, jsonl(line("a")))
        assert keeper._opened is not None
        fill(keeper._opened.database)
        asked = {**values(file_id), "metadata": {"a": "x" * 100_000}}
        with pytest.raises(StorageError, match="full"):
            await keeper.create_batch("me", asked)
        empty(keeper._opened.database)
        assert (await keeper.create_batch("me", asked)).metadata is not None
        await keeper.close()

    asyncio.run(check())


def test_no_caller_fills_the_server_for_the_others(tmp_path):
    async def check() -> None:
        keeper = BatchKeeper(tmp_path, limits(max_files_bytes=400, max_files_bytes_per_caller=200))
        await keeper.start(never)
        first = await kept(keeper, jsonl(line("a")).ljust(200), owner="greedy")
        with pytest.raises(BodyTooLargeError, match="max_files_size_per_caller"):
            await kept(keeper, b"x", owner="greedy")
        with pytest.raises(ConflictError, match="max_files_size_per_caller"):
            await keeper.create_batch("greedy", values(first))
        second = await kept(keeper, jsonl(line("a")), owner="other")
        await keeper.create_batch("other", values(second))
        await keeper.delete_file("greedy", first)
        await kept(keeper, b"x" * 200, owner="greedy")
        await keeper.close()

    asyncio.run(check())
