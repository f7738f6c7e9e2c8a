"""`llm`, the command, with the server named in its `extra-openai-models.yaml`."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

PROMPT = "Colours of the rainbow: red,"


@pytest.fixture(scope="module")
def run(server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("llm")
    shared = {"model_name": server.model, "api_base": server.base_url, "api_key_name": "demo"}
    models = [
        {"model_id": "demo-chat", **shared},
        {"model_id": "demo-text", "completion": True, **shared},
        {"model_id": "demo-stranger", **shared, "api_key_name": "wrong"},
    ]
    (folder / "extra-openai-models.yaml").write_text(json.dumps(models))  # JSON is YAML
    (folder / "keys.json").write_text(json.dumps({"demo": server.key, "wrong": "sk-wrong"}))

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "llm", *arguments],
            env={**os.environ, "LLM_USER_PATH": str(folder)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def said(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_chat_streamed_not_streamed_and_continued(run, question):
    asked = ["-m", "demo-chat", "-o", "temperature", "0", "-o", "max_tokens", "20"]
    text = said(run(*asked, question[0]["content"]))
    assert "Paris" in text
    assert said(run(*asked, "--no-stream", question[0]["content"])) == text
    assert said(run(*asked, "--continue", "And of Italy?"))


def test_completion_streamed_and_with_logprobs(run):
    asked = ["-m", "demo-text", "-o", "temperature", "0", "-o", "max_tokens", "6"]
    text = said(run(*asked, PROMPT))
    assert text
    assert said(run(*asked, "--no-stream", "-o", "logprobs", "2", PROMPT)) == text
    (logged, *_) = json.loads(said(run("logs", "--json", "--count", "1")))
    assert logged["response_json"]["choices"][0]["logprobs"]["tokens"]


def test_wrong_key_is_told(run):
    result = run("-m", "demo-stranger", "Hello")
    assert result.returncode != 0
    assert "401" in result.stderr
