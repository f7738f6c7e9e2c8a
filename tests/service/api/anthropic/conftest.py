"""A server that speaks the Messages API: a token a byte, and a template that shows what it got."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx2 as httpx
import pytest

from tests.service.fakes import ByteTokenizer, FakeEngine, PlainTemplate, running_server, says

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from service.text.render_options import RenderOptions

TEXT = "Grüße, 世界 🙂"
HI = {"role": "user", "content": "hi"}


class ThinkingTemplate(PlainTemplate):
    """Takes what templates of reasoning models take; keeps what it was given last."""

    kwargs_names = frozenset({"enable_thinking", "reasoning_effort"})
    reasoning_marks = ("<think>", "</think>")

    def __init__(self, tokenizer: ByteTokenizer) -> None:
        super().__init__(tokenizer)
        self.messages: list[dict[str, Any]] = []
        self.options: RenderOptions | None = None

    def reads(self, name: str) -> bool:
        return name == "reasoning_content"

    def render(
        self, messages: Sequence[Mapping[str, Any]], options: RenderOptions | None = None
    ) -> list[int]:
        self.messages, self.options = [dict(message) for message in messages], options
        return super().render(messages, options)


@dataclass
class Agent:
    """Asks a server as agents do."""

    http: httpx.Client
    engine: FakeEngine
    template: PlainTemplate
    headers: dict[str, str] = field(default_factory=lambda: {"anthropic-version": "2023-06-01"})

    def post(self, path: str = "/v1/messages", **fields: object) -> httpx.Response:
        body = {"max_tokens": 99, "messages": [HI], **fields}
        return self.http.post(path, json=body, headers=self.headers)

    def ask(self, **fields: object) -> dict[str, Any]:
        response = self.post(**fields)
        assert response.status_code == 200, response.text
        return response.json()

    def count(self, **fields: object) -> int:
        body = {"messages": [HI], **fields}
        response = self.http.post("/v1/messages/count_tokens", json=body)
        assert response.status_code == 200, response.text
        return response.json()["input_tokens"]

    def events(self, **fields: object) -> list[dict[str, Any]]:
        response = self.post(stream=True, **fields)
        assert response.headers["content-type"].startswith("text/event-stream")
        return events_of(response.text)

    def ignored(self, **fields: object) -> list[str]:
        response = self.post(**fields)
        assert response.status_code == 200, response.text
        return response.headers.get("x-ignored-params", "").split(", ")

    @property
    def prompt(self) -> list[int]:
        """Of the last sequence."""
        return self.engine.submitted[-1][0]


def events_of(text: str) -> list[dict[str, Any]]:
    """Read a stream's events, each of which is named by its type."""
    events = []
    for event in text.removesuffix("\n\n").split("\n\n"):
        name, data = event.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


@pytest.fixture(scope="session")
def tokenizer() -> ByteTokenizer:
    return ByteTokenizer()


@pytest.fixture(scope="session")
def shared_agents(tokenizer) -> Iterator[dict[str, Agent]]:
    agents = {}
    templates = {"plain": PlainTemplate(tokenizer), "thinking": ThinkingTemplate(tokenizer)}
    for name, template in templates.items():
        engine = FakeEngine(says(tokenizer, TEXT), max_model_len=4096)
        server = running_server(engine, tokenizer, chat_template=template)
        agents[name] = (server, engine, template)
    with (
        agents["plain"][0] as plain,
        agents["thinking"][0] as thinking,
        httpx.Client(base_url=plain.url, timeout=20) as to_plain,
        httpx.Client(base_url=thinking.url, timeout=20) as to_thinking,
    ):
        yield {
            "plain": Agent(to_plain, *agents["plain"][1:]),
            "thinking": Agent(to_thinking, *agents["thinking"][1:]),
        }
        assert not agents["plain"][1].running
        assert not agents["thinking"][1].running


def _as_new(agent: Agent, tokenizer: ByteTokenizer) -> Agent:
    engine = agent.engine
    engine.script, engine.num_cached_tokens, engine.fails_after = says(tokenizer, TEXT), 0, None
    return agent


@pytest.fixture
def agent(shared_agents, tokenizer) -> Agent:
    """One whose engine says `TEXT`, unless a test has it say something else."""
    return _as_new(shared_agents["plain"], tokenizer)


@pytest.fixture
def thinker(shared_agents, tokenizer) -> Agent:
    """The same with a template that reads thoughts and has a switch for them."""
    return _as_new(shared_agents["thinking"], tokenizer)
