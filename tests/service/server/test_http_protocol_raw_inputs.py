"""Each of the raw inputs against the real server's process, and a plain request after all."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import httpx2 as httpx
import pytest

from tests.service.processes import serving
from tests.service.server import raw_http_inputs as inputs
from tests.service.server.raw_http import Answer, RawConnection

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.service.processes import ServerProcess
    from tests.service.server.raw_http_inputs import RawInput

pytestmark = [pytest.mark.slow]

FOLLOWER = b"GET /health/live HTTP/1.1\r\nhost: x\r\nx-request-id: follower\r\n\r\n"


@dataclass
class Outcome:
    """What came of one input."""

    answers: list[Answer] = field(default_factory=list)
    closed: bool = False  # by the server, after these answers and nothing else
    follower: Answer | None = None  # the answer to a plain request on the same connection


def try_input(address: tuple[str, int], case: RawInput) -> Outcome:
    connection = RawConnection(address)
    outcome = Outcome()
    try:
        connection.send(*case.pieces)
        methods = [*case.methods, *["GET"] * len(case.statuses)]
        if case.statuses[:1] == (100,):
            methods = ["GET", *methods]
        for method, _ in zip(methods, case.statuses, strict=False):
            answer = connection.read(method)
            if answer is None:
                break
            outcome.answers.append(answer)
        if case.closes:
            outcome.closed = connection.is_at_end()
        else:
            connection.send(FOLLOWER)
            outcome.follower = connection.read()
    finally:
        connection.close()
    return outcome


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder: Path = tmp_path_factory.mktemp("raw")
    settings = {
        "api_key": inputs.KEY.decode(),
        "header_timeout_s": inputs.HEADER_TIMEOUT_S,
        "body_timeout_s": inputs.BODY_TIMEOUT_S,
        "first_byte_timeout_s": inputs.FIRST_BYTE_TIMEOUT_S,
        "idle_timeout_s": inputs.IDLE_TIMEOUT_S,
        "max_body_size": inputs.MAX_BODY_SIZE,
    }
    with serving(folder, **settings) as server:
        server.client.headers["authorization"] = f"Bearer {inputs.KEY.decode()}"
        yield server


@pytest.fixture(scope="module")
def address(server: ServerProcess) -> tuple[str, int]:
    url = httpx.URL(server.url)
    return url.host, url.port or 0


@pytest.fixture(scope="module")
def outcomes(server: ServerProcess, address: tuple[str, int]) -> dict[str, Outcome]:
    """All at once, a few at a time, as many end with a deadline only."""
    before = server.complete()
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda case: try_input(address, case), inputs.INPUTS))
    after = server.complete()
    assert (before.status_code, after.status_code) == (200, 200)
    assert before.json()["choices"] == after.json()["choices"]
    return {case.name: outcome for case, outcome in zip(inputs.INPUTS, found, strict=True)}


def test_there_are_many_inputs_and_each_has_a_name_of_its_own():
    names = [case.name for case in inputs.INPUTS]
    assert len(names) >= 120
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("case", inputs.INPUTS, ids=lambda case: case.name)
def test_what_comes_of_an_input_is_as_the_table_says(case, outcomes):
    outcome = outcomes[case.name]
    assert [answer.status for answer in outcome.answers] == list(case.statuses)
    assert all(answer.is_whole for answer in outcome.answers)
    if case.closes:
        assert outcome.closed
    else:
        assert outcome.follower is not None
        assert outcome.follower.status == 200
        assert outcome.follower.header("x-request-id") == "follower"


@pytest.mark.parametrize(
    "case", [case for case in inputs.INPUTS if case.says], ids=lambda c: c.name
)
def test_answers_say_what_the_table_says(case, outcomes):
    said = [
        f"{name}: {value}".encode()
        for answer in outcomes[case.name].answers
        for name, value in answer.headers
    ]
    said += [answer.body for answer in outcomes[case.name].answers]
    assert any(case.says in part for part in said)


def test_every_error_is_json_with_a_message(outcomes):
    for name, outcome in outcomes.items():
        for answer in outcome.answers:
            if answer.status >= 400 and answer.body:
                error = json.loads(answer.body)["error"]
                assert error["message"], name
                assert len(error["message"]) <= 200, name


def test_what_ends_a_connection_says_so(outcomes):
    for case in inputs.INPUTS:
        answers = outcomes[case.name].answers
        # What is too large is answered before its body has come, which then is waited for.
        if case.closes and answers and answers[-1].status >= 400 and answers[-1].status != 413:
            assert answers[-1].header("connection") == "close", case.name


def test_answers_to_http_1_0_have_no_chunks(outcomes):
    for case in inputs.VERSIONS:
        if case.name.startswith("HTTP/1.0"):
            for answer in outcomes[case.name].answers:
                assert answer.header("transfer-encoding") is None


def test_every_path_answers_every_method_without_failing(server, address, outcomes):
    paths = server.client.get("/openapi.json").json()["paths"]
    assert len(paths) > 20
    for path in paths:
        asked = path.replace("{name}", "fake/model").encode()
        for method in ("OPTIONS", "HEAD", "TRACE"):
            for key in (b"", inputs.AUTH):
                connection = RawConnection(address)
                connection.send(
                    method.encode() + b" " + asked + b" HTTP/1.1\r\nHost: x\r\n" + key + b"\r\n"
                )
                answer = connection.read(method)
                assert answer is not None
                expected = {200, 400, 401, 404, 405} if method == "HEAD" else {401, 405}
                assert answer.status in expected, (method, path)
                connection.send(FOLLOWER)
                follower = connection.read()
                assert follower is not None
                assert follower.status == 200
                connection.close()


def test_log_says_little_of_it_and_nothing_broke(server, outcomes):
    events = [line["event"] for line in server.lines()]
    assert 1 <= events.count("request_refused") < 30
    assert "Traceback" not in server.log()
    assert inputs.KEY.decode() not in server.log()
