from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from engine.errors import EngineDeadError, QueueFullError
from engine.transport.backlog import Backlog, QueueLimits
from service.api.application import create_app
from service.api.inner_calls import InnerCalls
from service.errors import UnavailableError
from service.observation.observation import Observation
from service.observation.request_log import RequestLog
from service.server.lifecycle import Lifecycle
from service.team.keys import ApiKeys
from service.text.errors import TemplateInterruptedError
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
    from service.batches.attempts import Answer

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
    assert answer.ended is None


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
    assert (answer.is_for_later, answer.ended, answer.retry_after_s) == (True, None, 7)
    assert (answer.stands, answer.reason) == (False, "full")


def test_an_engine_that_died_is_told_apart(engine):
    engine.fails_after, engine.failure = 1, EngineDeadError("the engine has stopped")
    answer = call(engine)
    assert (answer.is_for_later, answer.ended, answer.stands) == (False, "engine_dead", False)


def test_a_broken_application_is_an_error_of_the_line():
    async def broken(*_: object) -> None:
        raise ZeroDivisionError

    answer = asyncio.run(InnerCalls(broken)(URL, b"{}", "somebody", "own-id"))
    assert answer.status == 500
    assert json.loads(answer.body)["error"]["type"] == "server_error"


def observed(engine: FakeEngine, *, is_left: bool = False) -> tuple[Observation, list[str]]:
    """Run one request; is_left: stop it while it is answered."""
    lines: list[str] = []
    observation = Observation(RequestLog(lines.append, as_json=True, slow_s=60))
    models = FakeModels(served_model(engine, ByteTokenizer()))
    context = replace(api_context(Lifecycle(models), models), observation=observation)
    calls = InnerCalls(create_app(context, ApiKeys("sk-secret")))

    async def run() -> None:
        task = asyncio.create_task(calls(URL, b'{"prompt": "hi"}', "somebody", "own-id"))
        if is_left:
            while not engine.running:
                await asyncio.sleep(0)
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())
    return observation, lines


def test_what_is_answered_is_counted_and_logged_as_its_callers(engine):
    observation, lines = observed(engine)
    assert dict(observation.counts.requests) == {(URL, "200", "somebody"): 1}
    assert len(lines) == 1


@pytest.mark.parametrize(
    "refusal", [QueueFullError("full", retry_after_s=1), UnavailableError("no", retry_after_s=1)]
)
def test_what_was_not_run_for_the_moment_is_neither_counted_nor_logged(engine, refusal):
    engine.refusal = refusal
    observation, lines = observed(engine)
    assert (dict(observation.counts.requests), lines) == ({}, [])
    assert dict(observation.counts.rejections) == {}


def test_what_an_engine_died_of_counts_with_its_tokens_alone(engine):
    engine.fails_after, engine.failure = 1, EngineDeadError("the engine has stopped")
    observation, lines = observed(engine)
    assert (dict(observation.counts.requests), lines) == ({}, [])
    assert observation.counts.tokens["generated", "somebody"] > 0


def test_what_its_batch_stops_has_no_line_of_its_own(engine):
    engine.delay_s = 10
    observation, lines = observed(engine, is_left=True)
    assert (dict(observation.counts.requests), lines) == ({}, [])


def test_a_fault_of_the_servers_own_is_counted_and_logged(engine):
    engine.refusal = ZeroDivisionError()
    observation, lines = observed(engine)
    assert dict(observation.counts.requests) == {(URL, "500", "somebody"): 1}
    assert len(lines) == 1


def test_a_template_whose_process_was_killed_is_asked_again(engine):
    engine.refusal = TemplateInterruptedError("its process was ended from outside")
    answer = call(engine)
    assert (answer.status, answer.ended, answer.stands) == (503, "template_interrupted", False)
    assert answer.retry_after_s >= 1


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
