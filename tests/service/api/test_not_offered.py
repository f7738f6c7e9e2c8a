"""What isn't offered here is said in words."""

from __future__ import annotations

import httpx2 as httpx
import pytest

from service.api.not_offered import not_offered
from tests.service.fakes import FakeEngine, running_server, says


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("/v1/embeddings", "embeddings"),
        ("/embeddings", "embeddings"),
        ("/v1/rerank", "rank"),
        ("/rerank", "rank"),
        ("/v1/images/generations", "images"),
        ("/v1/audio/speech", "speaks"),
        ("/audio/transcriptions", "listens"),
        ("/v1/threads/abc", "nothing else"),
        ("/completion", "/v1/completions"),
        ("/slots/0", "no slots"),
        ("/v1/responses/resp_1", "keeps no responses"),
        ("/responses/resp_1/cancel", "keeps no responses"),
        ("/v1/conversations", "keeps no responses"),
        ("/lora-adapters", "no adapters"),
        ("/api/tags", "Ollama"),
        ("/api/chat", "Ollama"),
        ("/api/v0/models", "LM Studio"),
        ("/api/v1/models", "LM Studio"),
    ],
)
def test_words_say_what_there_is_not(path, word):
    assert word in not_offered(path)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/v1",
        "/v1/",
        "/v1/chat",
        "/completionx",
        "/apix",
        "/x/embeddings",
        "//api",
        "/responses",
    ],
)
def test_other_paths_are_unknown(path):
    assert not_offered(path) is None


def test_answer_is_a_404_that_says_so(tiny_tokenizer):
    with running_server(FakeEngine(says(tiny_tokenizer, "yes")), tiny_tokenizer) as server:
        response = httpx.post(f"{server.url}/v1/embeddings", json={"input": "a"})
        unknown = httpx.get(f"{server.url}/nowhere")
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (404, "invalid_request_error")
    assert "no embeddings" in error["message"]
    assert unknown.json()["error"]["message"] == "there is no such path here; see /openapi.json"


def test_nothing_is_said_to_be_missing_that_is_there(tiny_tokenizer):
    with running_server(FakeEngine(says(tiny_tokenizer, "yes")), tiny_tokenizer) as server:
        document = httpx.get(f"{server.url}/openapi.json").json()
    assert [path for path in document["paths"] if not_offered(path)] == []
