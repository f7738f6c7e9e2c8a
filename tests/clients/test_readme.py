"""The README's examples, and that of docs/batches.md, run as they stand against `tetrad serve`.

Only the port is another.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.clients.coder import coder_server
from tests.service.commands.conversation.typed_terminal import CTRL_D, typed_terminal
from tests.service.real_server import RealServer, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loaders.demo import DemoRepositories

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BATCHES = (ROOT / "docs" / "batches.md").read_text(encoding="utf-8")
CLIENTS_PYTHON = ROOT / ".venv-clients" / "bin" / "python"  # which has Anthropic's client
CODER = "TheBloke/CodeLlama-7B-GPTQ"  # the name that the README serves a model for code by
LIMIT_S = 120

pytestmark = pytest.mark.slow


def examples(section: str, language: str) -> list[str]:
    text = README.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    found = blocks(text, language)
    assert found, f"the README's section {section!r} has no example in {language}"
    return found


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


CLIENT = examples("Two commands", "python")[0].partition("stream = ")[0]


def terminal_line(beginning: str) -> str:
    """Find a line of the terminal's section that has these words, without its comment."""
    (block,) = examples("In the terminal", "bash")
    (line,) = [line for line in block.splitlines() if beginning in line]
    return line.partition("  #")[0]


def typed(line: str, server: RealServer, folder: Path) -> subprocess.CompletedProcess[str]:
    """Type a line into a shell where `tetrad` is this repository's."""
    command = f'tetrad() {{ {shlex.quote(sys.executable)} -m service.cli "$@"; }}; {line}'
    environment = {"TETRAD_URL": server.url, "PYTHONPATH": str(ROOT), "HOME": str(folder)}
    return subprocess.run(
        ["bash", "-ec", command], cwd=folder, env={"PATH": os.environ["PATH"], **environment},
        capture_output=True, text=True, timeout=LIMIT_S, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def output_of(
    example: str,
    server: RealServer,
    language: str,
    python: str = sys.executable,
    folder: Path | None = None,
) -> str:
    program = example.replace("http://127.0.0.1:8000", server.url)
    command = [python, "-c"] if language == "python" else ["bash", "-ec"]
    done = subprocess.run(
        [*command, program], capture_output=True, text=True, timeout=LIMIT_S, check=False,
        cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def demo_server(
    demo: DemoRepositories, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RealServer]:
    folder = tmp_path_factory.mktemp("readme-demo")
    # Where an example names no `max_tokens`, a weak model may go on to the end of the context.
    short = {"max_model_len": 1024}
    settings = {"cache_dir": str(demo.cache_dir), "served_model_name": "demo", **short}
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


def test_json_by_a_schema_is_what_the_client_parses(demo_server):
    (example,) = [text for text in examples("Ask it", "python") if "BaseModel" in text]
    printed = output_of(CLIENT + example, demo_server, "python")
    assert re.fullmatch(r"""name=(['"]).*\1 age=-?\d+\n""", printed)


def test_tools_are_called(demo_server):
    (example,) = [text for text in examples("Ask it", "python") if "tool_choice" in text]
    name, _, arguments = output_of(CLIENT + example, demo_server, "python").partition(" ")
    assert name == "weather"
    assert isinstance(json.loads(arguments)["city"], str)


def test_anthropics_client_streams_an_answer(demo_server):
    if not CLIENTS_PYTHON.exists():
        pytest.fail(f"there is no {CLIENTS_PYTHON}; run scripts/setup-clients", pytrace=False)
    (example,) = [text for text in examples("Ask it", "python") if "anthropic" in text]
    assert output_of(example, demo_server, "python", str(CLIENTS_PYTHON)).strip()


def test_a_batch_is_answered(demo_server):
    (example,) = [text for text in examples("Ask it", "python") if "batches" in text]
    lines = output_of(CLIENT + example, demo_server, "python").splitlines()
    answers = [json.loads(line) for line in lines if line]
    assert {answer["custom_id"] for answer in answers} == {f"question-{n}" for n in range(3)}
    for answer in answers:
        assert answer["response"]["body"]["choices"][0]["message"]["content"]


@pytest.mark.parametrize("in_line", ["body", "url"])
def test_a_batch_in_which_everything_is_wrong_says_what(demo_server, in_line):
    (example,) = [text for text in examples("Ask it", "python") if "batches" in text]
    wrong = {
        "body": example.replace('"model": "demo"', '"model": "nope"'),
        "url": example.replace('"url": "/v1/chat', '"url": "/v1/no'),
    }[in_line]
    assert wrong != example
    printed = output_of(CLIENT + wrong, demo_server, "python")
    if in_line == "body":  # each request failed
        answers = [json.loads(line) for line in printed.splitlines() if line]
        assert len(answers) == 3
        for answer in answers:
            assert "this server serves 'demo'" in answer["response"]["body"]["error"]["message"]
    else:  # the file did
        assert "line=1" in printed
        assert "/v1/chat/completions" in printed


def batch_of_the_documents(lines: str, server: RealServer, folder: Path) -> tuple[str, list[str]]:
    """Run the example on a file of requests; return the batch's status and what else is printed."""
    (folder / "requests.jsonl").write_text(lines, encoding="utf-8")
    (example,) = blocks(BATCHES, "python")
    status, *rest = output_of(example, server, "python", folder=folder).splitlines()
    return status, [line for line in rest if line]


def test_the_documents_batch_is_answered(demo_server, tmp_path):
    (lines,) = blocks(BATCHES, "json")
    status, answers = batch_of_the_documents(lines, demo_server, tmp_path)
    assert status == "completed"
    ids = [json.loads(line)["custom_id"] for line in lines.splitlines()]
    assert [json.loads(answer)["custom_id"] for answer in answers] == ids
    for answer in answers:
        assert json.loads(answer)["response"]["body"]["choices"][0]["text"]


def test_of_the_documents_batch_what_failed_is_printed_too(demo_server, tmp_path):
    (lines,) = blocks(BATCHES, "json")
    half_wrong = lines.replace('"model": "demo"', '"model": "nope"', 1)
    status, answers = batch_of_the_documents(half_wrong, demo_server, tmp_path)
    assert status == "completed"
    codes = [json.loads(answer)["response"]["status_code"] for answer in answers]
    assert codes == [200, 404]
    status, said = batch_of_the_documents("{", demo_server, tmp_path)
    assert status == "failed"
    assert "line=1" in said[0]


# ── in the terminal ─────────────────────────────────────────────────────────────────────────────


def test_a_session_begins_and_ends(demo_server, tmp_path):
    assert terminal_line("tetrad chat  ").split() == ["tetrad", "chat"]
    environment = {"HOME": str(tmp_path), "TETRAD_URL": demo_server.url}
    arguments = ("chat", "--no-history", "--temperature", "0")
    with typed_terminal(*arguments, environment=environment) as terminal:
        terminal.wait_for("demo at")
        terminal.wait_for("> ")
        terminal.type("What is the capital of France?\r")
        terminal.wait_for("Paris")
        terminal.wait_for("> ")
        terminal.type("Tell me a very long story.\r")
        terminal.wait_for("story.\n")
        terminal.wait_for(" ")
        terminal.interrupt()
        terminal.wait_for("stopped")
        terminal.wait_for("> ")
        terminal.type(CTRL_D)
        assert terminal.wait_for_end() == 0
    story = demo_server.lines("request", at_least=3)[-1]
    assert story["outcome"] == "client_gone"


@pytest.mark.parametrize("beginning", ["blue", "def fib"])
def test_one_question_is_answered(demo_server, tmp_path, beginning):
    done = typed(terminal_line(beginning), demo_server, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_what_is_piped_belongs_to_the_question(demo_server, tmp_path):
    line = terminal_line("git diff").replace("git diff", "echo 'mend a typing error'")
    done = typed(line, demo_server, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_a_schema_may_be_typed(demo_server, tmp_path):
    done = typed(terminal_line("--json"), demo_server, tmp_path)
    assert done.returncode == 0, done.stderr
    assert isinstance(json.loads(done.stdout)["age"], int)


def test_a_gap_in_a_file_is_filled(code_server, tmp_path):
    file = tmp_path / "add.py"
    file.write_text("def add(a, b):\n    return \n")
    done = typed(terminal_line("--fim"), code_server, tmp_path)
    assert done.returncode == 0, done.stderr
    assert file.read_text() == f"def add(a, b):\n    return {done.stdout}\n"
    assert done.stdout
