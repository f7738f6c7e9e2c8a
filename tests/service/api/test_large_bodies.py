"""Large bodies hold so many bytes together; who comes beyond is told to come again."""

from __future__ import annotations

import asyncio
import http.client
import json
from contextlib import ExitStack, suppress

import pytest
from starlette.requests import Request

from engine.errors import QueueFullError
from service.api.large_bodies import BodyShare, LargeBodies
from service.api.request_bodies import MAX_BYTES_AT_ONCE, read_request
from service.api.requests import RequestModel
from service.api.respond import reserve
from service.api.scope import keep_until_answered
from service.errors import InvalidJsonError
from service.server.lifecycle import Lifecycle
from service.settings import Settings
from tests.service.fakes import (
    FakeEngine,
    FakeModels,
    api_context,
    gap_tokenizer,
    running_server,
    says,
    served_model,
)

MOST = 300_000
LARGE = json.dumps({"text": "a" * 200_000}).encode()


class Note(RequestModel):
    """A body."""

    text: str


class Reader:
    """Reads bodies with one bound for all of them."""

    def __init__(self) -> None:
        models = FakeModels(None)
        self.context = api_context(Lifecycle(models), models, max_bodies_bytes=MOST)

    @property
    def held(self) -> int:
        return self.context.bodies.num_bytes

    async def read(
        self, body: bytes, stack: ExitStack, *, declares: bool = False, ends: bool = True
    ) -> Request:
        """Read a body; `ends` False: wait for the rest for ever."""
        waiting = [{"type": "http.request", "body": body, "more_body": not ends}]

        async def receive() -> dict[str, object]:
            if not waiting:
                await asyncio.Event().wait()
            return waiting.pop()

        headers = [(b"content-type", b"application/json")]
        headers += [(b"content-length", str(len(body)).encode())] if declares else []
        request = Request({"type": "http", "headers": headers}, receive)
        keep_until_answered(request.scope, stack)
        await read_request(request, Note, self.context)
        return request


def test_a_share_takes_what_it_has_grown_by_and_gives_it_back_once():
    bodies = LargeBodies(100)
    one, other = BodyShare(bodies), BodyShare(bodies)
    one.grow_to(30)
    one.grow_to(70)
    other.grow_to(30)
    with pytest.raises(QueueFullError, match=r"100 bytes .* at most 100 may") as caught:
        other.grow_to(31)
    assert caught.value.retry_after_s > 0
    one.release()
    one.release()
    assert bodies.num_bytes == 30
    other.grow_to(100)
    other.release()
    assert bodies.num_bytes == 0


@pytest.mark.parametrize("declares", [True, False])
def test_a_body_for_which_there_is_no_room_is_refused_while_another_is_read(declares):
    async def test() -> None:
        reader = Reader()
        with ExitStack() as stack:
            half = asyncio.create_task(reader.read(LARGE, stack, ends=False))
            await asyncio.sleep(0)
            assert reader.held == len(LARGE)
            with pytest.raises(QueueFullError, match="large request bodies"):
                await reader.read(LARGE, stack, declares=declares)
            await reader.read(b'{"text": "small"}', stack, declares=declares)
            assert reader.held == len(LARGE)
            half.cancel()
            with suppress(asyncio.CancelledError):
                await half
            await reader.read(LARGE, stack, declares=declares)

    asyncio.run(test())


def test_a_body_counts_until_its_request_is_answered_or_has_its_place():
    async def test() -> None:
        reader = Reader()
        with ExitStack() as stack:
            await reader.read(LARGE, stack)
            assert reader.held == len(LARGE)  # what it says is held, too
        assert reader.held == 0
        with ExitStack() as stack:
            request = await reader.read(LARGE, stack)
            tokenizer = gap_tokenizer()
            model = served_model(FakeEngine(says(tokenizer, "hi")), tokenizer)
            reserve(request, model, 1)
            assert reader.held == 0

    asyncio.run(test())


def test_a_body_that_is_wrong_is_let_go_at_once():
    async def test() -> None:
        reader = Reader()
        with ExitStack() as stack:
            with pytest.raises(InvalidJsonError):
                await reader.read(b"[" + b" " * MAX_BYTES_AT_ONCE, stack)
            assert reader.held == 0

    asyncio.run(test())


def test_clients_are_told_when_to_come_again():
    tokenizer = gap_tokenizer()
    body = json.dumps({"prompt": "a" * 100_000}).encode()
    with running_server(
        FakeEngine(says(tokenizer, "hi")), tokenizer, max_bodies_bytes=MAX_BYTES_AT_ONCE
    ) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        headers = {"content-type": "application/json"}
        connection.request("POST", "/v1/completions", body, headers)
        response = connection.getresponse()
        assert response.status == 429
        assert int(response.headers["retry-after"]) > 0
        assert json.loads(response.read())["error"]["code"] == "queue_full"
        connection.request("POST", "/v1/completions", b'{"prompt": "a"}', headers)
        response = connection.getresponse()
        assert (response.status, bool(response.read())) == (200, True)
        connection.close()


def test_a_server_that_allows_larger_bodies_holds_more_of_them():
    assert LargeBodies.for_size(Settings().max_body_size).max_bytes == LargeBodies().max_bytes
    assert LargeBodies.for_size(10**9).max_bytes > 10**9
