"""The README's examples, run as they stand against `tetrad serve`; only the port is another."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.clients.coder import coder_server
from tests.service.real_server import RealServer, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loaders.demo import DemoRepositories

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
CODER = "TheBloke/CodeLlama-7B-GPTQ"  # the name that the README serves a model for code by
LIMIT_S = 120

pytestmark = pytest.mark.slow


def examples(section: str, language: str) -> list[str]:
    text = README.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    found = re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)
    assert found, f"the README's section {section!r} has no example in {language}"
    return found


CLIENT = examples("Two commands", "python")[0].partition("stream = ")[0]


def output_of(example: str, server: RealServer, language: str) -> str:
    program = example.replace("http://127.0.0.1:8000", server.url)
    command = [sys.executable, "-c"] if language == "python" else ["bash", "-ec"]
    done = subprocess.run(
        [*command, program], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def demo_server(
    demo: DemoRepositories, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RealServer]:
    folder = tmp_path_factory.mktemp("readme-demo")
    settings = {"cache_dir": str(demo.cache_dir), "served_model_name": "demo"}
    with serving(folder, demo.default_spec, **settings) as server:
        yield server


@pytest.fixture(scope="module")
def code_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    folder = tmp_path_factory.mktemp("readme-coder")
    with coder_server(folder, served_model_name=CODER) as server:
        yield server


def test_chat_with_curl_is_streamed(demo_server):
    (curl,) = [text for text in examples("Two commands", "bash") if text.startswith("curl")]
    events = output_of(curl.replace("curl ", "curl -sS "), demo_server, "bash").split("\n\n")
    assert events[0].startswith('data: {"id":"chatcmpl-')
    assert "data: [DONE]" in events


def test_chat_with_the_client_is_streamed(demo_server):
    (example,) = examples("Two commands", "python")
    assert "def " in output_of(example, demo_server, "python")


def test_logprobs_are_told(demo_server):
    (example,) = [text for text in examples("Ask it", "python") if "logprobs" in text]
    lines = output_of(CLIENT + example, demo_server, "python").splitlines()
    assert lines
    for line in lines:
        assert re.fullmatch(r"""(['"]).*\1 -?\d+\.\d\d \[.+, .+, .+\]""", line)


def test_infilling_with_curl_gives_the_middle(code_server):
    (curl,) = examples("Ask it", "bash")
    answer = output_of(curl.replace("curl ", "curl -sS --fail-with-body "), code_server, "bash")
    assert '"content":"' in answer


def test_infilling_with_the_client_gives_the_middle(code_server):
    (example,) = [text for text in examples("Ask it", "python") if "suffix" in text]
    assert output_of(CLIENT + example, code_server, "python").strip()
