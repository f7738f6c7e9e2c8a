"""A server that is killed in the middle of a batch: nothing is lost, and nothing is there twice."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from tests.service.batches_over_http import begin, contents, look, num_done, until_completed
from tests.service.fakes import wait_until
from tests.service.kept_batches import jsonl, line
from tests.service.processes import ServerProcess, serving

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.alone]

NUM_LINES = 120
LAST_KILL = 100  # lines that were answered when it is killed for the last time


def kill_after(server: ServerProcess, batch_id: str, num_lines: int) -> None:
    """Kill a server once so many lines were answered, while others are under way."""
    wait_until(lambda: num_done(server.client, batch_id) >= num_lines, 60)
    os.kill(server.popen.pid, signal.SIGKILL)
    server.popen.wait()


def results(server: ServerProcess, file_id: str) -> list[dict[str, Any]]:
    return [json.loads(each) for each in contents(server.client, file_id)]


def test_a_batch_survives_its_server_being_killed_again_and_again(tmp_path: Path):
    lines = [
        line(f"id {number}", prompt=f"line {number}", max_tokens=8) for number in range(NUM_LINES)
    ]
    lines[7]["body"]["temperature"] = 9
    settings = {"state_dir": str(tmp_path / "state"), "max_num_seqs": 4}
    engine = {"step_s": 0.004}
    with serving(tmp_path, engine, **settings) as server:
        batch_id = begin(server.client, jsonl(*lines), filename="../../a.jsonl")
        kill_after(server, batch_id, 15)
    for num_lines in (30, 45, LAST_KILL):
        with serving(tmp_path, engine, **settings) as server:
            kill_after(server, batch_id, num_lines)
    with serving(tmp_path, engine, **settings) as server:
        batch = until_completed(server.client, batch_id)
        output = results(server, batch["output_file_id"])
        errors = results(server, batch["error_file_id"])
    assert batch["request_counts"] == {"total": NUM_LINES, "completed": NUM_LINES - 1, "failed": 1}
    assert [each["custom_id"] for each in errors] == ["id 7"]
    counts = Counter(each["custom_id"] for each in output + errors)
    assert counts == {f"id {number}": 1 for number in range(NUM_LINES)}
    left = [path.name for path in (tmp_path / "state" / "batches" / "files").iterdir()]
    assert len(left) == 3  # the batch's own file, its output, its errors


def test_a_stop_does_not_wait_for_batches_and_the_next_start_goes_on(tmp_path: Path):
    lines = [line(f"id {number}", max_tokens=50) for number in range(40)]
    settings = {"state_dir": str(tmp_path / "state"), "max_num_seqs": 4, "drain_limit_s": 60}
    with serving(tmp_path, {"step_s": 0.02}, **settings) as server:
        batch_id = begin(server.client, jsonl(*lines))
        wait_until(lambda: num_done(server.client, batch_id) >= 2, 30)
        server.popen.send_signal(signal.SIGTERM)
        assert server.popen.wait(10) == 0
        assert not [each for each in server.lines() if each["event"] == "requests_cut_off"]
    with serving(tmp_path, {}, **settings) as server:
        batch = until_completed(server.client, batch_id)
        output = results(server, batch["output_file_id"])
        assert [each["custom_id"] for each in output] == [f"id {number}" for number in range(40)]


def test_a_database_that_another_program_holds_stops_a_batch_until_it_lets_go(tmp_path: Path):
    ids = [f"id {number}" for number in range(40)]
    settings = {"state_dir": str(tmp_path / "state"), "max_num_seqs": 4}
    with serving(tmp_path, {"step_s": 0.01}, **settings) as server:
        batch_id = begin(server.client, jsonl(*(line(each, max_tokens=20) for each in ids)))
        wait_until(lambda: num_done(server.client, batch_id) >= 2, 30)
        with closing(sqlite3.connect(tmp_path / "state" / "batches" / "batches.sqlite")) as other:
            other.execute("BEGIN IMMEDIATE")
            wait_until(lambda: "tetrad_batches_stopped 1.0" in metrics(server), 30)
            now = look(server.client, batch_id)
            assert now["status"] == "in_progress"
            assert now["request_counts"]["completed"] < len(ids)
        batch = until_completed(server.client, batch_id)
        assert [each["custom_id"] for each in results(server, batch["output_file_id"])] == ids
        assert "tetrad_batches_stopped 0.0" in metrics(server)
        lines = server.lines()
        asked = Counter(each["request_id"] for each in lines if each["event"] == "request")
    told = [each for each in lines if each["event"] in ("batch_stopped", "batch_goes_on")]
    assert [each["event"] for each in told] == ["batch_stopped", "batch_goes_on"]
    assert told[0]["reason"] == "database is locked"
    of_batch = {key: count for key, count in asked.items() if key.startswith(batch_id)}
    assert set(of_batch.values()) == {1}, "what was answered was asked again"


def metrics(server: ServerProcess) -> str:
    return server.client.get("/metrics").text
