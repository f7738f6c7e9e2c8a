"""What cannot be queued is refused before its texts are touched, and no place leaks."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx2 as httpx
import pytest

from engine.transport.backlog import Backlog, QueueLimits
from service.serving import text_lanes
from tests.engine.fake_engine import FakeEngine as ComputingEngine
from tests.service.fakes import (
    MODEL,
    FakeEngine,
    PlainTemplate,
    gap_infilling,
    gap_tokenizer,
    running_server,
    says,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.service.fakes import RunningServer

FULL = replace(ComputingEngine(max_num_seqs=1).statistics(), num_running=1, num_free_slots=0)
TURNS = [{"role": "user", "content": "hi"}]
GENERATIONS: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": ["hi", "ho"], "n": 2},
    "/v1/chat/completions": {"messages": TURNS, "n": 3},
    "/v1/responses": {"input": "hi"},
    "/v1/fim/completions": {"prompt": "hi"},
    "/infill": {"input_prefix": "a", "input_suffix": "b"},
    "/generate": {"inputs": "hi"},
    "/generate_stream": {"inputs": "hi"},
    "/": {"inputs": "hi"},
}
WRONG: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": ["hi", "\x00" * 9], "truncate_prompt_tokens": 0},
    "/v1/chat/completions": {"messages": TURNS, "max_tokens": 10**6},
    "/v1/responses": {"input": "hi", "max_output_tokens": 10**6},
    "/v1/fim/completions": {"prompt": "hi", "max_tokens": 10**6},
    "/infill": {"input_prefix": "a", "input_suffix": "b", "logit_bias": [["\ue000", 200]]},
    "/generate": {"inputs": "hi", "parameters": {"max_new_tokens": 10**6}},
}


class Template(PlainTemplate):
    """Renders when it is told to."""

    may_render = threading.Event()
    num_begun = 0

    def render(self, messages: Any, options: Any = None) -> list[int]:
        Template.num_begun += 1
        Template.may_render.wait(20)
        return super().render(messages, options)


@pytest.fixture
def engine() -> FakeEngine:
    tokenizer = gap_tokenizer()
    made = FakeEngine(says(tokenizer, "hi"))
    made.backlog = Backlog(QueueLimits(max_queued_seqs=4))
    made.backlog.update(0, FULL)
    return made


@pytest.fixture
def server(engine) -> Iterator[RunningServer]:
    tokenizer = gap_tokenizer()
    Template.may_render.set()
    Template.num_begun = 0
    with running_server(
        engine, tokenizer, chat_template=Template(tokenizer), infilling=gap_infilling(tokenizer)
    ) as running:
        yield running
        Template.may_render.set()


def post(server: RunningServer, path: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(server.url + path, json={"model": MODEL, **body}, timeout=20)


@pytest.mark.parametrize("path", GENERATIONS)
def test_every_generation_takes_its_place_and_gives_it_up(server, engine, path):
    assert post(server, path, GENERATIONS[path]).status_code == 200
    wait_until(lambda: engine.backlog.num_reserved == 0)


@pytest.mark.parametrize("path", GENERATIONS)
def test_where_the_queue_is_full_nothing_is_read(server, engine, path):
    place = engine.backlog.reserve(4)
    response = httpx.post(
        server.url + path,
        content=b"not even JSON",
        headers={"content-type": "application/json"},
        timeout=20,
    )
    assert response.status_code == 429
    assert int(response.headers["retry-after"]) >= 1
    assert Template.num_begun == 0
    assert not engine.submitted
    place.release()
    assert post(server, path, GENERATIONS[path]).status_code == 200


@pytest.mark.parametrize("path", WRONG)
def test_a_request_that_fails_later_gives_its_place_up(server, engine, path):
    for _ in range(6):  # more than may wait
        assert post(server, path, WRONG[path]).status_code in (400, 422)
    wait_until(lambda: engine.backlog.num_reserved == 0)


def test_a_dialogue_counts_as_waiting_while_it_is_rendered_and_not_once_its_client_left(
    server, engine
):
    Template.may_render.clear()

    async def leave() -> None:
        async with httpx.AsyncClient() as client:
            body = {"model": MODEL, "messages": TURNS, "n": 4}
            asked = asyncio.create_task(client.post(f"{server.url}/v1/chat/completions", json=body))
            while not Template.num_begun:
                await asyncio.sleep(0.01)
            assert engine.backlog.num_reserved == 4
            refused = await client.post(f"{server.url}/v1/completions", json=body)
            assert refused.status_code == 429
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)

    asyncio.run(leave())
    wait_until(lambda: engine.backlog.num_reserved == 0)
    assert not engine.submitted


def test_texts_to_count_are_refused_where_too_many_wait(server, monkeypatch):
    monkeypatch.setattr(text_lanes.short_texts, "max_waiting", 0)
    response = post(server, "/tokenize", {"prompt": "hi"})
    assert response.status_code == 429
    assert response.headers["retry-after"] == "5"
    monkeypatch.undo()
    assert post(server, "/tokenize", {"prompt": "hi"}).status_code == 200
    assert text_lanes.short_texts.num_waiting == 0
