"""`tetrad doctor` as a real command, with the hub away and with one that answers."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from service.commands.doctor import as_line, exit_code
from service.doctor.finding import fix, ok, warning
from tests.hub_server import HubRepository, running_hub
from tests.published import GptqBranch, LlamaShape, gptq_files

ROOT = Path(__file__).parents[3]


def doctor(tmp_path: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("TETRAD_", "HF_"))}
    homes = {"TETRAD_CACHE_DIR": str(tmp_path / "tetrad"), "HF_HOME": str(tmp_path / "hf")}
    return subprocess.run(
        [sys.executable, "-c", "from service.cli import main; main()", "doctor", *arguments],
        env={**environment, **homes, "COLUMNS": "80", **variables},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_lines_say_how_bad_what_and_which_command():
    assert as_line(ok("port", "8000 is free")).plain == "ok      port          8000 is free"
    told = as_line(fix("gpu", "driver\n[red]old", "install")).plain
    assert told == f"fix     gpu           driver [red]old\n{'':22}→ install"


def test_what_a_file_or_a_hub_says_cannot_steer_the_terminal():
    told = as_line(fix("variant", "a\x1b[2J\nb", "tetrad download \x9b1m")).plain
    assert not {"\x1b", "\x9b"} & set(told)
    assert "a?[2J b" in told


def test_exit_code_is_1_where_something_must_be_fixed():
    assert exit_code([ok("a", "b"), warning("a", "b")]) == 0
    assert exit_code([ok("a", "b"), fix("a", "b", "c")]) == 1


@pytest.mark.slow
def test_without_a_network_a_sound_machine_is_fine(tmp_path):
    done = doctor(tmp_path, "--local-files-only", "--port", "0", "--device", "cpu")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    lines = [line for line in done.stdout.splitlines() if not line.lstrip().startswith("→")]
    assert {line.split()[0] for line in lines} <= {"ok", "warning"}
    assert "not asked: local_files_only is set" in done.stdout
    assert len(lines) >= 18
    assert not (tmp_path / "tetrad").exists()


@pytest.mark.slow
def test_with_a_hub_a_variants_size_a_refused_token_and_a_taken_port_are_found(tmp_path):
    with running_hub() as hub, socket.create_server(("127.0.0.1", 0)) as taken:
        shape = LlamaShape(64, 2, 128, 100, kv_heads=2, heads=4, head_dim=16)
        files = gptq_files(shape, GptqBranch("main", 4, 32, desc_act=True, gigabytes="0.01"))
        hub.repositories["someone/model"] = HubRepository({"main": files})
        port = str(taken.getsockname()[1])
        done = doctor(
            tmp_path,
            *("someone/model", "--json", "--port", port, "--device", "cpu"),
            HF_ENDPOINT=hub.url,
            HF_HUB_DISABLE_TELEMETRY="1",
            TETRAD_HUB_TOKEN="hf_secret",
        )
    assert done.returncode == 1, done.stderr
    found = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert found["hub"]["level"] == "ok"
    assert hub.url in found["hub"]["found"]
    assert found["variant"]["level"] == "warning"
    assert (found["token"]["level"], found["port"]["level"]) == ("fix", "fix")
    assert "agrees with the hub's" in found["clock"]["found"]
    assert "hf_secret" not in done.stdout
