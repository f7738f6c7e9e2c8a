"""A crowd is refused at the heads of its requests, in the words that any refusal has."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from engine.transport.backlog import Backlog, QueueLimits
from service.api import crowd
from service.api.application import Application, create_app
from service.observation.observation import Observation
from service.observation.request_log import RequestLog
from service.server.front import Front
from service.server.lifecycle import Lifecycle
from service.team.keys import ApiKeys
from tests.engine.fake_engine import FakeEngine as ComputingEngine
from tests.in_event_loop import in_event_loop
from tests.service.fakes import (
    MODEL,
    ByteTokenizer,
    FakeEngine,
    FakeModels,
    api_context,
    running_server,
    says,
    served_model,
    wait_until,
)
from tests.service.server.raw_http import RawConnection

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

    from tests.service.server.raw_http import Answer

IDLE = ComputingEngine(max_num_seqs=1).statistics()
FULL = replace(IDLE, num_running=1, num_free_slots=0)
CHAT = "/v1/chat/completions"
BODY = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}).encode()
JSON = (b"content-type", b"application/json")
LOCAL = (b"host", b"localhost")


def full_engine(max_queued_seqs: int, num_waiting: int) -> FakeEngine:
    """Return an engine whose slot is taken, and for whose queue so many wait."""
    engine = FakeEngine(says(ByteTokenizer(), "yes"))
    engine.backlog = Backlog(QueueLimits(max_queued_seqs=max_queued_seqs))
    engine.backlog.update(0, FULL)
    if num_waiting:
        engine.backlog.reserve(num_waiting)
    return engine


class Server:
    """An application in this process, shown heads of requests."""

    def __init__(self, engine: FakeEngine, *, key: str | None = None) -> None:
        models = FakeModels(served_model(engine, ByteTokenizer()))
        self.lifecycle = Lifecycle(models)
        self.observation = Observation()
        context = replace(api_context(self.lifecycle, models), observation=self.observation)
        self.app: Application = create_app(context, None if key is None else ApiKeys(key))

    def shows(self, *headers: tuple[bytes, bytes], path: str = CHAT, method: str = "POST") -> Scope:
        return {
            "type": "http",
            "http_version": "1.1",
            "scheme": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [*({LOCAL, JSON} if not headers else ()), *headers],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }

    def is_refused(self, scope: Scope) -> bool:
        return self.app.answer_at_once(scope) is not None

    async def run(self, scope: Scope) -> int:
        """Run a request; return its status."""
        sent: list[Message] = []
        bodies = [BODY]

        async def receive() -> Message:
            if not bodies:
                await asyncio.Event().wait()  # the client stays
            return {"type": "http.request", "body": bodies.pop(), "more_body": False}

        async def send(message: Message) -> None:
            sent.append(message)

        await self.app(scope, receive, send)
        status: int = sent[0]["status"]
        return status


@in_event_loop
async def test_those_who_were_let_pass_in_the_same_turn_are_counted_before_they_begin():
    server = Server(full_engine(max_queued_seqs=3, num_waiting=0))
    scopes = [server.shows() for _ in range(10)]
    assert [server.is_refused(scope) for scope in scopes] == [False] * 3 + [True] * 7


@in_event_loop
async def test_whoever_was_let_pass_and_has_ended_is_counted_no_more():
    server = Server(full_engine(max_queued_seqs=3, num_waiting=2))
    passed = server.shows()
    assert not server.is_refused(passed)
    assert await server.run(passed) == 200
    assert not server.is_refused(server.shows())


@in_event_loop
async def test_who_may_not_ask_takes_no_room_from_those_who_may():
    server = Server(full_engine(max_queued_seqs=3, num_waiting=2), key="right")
    for _ in range(10):
        unknown = server.shows(LOCAL, JSON, (b"authorization", b"Bearer wrong"))
        assert not server.is_refused(unknown)
    assert not server.is_refused(server.shows(LOCAL, JSON, (b"authorization", b"Bearer right")))
    assert await server.run(unknown) == 401


@in_event_loop
async def test_pages_that_are_refused_in_the_ordinary_way_take_no_room():
    engine = full_engine(max_queued_seqs=1, num_waiting=0)
    server = Server(engine)
    place = engine.backlog.reserve(1)
    for _ in range(3):
        assert not server.is_refused(server.shows(LOCAL, JSON, (b"origin", b"http://localhost")))
    place.release()
    await asyncio.sleep(0.01)
    assert not server.is_refused(server.shows())


@in_event_loop
async def test_who_came_first_begins_first():
    engine = full_engine(max_queued_seqs=3, num_waiting=0)
    server = Server(engine)
    scopes = [server.shows() for _ in range(3)]
    assert not any(map(server.is_refused, scopes))
    engine.backlog.reserve(2)  # by requests of several choices
    assert [await server.run(scope) for scope in scopes[:2]] == [200, 200]


@in_event_loop
async def test_whoever_leaves_while_it_is_held_is_counted_no_more():
    server = Server(full_engine(max_queued_seqs=1, num_waiting=0))
    passed = server.shows()
    assert not server.is_refused(passed)
    assert server.is_refused(server.shows())
    running = asyncio.ensure_future(server.run(passed))
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await asyncio.sleep(0.01)
    assert not server.is_refused(server.shows())


@in_event_loop
async def test_the_time_for_which_one_was_held_is_a_part_of_its_own():
    lines: list[str] = []
    server = Server(full_engine(max_queued_seqs=1, num_waiting=0))
    server.observation.log = RequestLog(lines.append, as_json=True, slow_s=0.0)
    passed = server.shows()
    assert not server.is_refused(passed)
    time.sleep(0.2)
    assert server.is_refused(server.shows())
    assert await server.run(passed) == 200
    (told,) = (json.loads(line) for line in lines if json.loads(line)["status"] == 200)
    assert told["total_s"] >= told["held_s"] >= 0.2
    assert told["body_s"] < 0.2


@in_event_loop
async def test_a_request_to_text_generation_inference_is_refused_in_its_words():
    server = Server(full_engine(max_queued_seqs=1, num_waiting=1))
    start, body = server.app.answer_at_once(server.shows(path="/generate"))
    assert start["status"] == 429
    assert json.loads(body["body"])["error_type"] == "overloaded"


@in_event_loop
async def test_those_who_were_let_pass_begin_when_no_more_are_refused(monkeypatch):
    monkeypatch.setattr(crowd, "MAX_WAIT_S", 60)
    engine = full_engine(max_queued_seqs=1, num_waiting=0)
    server = Server(engine)
    passed = server.shows()
    assert not server.is_refused(passed)
    running = asyncio.ensure_future(server.run(passed))
    for _ in range(200):  # turns of the loop, each of which refuses somebody
        assert server.is_refused(server.shows())
        await asyncio.sleep(0)
        assert engine.backlog.num_seqs == 0
    assert await running == 200


@in_event_loop
async def test_a_queue_that_is_full_in_one_turn_is_looked_at_again_in_the_next():
    engine = full_engine(max_queued_seqs=1, num_waiting=0)
    server = Server(engine)
    place = engine.backlog.reserve(1)
    assert server.is_refused(server.shows())
    place.release()
    await asyncio.sleep(0.01)
    assert not server.is_refused(server.shows())


@pytest.mark.parametrize(
    ("headers", "path", "method"),
    [
        ((LOCAL, JSON), "/v1/models", "GET"),
        ((LOCAL, JSON), "/v1/chat/nothing", "POST"),
        ((LOCAL, JSON), CHAT, "GET"),
        (((b"host", b"evil.example"), JSON), CHAT, "POST"),
        ((LOCAL, (b"content-type", b"text/plain")), CHAT, "POST"),
        ((LOCAL, JSON, (b"origin", b"http://localhost")), CHAT, "POST"),
    ],
    ids=["no text", "no path", "wrong method", "foreign host", "no JSON", "page"],
)
@in_event_loop
async def test_where_there_is_more_to_say_the_request_is_run(headers, path, method):
    server = Server(full_engine(max_queued_seqs=1, num_waiting=1))
    assert not server.is_refused(server.shows(*headers, path=path, method=method))


@in_event_loop
async def test_who_has_no_right_key_is_not_told_that_the_queue_is_full():
    server = Server(full_engine(max_queued_seqs=1, num_waiting=1), key="right")
    assert server.is_refused(server.shows(LOCAL, JSON, (b"x-api-key", b"right")))
    assert not server.is_refused(server.shows(LOCAL, JSON, (b"x-api-key", b"wrong")))


@in_event_loop
async def test_a_server_that_drains_says_so_itself():
    server = Server(full_engine(max_queued_seqs=1, num_waiting=1))
    server.lifecycle.begin_draining()
    assert not server.is_refused(server.shows())


@in_event_loop
async def test_refusals_are_counted_soon_each_with_its_caller():
    server = Server(full_engine(max_queued_seqs=1, num_waiting=1), key="right")
    for _ in range(300):
        assert server.is_refused(server.shows(LOCAL, JSON, (b"x-api-key", b"right")))
    await asyncio.sleep(0.01)
    assert server.observation.counts.requests == {(CHAT, "429", "default"): 300}
    assert server.observation.counts.rejections == {("queue_full", "default"): 300}


def test_the_answer_is_the_same_where_it_is_not_given_at_once(monkeypatch):
    """Behind a proxy that is trusted, the application is asked in the ordinary way."""
    answers = []
    num_run = []
    run = Application.__call__

    async def counted(self: Application, scope: Scope, receive: Receive, send: Send) -> None:
        num_run.append(len(answers))
        await run(self, scope, receive, send)

    monkeypatch.setattr(Application, "__call__", counted)
    for front in (Front(), Front(trusted_proxies=["192.0.2.1"])):
        observation = Observation()
        with running_server(
            full_engine(4, 4), ByteTokenizer(), front=front, observation=observation
        ) as server:
            connection = RawConnection(("127.0.0.1", server.port))
            answers.append(asked(connection, b"x-request-id: same"))
            answers[-1].headers = [one for one in answers[-1].headers if one[0] != "date"]
            connection.close()
            wait_until(lambda seen=observation: bool(seen.counts.requests))
        assert observation.counts.requests == {(CHAT, "429", "none"): 1}
    assert num_run == [1]
    at_once, ordinary = answers
    assert at_once == ordinary
    assert at_once.status == 429


def asked(connection: RawConnection, *headers: bytes) -> Answer:
    own = (b"host: localhost", b"content-type: application/json", b"content-length: %d" % len(BODY))
    lines = (b"POST " + CHAT.encode() + b" HTTP/1.1", *own, *headers)
    connection.send(b"\r\n".join(lines) + b"\r\n\r\n" + BODY)
    answer = connection.read()
    assert answer is not None
    return answer
