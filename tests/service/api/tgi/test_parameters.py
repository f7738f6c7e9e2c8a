"""No value of any field is a fault of the server."""

from __future__ import annotations

import httpx2 as httpx
import pytest

from engine.outputs import TokenLogprobs
from service.api.tgi.parameters import CompatibleRequest, GenerationParameters
from tests.service.fakes import FakeEngine, running_server, says

ODD_VALUES = [
    *(True, False, 0, 1, -1, 2**31, 2**63, 10**30, 0.5, -0.5, 1e308, "", "a", "\x00", "é" * 300),
    *([], [0], ["a"], [""], [None], [["a"]], ["a"] * 100, {}, {"a": 1}, None),
]


@pytest.fixture(scope="module")
def client(tiny_tokenizer):
    logprobs = TokenLogprobs(-0.5, ())
    engine = FakeEngine(says(tiny_tokenizer, "yes"), logprobs=lambda token_id, params: logprobs)
    with (
        running_server(engine, tiny_tokenizer) as server,
        httpx.Client(base_url=server.url) as made,
    ):
        yield made


@pytest.mark.parametrize("name", GenerationParameters.model_fields)
def test_odd_parameters_are_taken_or_refused_by_name(client, name):
    for value in ODD_VALUES:
        body = {"inputs": "a", "parameters": {name: value}}
        response = client.post("/generate", json=body)
        assert response.status_code in (200, 422), (name, value)
        if response.status_code == 422:
            assert name in response.json()["error"]


@pytest.mark.parametrize("name", CompatibleRequest.model_fields)
def test_odd_fields_are_taken_or_refused(client, name):
    for value in ODD_VALUES:
        response = client.post("/", json={"inputs": "a", name: value})
        assert response.status_code in (200, 404, 422), (name, value)
