"""The demo's real engine and its server, killed in the middle of a batch: each answer stays."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import threading
import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import httpx2 as httpx
import psutil
import pytest

from tests.service.batches_over_http import begin, contents, num_done, until_completed
from tests.service.fakes import wait_until
from tests.service.kept_batches import COMPLETIONS, jsonl, line
from tests.service.real_server import serving
from tests.watching import is_running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from loaders.demo import DemoRepositories
    from tests.service.real_server import RealServer

pytestmark = [pytest.mark.slow, pytest.mark.alone]

NUM_LINES = 40
WRONG = 7  # of the lines, one that is answered with an error
KILLS = (range(3, 12), range(20, 30))  # lines answered by then, one of each
LONGEST_DELAY_S = 0.2  # some tokens: a kill falls anywhere between answers
PAUSE_S = 0.2  # between the requests of others
BESIDE = {"prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}


def num_tokens(number: int) -> int:
    return 4 + number % 4


def batch_of_lines() -> bytes:
    greedy: dict[str, Any] = {"temperature": 0, "model": "demo", "ignore_eos": True}
    lines = [
        line(f"id {i}", prompt=f"Count: {i}, {i + 1},", max_tokens=num_tokens(i), **greedy)
        for i in range(NUM_LINES)
    ]
    lines[WRONG]["body"]["temperature"] = 9
    return jsonl(*lines)


@contextmanager
def others_asking(server: RealServer) -> Iterator[list[str]]:
    """Ask without end what is no batch's; give the answers."""
    texts: list[str] = []
    is_over = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            while not is_over.wait(PAUSE_S):
                try:
                    answer = client.post(COMPLETIONS, json=BESIDE)
                except httpx.TransportError:
                    return  # the server was killed
                texts.append(answer.json()["choices"][0]["text"])

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield texts
    finally:
        is_over.set()
        thread.join()


def kill_all(server: RealServer) -> None:
    """Kill a server and its engine at once, neither of which can say anything."""
    engines = psutil.Process(server.popen.pid).children(recursive=True)
    assert engines
    for process_id in (server.popen.pid, *(engine.pid for engine in engines)):
        os.kill(process_id, signal.SIGKILL)
    server.popen.wait()
    wait_until(lambda: not any(is_running(engine.pid) for engine in engines))


def kill_midway(
    server: RealServer, batch_id: str, num_lines: int, chance: random.Random
) -> list[str]:
    """Kill all some time after so many lines were answered; return what others were answered."""
    with others_asking(server) as texts:
        wait_until(lambda: num_done(server.client, batch_id) >= num_lines and bool(texts), 60)
        time.sleep(chance.uniform(0, LONGEST_DELAY_S))
        kill_all(server)
    return texts


def committed(state: Path, copy: Path) -> dict[str, bytes]:
    """What lines were answered so far, read from a copy, so that the next start finds all as is."""
    shutil.copytree(state, copy)
    with closing(sqlite3.connect(copy / "batches" / "batches.sqlite")) as database:
        found = database.execute("SELECT custom_id, result FROM lines WHERE result IS NOT NULL")
        return dict(found.fetchall())


def test_answers_of_the_demo_are_there_once_however_often_all_is_killed(
    demo: DemoRepositories, tmp_path: Path
) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    chance = random.Random(seed)
    settings: dict[str, Any] = {
        "cache_dir": str(demo.cache_dir),
        "served_model_name": "demo",
        "state_dir": str(tmp_path / "state"),
        "batch_every_steps": 2,
    }
    batch_id = ""
    kept: dict[str, bytes] = {}
    beside: list[str] = []
    for number, moments in enumerate(KILLS):
        with serving(tmp_path / f"server {number}", demo.default_spec, **settings) as server:
            batch_id = batch_id or begin(server.client, batch_of_lines())
            beside += kill_midway(server, batch_id, chance.choice(moments), chance)
        found = committed(tmp_path / "state", tmp_path / f"copy {number}")
        assert moments.start <= len(found) < NUM_LINES
        assert found.items() >= kept.items()
        kept = found
    with serving(tmp_path / "last server", demo.default_spec, **settings) as server:
        with others_asking(server) as texts:
            batch = until_completed(server.client, batch_id)
        output = contents(server.client, batch["output_file_id"])
        errors = contents(server.client, batch["error_file_id"])

    assert batch["request_counts"] == {"total": NUM_LINES, "completed": NUM_LINES - 1, "failed": 1}
    told = [json.loads(each) for each in output]
    ids = [f"id {number}" for number in range(NUM_LINES)]
    assert [each["custom_id"] for each in told] == ids[:WRONG] + ids[WRONG + 1 :]
    assert [json.loads(each)["custom_id"] for each in errors] == [ids[WRONG]]
    assert set(output) | set(errors) >= set(kept.values())
    for each in told:
        number = ids.index(each["custom_id"])
        body = each["response"]["body"]
        assert body["usage"]["completion_tokens"] == num_tokens(number)
        assert body["choices"][0]["text"]
    assert len(set(beside + texts)) == 1
