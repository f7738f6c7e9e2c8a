"""What is known of an engine that fails at once: why it did, not only that it ended."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING

import pytest

from engine.errors import EngineStartError
from engine.transport.sockets import ClientSockets
from service.settings import WorkerSettings
from service.variants.handles import EngineInThread, EngineProcess
from service.worker_protocol.load_attempt import FailureKind, LoadRequest, StartFailure

if TYPE_CHECKING:
    from pathlib import Path

    from engine.process.loop import BuiltEngine, ReportProgress
    from service.variants.handles import EngineHandle

pytestmark = pytest.mark.alone

NO_ROOM = StartFailure(FailureKind.MEMORY)
LATE_S = 0.3


@pytest.fixture(autouse=True)
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have what an engine says arrive after its end, as on a machine that is busy."""
    receive, has_gone = ClientSockets.receive, ClientSockets.peer_disconnected
    until: dict[Path, float] = {}

    def is_late(sockets: ClientSockets) -> bool:
        return time.monotonic() < until.setdefault(sockets.folder, time.monotonic() + LATE_S)

    monkeypatch.setattr(
        ClientSockets,
        "receive",
        lambda self, limit: iter(()) if is_late(self) else receive(self, limit),
    )
    monkeypatch.setattr(
        ClientSockets, "peer_disconnected", lambda self: not is_late(self) and has_gone(self)
    )


def fail(report_progress: ReportProgress) -> BuiltEngine:
    report_progress("pretending")
    raise EngineStartError("no room", start_failure=NO_ROOM.encode())


async def assert_reason_is_known(handle: EngineHandle) -> None:
    assert await handle.ended() == "no room"
    death = handle.client.death
    assert isinstance(death, EngineStartError)
    assert StartFailure.of(death) == NO_ROOM
    await handle.stop()


def test_the_reason_of_an_engine_in_a_thread_is_heard():
    async def test() -> None:
        await assert_reason_is_known(EngineInThread(WorkerSettings(), lambda _: None, fail))

    asyncio.run(asyncio.wait_for(test(), 60))


@pytest.mark.slow
def test_the_reason_of_an_engine_in_a_process_is_heard(monkeypatch, tmp_path):
    options = {"folder": str(tmp_path), "most_context": 1}
    monkeypatch.setenv("FAKE_ENGINE", json.dumps(options))

    async def test() -> None:
        handle = await EngineProcess.start(
            WorkerSettings(),
            LoadRequest(),
            lambda _: None,
            command=("-m", "tests.service.fake_worker"),
        )
        await assert_reason_is_known(handle)

    asyncio.run(asyncio.wait_for(test(), 60))


@pytest.mark.slow
@pytest.mark.parametrize(("wait", "policy"), [("spin", "as it was"), ("sleep", "passive")])
def test_threads_of_a_process_wait_as_asked(monkeypatch, tmp_path, wait, policy):
    """The runtime reads its variable as it is loaded, so it is there from the beginning."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "as it was")
    told = tmp_path / "told"
    tell = (
        f"import os, pathlib; pathlib.Path({str(told)!r}).write_text(os.environ['OMP_WAIT_POLICY'])"
    )

    async def test() -> None:
        handle = await EngineProcess.start(
            WorkerSettings(thread_wait=wait), LoadRequest(), lambda _: None, command=("-c", tell)
        )
        await handle.ended()

    asyncio.run(asyncio.wait_for(test(), 60))
    assert told.read_text() == policy
