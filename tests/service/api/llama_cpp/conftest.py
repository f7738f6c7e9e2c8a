"""A server whose variant infills: a token a byte, StarCoder's pieces around the gap."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx2 as httpx
import pytest

from tests.service.fakes import FakeEngine, gap_infilling, gap_tokenizer, running_server, says

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TEXT = "return x\n    y = 1\nz = 2\n"


@dataclass
class Editor:
    """Asks a server as editors do."""

    http: httpx.Client
    engine: FakeEngine
    show: Callable[[list[int]], str]

    def ask(self, **fields: object) -> httpx.Response:
        body = {"input_prefix": "def f(x):\n    ", "input_suffix": "\n", "n_predict": 64, **fields}
        return self.http.post("/infill", json=body)

    def infill(self, **fields: object) -> dict[str, Any]:
        response = self.ask(**fields)
        assert response.status_code == 200, response.text
        return response.json()

    def events(self, **fields: object) -> list[dict[str, Any]]:
        response = self.ask(stream=True, **fields)
        assert response.headers["content-type"].startswith("text/event-stream")
        events = response.text.split("\n\n")
        assert events.pop() == ""
        return [json.loads(event.removeprefix("data: ")) for event in events]

    @property
    def params(self):
        """Of the last sequence."""
        return self.engine.submitted[-1][1]

    @property
    def prompt(self) -> str:
        """Of the last sequence, as text."""
        return self.show(self.engine.submitted[-1][0])


@pytest.fixture(scope="session")
def tokenizer():
    return gap_tokenizer()


@pytest.fixture(scope="session")
def shared_editor(tokenizer) -> Iterator[Editor]:
    engine = FakeEngine(says(tokenizer, TEXT))
    backend = tokenizer.backend_tokenizer

    def show(ids: list[int]) -> str:
        return backend.decode(ids, skip_special_tokens=False)

    with (
        running_server(engine, tokenizer, infilling=gap_infilling(tokenizer)) as server,
        httpx.Client(base_url=server.url, timeout=20) as http,
    ):
        yield Editor(http, engine, show)


@pytest.fixture
def editor(shared_editor, tokenizer) -> Editor:
    """One whose engine says `TEXT`, unless a test has it say something else."""
    engine = shared_editor.engine
    engine.script, engine.delay_s, engine.logprobs = says(tokenizer, TEXT), 0.0, None
    engine.num_cached_tokens, engine.fails_after = 0, None
    return shared_editor
