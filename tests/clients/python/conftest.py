"""What the clients are told of the server: its address, its key, the name of the model it serves.

Runs in the clients' environment, started by `tests/clients/test_clients.py`; imports no client, so
that a file needs only its own.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Server:
    url: str  # without /v1
    key: str
    model: str
    max_model_len: int

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"

    @property
    def too_long(self) -> str:
        """A prompt of more tokens than the model can hold."""
        return "one two three four " * self.max_model_len


QUESTION = "What is the capital of France?"


@pytest.fixture(scope="session")
def server() -> Server:
    told = os.environ
    return Server(
        url=told["SERVER_URL"],
        key=told["SERVER_KEY"],
        model=told["SERVER_MODEL"],
        max_model_len=int(told["SERVER_MAX_MODEL_LEN"]),
    )


@pytest.fixture
def question() -> list[dict[str, str]]:
    """A dialogue that the demo answers in a few words, and ends by itself."""
    return [{"role": "user", "content": QUESTION}]
