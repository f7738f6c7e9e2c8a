from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from engine.errors import EngineDeadError, QueueFullError
from engine.transport.backlog import Backlog, QueueLimits
from service.api.application import create_app
from service.api.inner_calls import InnerCalls
from service.server.lifecycle import Lifecycle
from service.team.keys import ApiKeys
from tests.engine.fake_engine import FakeEngine as ComputingEngine
from tests.service.fakes import (
    ByteTokenizer,
    FakeEngine,
    FakeModels,
    api_context,
    says,
    served_model,
)

if TYPE_CHECKING:
    from service.batches.runner import Answer

URL = "/v1/completions"


def call(
    engine: FakeEngine | None = None,
    body: bytes = b'{"prompt": "hi", "max_tokens": 3}',
    url: str = URL,
) -> Answer:
    """Run one request on a server that asks for a key."""
    tokenizer = ByteTokenizer()
    models = FakeModels(served_model(engine or FakeEngine(says(tokenizer, "yes")), tokenizer))
    app = create_app(api_context(Lifecycle(models), models), ApiKeys("sk-secret"))
    return asyncio.run(InnerCalls(app)(url, body, "somebody", "own-id"))


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(says(ByteTokenizer(), "yes"))


def test_a_request_is_answered_as_over_the_wire_without_a_key(engine):
    answer = call(engine)
    assert answer.status == 200
    assert json.loads(answer.body)["choices"][0]["text"] == "yes"
    assert answer.request_id == "own-id"
    assert not (answer.is_for_later)
    assert not (answer.is_engine_dead)


def test_it_runs_in_the_background(engine):
    call(engine)
    (terms,) = engine.terms
    assert terms.is_background


def test_it_needs_no_room_in_the_queue(engine):
    engine.backlog = Backlog(QueueLimits(max_queued_seqs=1))
    full = ComputingEngine(max_num_seqs=1).statistics()
    engine.backlog.update(0, full)
    for _ in range(3):
        engine.backlog.num_reserved += 1
    with pytest.raises(QueueFullError):
        engine.backlog.require_room()
    assert call(engine).status == 200


def test_errors_are_told_in_their_bodies():
    answer = call(body=b'{"prompt": "hi", "temperature": 9}')
    assert answer.status == 400
    assert json.loads(answer.body)["error"]["param"] == "temperature"
    assert call(body=b"nonsense").status == 400
    assert call(url="/v1/nothing").status == 404


def test_names_without_effect_come_with_the_answer():
    assert call(body=b'{"prompt": "hi", "max_tokens": 3, "made_up": 1}').ignored == "made_up"
    assert call().ignored is None


def test_what_an_engine_cannot_do_now_is_for_later(engine):
    engine.refusal = QueueFullError("full", retry_after_s=7)
    answer = call(engine)
    assert (answer.is_for_later, answer.is_engine_dead, answer.retry_after_s) == (True, False, 7)


def test_an_engine_that_died_is_told_apart(engine):
    engine.fails_after, engine.failure = 1, EngineDeadError("the engine has stopped")
    answer = call(engine)
    assert (answer.is_for_later, answer.is_engine_dead) == (False, True)


def test_a_broken_application_is_an_error_of_the_line():
    async def broken(*_: object) -> None:
        raise ZeroDivisionError

    answer = asyncio.run(InnerCalls(broken)(URL, b"{}", "somebody", "own-id"))
    assert answer.status == 500
    assert json.loads(answer.body)["error"]["type"] == "server_error"


def test_nothing_of_it_can_be_asked_for_over_the_wire():
    """What marks a scope is no header, so no client can send it."""
    tokenizer = ByteTokenizer()
    models = FakeModels(served_model(FakeEngine(says(tokenizer, "yes")), tokenizer))
    app = create_app(api_context(Lifecycle(models), models), ApiKeys("sk-secret"))

    import httpx2 as httpx

    async def ask() -> int:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            headers = {"tetrad.background": "somebody", "x-tetrad-background": "somebody"}
            answer = await client.post(URL, json={"prompt": "hi"}, headers=headers)
            return answer.status_code

    assert asyncio.run(ask()) == 401
