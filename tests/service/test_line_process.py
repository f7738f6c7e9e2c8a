"""A program in a process of its own: asked by lines, and gone when nobody needs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from service.line_process import Ending, LineProcess
from tests.watching import is_running

ECHO = """
import json, os, subprocess, sys, time
for line in sys.stdin:
    asked = json.loads(line)
    if asked.get("end"):
        os._exit(3)
    if asked.get("start"):
        started = subprocess.Popen(["sleep", "600"])
        print(json.dumps({"pid": started.pid}), flush=True)
        time.sleep(600)
    if asked.get("sleep"):
        time.sleep(600)
    print(json.dumps({"asked": asked, "environment": dict(os.environ)}), flush=True)
"""


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(ECHO)
    return path


def test_each_line_is_answered_without_our_environment(program, monkeypatch):
    monkeypatch.setenv("TETRAD_API_KEY", "secret")
    process = LineProcess(program, wall_s=20, environment={"A": "b"})
    for number in range(3):
        answer = process.ask({"number": number, "text": "ü\ud800"})
        assert answer is not None
        assert answer["asked"] == {"number": number, "text": "ü\ud800"}
        assert answer["environment"].get("A") == "b"
        assert "TETRAD_API_KEY" not in answer["environment"]
    process.stop()


def test_a_process_that_ends_or_is_late_is_no_answer_and_says_why(program):
    process = LineProcess(program, wall_s=20)
    assert process.ask({"end": True}) is None
    assert process.end().words == "its process ended with status 3"
    late = LineProcess(program, wall_s=0.2)
    assert late.ask({"sleep": True}) is None
    assert late.end().words == "its answer did not come in time"
    killed = LineProcess(program, wall_s=20)
    os.kill(killed.pid, signal.SIGPROF)
    assert killed.ask({}) is None
    assert killed.end().words == "it used up its processor time"
    ended = LineProcess(program, wall_s=20)
    os.kill(ended.pid, signal.SIGTERM)
    assert ended.ask({}) is None
    end = ended.end()
    assert end.was_from_outside
    assert end.words == "it was ended from outside by SIGTERM"
    assert not Ending(-signal.SIGKILL, is_late=True).was_from_outside  # we did that


def test_what_the_process_started_ends_with_it(program):
    process = LineProcess(program, wall_s=20)
    answer = process.ask({"start": True})
    assert answer is not None
    assert is_running(answer["pid"])
    process.stop()
    assert not is_running(process.pid)
    assert not is_running(answer["pid"])


def test_the_process_ends_with_ours(program, tmp_path):
    code = (
        "import sys; from pathlib import Path; from service.line_process import LineProcess;"
        f"p = LineProcess(Path({str(program)!r}), wall_s=20); p.ask({{}}); print(p.pid)"
    )
    root = Path(__file__).parents[2]
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    assert not is_running(int(ran.stdout))
