"""Engines in processes of their own: killed, hung, drained. Real processes, a fake engine."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from typing import TYPE_CHECKING

import httpx2 as httpx
import openai
import pytest

from tests.service.fakes import wait_until
from tests.service.processes import MODEL, ServerProcess, serving

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.alone]

NUM_STREAMS = 32
NUM_ROUNDS = 20


async def read_stream(client: openai.AsyncOpenAI, number: int, num_tokens: int) -> str:
    """Read a whole answer; raises what the official client makes of an error."""
    stream = await client.completions.create(
        model=MODEL, prompt=f"client {number}", max_tokens=num_tokens, stream=True
    )
    return "".join([chunk.choices[0].text async for chunk in stream])


def test_answers_are_each_clients_own(tmp_path: Path):
    async def ask(server: ServerProcess) -> None:
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key="none", max_retries=0
        ) as client:
            texts = await asyncio.gather(*(read_stream(client, i, 20) for i in range(40)))
        expected = [server.expected_text(f"client {i}", 20) for i in range(40)]
        assert texts == expected

    with serving(tmp_path, {"step_s": 0.002}, max_num_seqs=8) as server:
        asyncio.run(ask(server))
        assert server.admin("check", model=MODEL).json() == {"is_idle": True, "problem": None}


def test_killed_engine_is_told_to_every_client_and_replaced(tmp_path: Path, monkeypatch):
    """And nothing of its twenty predecessors is left: no memory, no descriptors, no names."""

    async def live_all_along(client: httpx.AsyncClient, done: asyncio.Event) -> None:
        while not done.is_set():
            started = time.monotonic()
            assert (await client.get("/health/live")).status_code == 200
            assert time.monotonic() - started < 1
            await asyncio.sleep(0.02)

    async def one_round(server: ServerProcess, load_s: float) -> None:
        (worker,) = server.workers()
        done = asyncio.Event()
        async with (
            openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="n", max_retries=0) as client,
            httpx.AsyncClient(base_url=server.url) as http,
        ):
            watch = asyncio.create_task(live_all_along(http, done))
            reading = [
                asyncio.create_task(read_stream(client, i, 50_000)) for i in range(NUM_STREAMS)
            ]
            while server.num_running() < NUM_STREAMS:
                await asyncio.sleep(0.01)
            os.kill(worker.pid, signal.SIGKILL)
            killed = time.monotonic()
            for error in await asyncio.gather(*reading, return_exceptions=True):
                assert isinstance(error, openai.APIError)
                assert error.body["code"] == "engine_dead"
                assert "SIGKILL" in error.body["message"]
            assert time.monotonic() - killed < 1
            refused = await http.post("/v1/completions", json={"model": MODEL, "prompt": "hi"})
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) >= 1
            while (await http.get("/health/ready")).status_code != 200:
                await asyncio.sleep(0.02)
            assert time.monotonic() - killed < load_s + 2
            done.set()
            await watch
        assert server.complete(prompt="again").status_code == 200

    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    started = time.monotonic()
    with serving(
        tmp_path, {"step_s": 0.005}, max_num_seqs=NUM_STREAMS, max_restarts=NUM_ROUNDS
    ) as server:
        load_s = time.monotonic() - started
        for _ in range(2):  # pools and caches fill
            asyncio.run(one_round(server, load_s))
        time.sleep(0.3)
        before = server.process.memory_info().rss, server.process.num_fds()
        for _ in range(NUM_ROUNDS - 2):
            asyncio.run(one_round(server, load_s))
        wait_until(lambda: server.process.num_fds() <= before[1])
        grown = server.process.memory_info().rss - before[0]
        print(f"memory grew by {grown / 1e6:.1f} MB over {NUM_ROUNDS - 2} rounds")
        assert grown < 10e6
        assert server.statuses()[MODEL]["restarts"] == NUM_ROUNDS
        assert len(server.workers()) == 1
        assert [path for path in temporary.iterdir() if path.name.startswith("tetrad-")] == []


@pytest.mark.parametrize(
    ("ailment", "message"),
    [
        ("hang", "its step took longer than 1 s"),
        ("stop", "it was not heard of for 1 s"),
        ("raise", "the engine died of ZeroDivisionError"),
        ("exit", "ended with code 3"),
    ],
)
def test_sick_engine_is_ended_told_of_and_replaced(tmp_path: Path, ailment, message):
    with serving(tmp_path, step_deadline_s=1) as server:
        sick = server.workers()[0].pid
        started = time.monotonic()
        response = server.complete(user=ailment)
        assert time.monotonic() - started < 5
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "engine_dead"
        assert message in response.json()["error"]["message"]
        assert "retry-after" in response.headers
        server.wait_ready()
        assert server.complete().status_code == 200
        (well,) = server.workers()
        assert well.pid != sick
        (ended,) = [line for line in server.lines() if line["event"] == "engine_ended"]
        assert message in ended["reason"]


@pytest.mark.parametrize(
    ("ailment", "found"),
    [
        ("illegal access", "an illegal memory access on the GPU"),
        ("illegal access, and a clean-up that hangs", "a failed assertion on the GPU"),
    ],
)
def test_engine_that_lost_its_device_ends_at_once_and_is_replaced(tmp_path: Path, ailment, found):
    """Whatever would be cleaned up: a step's deadline, by which a hang is found, is far off."""
    with serving(tmp_path) as server:
        sick = server.workers()[0]
        started = time.monotonic()
        response = server.complete(user=ailment)
        assert response.status_code == 503
        assert f"the engine met {found}" in response.json()["error"]["message"]
        sick.wait(5)
        assert time.monotonic() - started < 5
        server.wait_ready()
        assert server.complete().status_code == 200
        (told,) = [line for line in server.lines() if line["event"] == "device_lost"]
        assert told["found"] == found
        assert "compute-sanitizer" in told["what_to_do"]


def test_device_lost_in_the_servers_own_process_ends_it(tmp_path: Path):
    """No thread of that process has a device any more; whoever started the server starts it."""
    with serving(tmp_path, in_process=True) as server:
        response = server.complete(user="illegal access")
        assert response.status_code == 503
        assert "an illegal memory access" in response.json()["error"]["message"]
        assert server.popen.wait(20) == 1


def test_long_but_healthy_step_is_no_hang(tmp_path: Path):
    with serving(tmp_path, {"step_s": 0.7}, step_deadline_s=1) as server:
        assert server.complete(max_tokens=3).status_code == 200
        assert server.statuses()[MODEL]["restarts"] == 0


def test_engine_that_keeps_dying_is_given_up_and_that_is_said(tmp_path: Path):
    with serving(tmp_path, max_restarts=2) as server:
        for _ in range(2):
            assert server.complete(user="exit").status_code == 503
            server.wait_ready()
        assert server.complete(user="exit").status_code == 503
        assert server.popen.wait(10) == 1
    assert "given up after 2 restarts" in server.log()
    assert "no_model_can_answer" in server.log()


def test_engine_that_never_comes_up_is_tried_with_longer_and_longer_waits(tmp_path: Path):
    with serving(tmp_path, {"breaks_loading": True}, ready=False, max_restarts=2) as server:
        assert server.popen.wait(20) == 1
        waits = [line["in_s"] for line in server.lines() if "in_s" in line]
    assert waits == [0.5, 1.0]
    assert "the engine died of ZeroDivisionError; given up after 2 restarts" in server.log()


def test_what_another_try_would_not_mend_is_not_tried_again(tmp_path: Path):
    with serving(tmp_path, {"load_fails": "no such branch"}, ready=False) as server:
        assert server.popen.wait(10) == 1
    assert "no such branch" in server.log()
    assert "engine_restarting" not in server.log()


@pytest.mark.parametrize("in_process", [False, True])
def test_context_that_does_not_fit_is_shortened_and_that_is_said(tmp_path: Path, in_process):
    with serving(tmp_path, {"most_context": 30_000}, in_process=in_process) as server:
        (model,) = server.client.get("/v1/models").json()["data"]
        assert (model["state"], model["max_model_len"]) == ("serving", 25_000)
        assert model["degraded"] == (
            "context 50000 instead of 100000 tokens: out of memory;"
            " context 25000 instead of 50000 tokens: out of memory"
        )
        assert server.client.get("/health").json()["variants"][0]["degraded"] is True
        assert [line["reason"] for line in server.lines() if line["event"] == "degraded"] == [
            "no room; trying context 50000 instead of 100000 tokens: out of memory",
            "no room; trying context 25000 instead of 50000 tokens: out of memory",
        ]
        assert server.complete().status_code == 200
        assert server.statuses()[MODEL]["restarts"] == 0


def test_engine_that_is_killed_again_and_again_while_it_loads_gets_less_context(tmp_path: Path):
    with serving(tmp_path, {"killed_above": 60_000}) as server:
        (model,) = server.client.get("/v1/models").json()["data"]
        assert model["max_model_len"] == 50_000
        assert "out of memory" in model["degraded"]


def test_strict_server_gives_up_nothing(tmp_path: Path):
    with serving(tmp_path, {"most_context": 30_000}, strict=True, ready=False) as server:
        assert server.popen.wait(30) != 0
        assert "no room" in server.log()


def test_loading_is_told_step_by_step(tmp_path: Path):
    with serving(tmp_path, {"load_s": 1}, ready=False) as server:
        wait_until(lambda: "pretending" in server.client.get("/health/ready").text, limit_s=10)
        response = server.client.get("/health/ready")
        assert response.status_code == 503
        assert "retry-after" in response.headers
        body = response.json()
        assert body["phase"] == "loading"
        assert body["variants"] == [{"state": "loading", "step": "pretending", "percent": 50}]
        refused = server.complete()
        assert refused.status_code == 503
        assert "loading (pretending)" in refused.json()["error"]["message"]
        server.wait_ready()


# ── the end of the server ───────────────────────────────────────────────────────────────────────


def open_stream(server: ServerProcess, num_tokens: int) -> httpx.Response:
    body = {"model": MODEL, "prompt": "hi", "max_tokens": num_tokens, "stream": True}
    request = server.client.build_request("POST", "/v1/completions", json=body)
    response = server.client.send(request, stream=True)
    assert response.status_code == 200
    return response


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_to_the_whole_group_lets_streams_finish(tmp_path: Path, number):
    """Ctrl-C in a terminal, or a container's end: the engines must not end before the server."""
    with serving(tmp_path, {"step_s": 0.02}) as server:
        (worker,) = server.workers()
        stream = open_stream(server, 60)
        os.killpg(server.popen.pid, number)
        wait_until(lambda: server.client.get("/health/ready").status_code == 503)
        assert server.complete().status_code == 503
        text = stream.read().decode()
        assert '"finish_reason":"length"' in text
        assert text.endswith("data: [DONE]\n\n")
        assert server.popen.wait(5) == 0, server.log()
        assert not worker.is_running()


def test_streams_past_the_drain_limit_are_cut_off_and_the_engine_ends_too(tmp_path: Path):
    with serving(tmp_path, {"step_s": 0.02}, drain_limit_s=0.5) as server:
        (worker,) = server.workers()
        stream = open_stream(server, 50_000)
        sent = time.monotonic()
        server.popen.send_signal(signal.SIGTERM)
        text = stream.read().decode()
        assert '"error":{"message":"the server is stopping' in text
        assert server.popen.wait(5) == 0
        assert time.monotonic() - sent < 0.5 + 2
        assert not worker.is_running()


def test_engine_does_not_outlive_a_killed_server(tmp_path: Path):
    with serving(tmp_path, {"step_s": 0.05}) as server:
        (worker,) = server.workers()
        stream = open_stream(server, 50_000)
        server.popen.kill()
        wait_until(lambda: not worker.is_running() or worker.status() == "zombie", limit_s=2)
        stream.close()


def test_no_secret_and_no_setting_is_in_the_list_of_processes(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TETRAD_HUB_TOKEN", "hf_secret")
    with serving(tmp_path) as server:
        (worker,) = server.workers()
        assert "hf_secret" not in " ".join(worker.cmdline())
        assert "hf_secret" not in json.dumps(worker.environ())
        assert "hf_secret" not in server.log()


@pytest.mark.parametrize("in_process", [False, True])
def test_server_that_still_loads_ends_at_once(tmp_path: Path, in_process):
    with serving(tmp_path, {"load_s": 30}, ready=False, in_process=in_process) as server:
        wait_until(lambda: "pretending" in server.client.get("/health/ready").text, limit_s=10)
        server.popen.send_signal(signal.SIGTERM)
        assert server.popen.wait(4) == 0


@pytest.mark.parametrize(
    ("option", "last_line"),
    [
        ({"load_fails": "no such kernel"}, "self_test_failed"),
        ({"breaks_loading": True}, "engine_failed"),
    ],
)
def test_last_lines_of_an_engine_that_cannot_be_loaded_say_why(tmp_path: Path, option, last_line):
    with serving(tmp_path, option, ready=False, max_restarts=0) as server:
        assert server.popen.wait(30) == 1
        assert last_line in [line["event"] for line in server.lines()]


def test_engine_ended_by_a_signal_without_a_name_is_replaced_too(tmp_path: Path):
    with serving(tmp_path, {"step_s": 0.01}) as server:
        stream = open_stream(server, 50_000)
        server.workers()[0].send_signal(40)
        assert "ended by signal 40" in stream.read().decode()
        server.wait_ready()
        assert server.complete().status_code == 200


def test_engine_that_was_frozen_in_a_step_goes_on(tmp_path: Path):
    """As a container that is paused and resumed; the time does not count as the step's."""
    with serving(tmp_path, {"step_s": 0.9}, step_deadline_s=2) as server:
        stream = open_stream(server, 4)
        time.sleep(0.5)
        os.killpg(server.popen.pid, signal.SIGSTOP)
        time.sleep(3)
        os.killpg(server.popen.pid, signal.SIGCONT)
        assert '"finish_reason":"length"' in stream.read().decode()
        assert server.statuses()[MODEL]["restarts"] == 0


def test_hung_engine_leaves_a_trace_in_the_log(tmp_path: Path):
    with serving(tmp_path, step_deadline_s=1) as server:
        assert server.complete(user="hang").status_code == 503
        assert "fall_ill" in server.log()


# ── in one process ──────────────────────────────────────────────────────────────────────────────


def test_engine_may_run_in_the_servers_own_process(tmp_path: Path):
    with serving(tmp_path, {"step_s": 0.002}, in_process=True) as server:
        assert server.workers() == []
        answer = server.complete(max_tokens=9).json()
        assert answer["choices"][0]["text"] == server.expected_text("hi", 9)
        assert server.statuses()[MODEL]["pid"] == server.popen.pid
        server.popen.send_signal(signal.SIGTERM)
        assert server.popen.wait(5) == 0


def test_engine_that_died_in_the_servers_own_process_is_replaced(tmp_path: Path):
    with serving(tmp_path, in_process=True) as server:
        response = server.complete(user="raise")
        assert response.status_code == 503
        assert "ZeroDivisionError" in response.json()["error"]["message"]
        server.wait_ready()
        assert server.complete().status_code == 200


def test_engine_that_hangs_in_the_servers_own_process_ends_it(tmp_path: Path):
    """A thread cannot be ended; whoever started the server starts it again."""
    with serving(tmp_path, in_process=True, step_deadline_s=1) as server:
        assert server.complete(user="hang").status_code == 503
        assert server.popen.wait(10) == 1
    assert "its step took longer than 1 s" in server.log()
