"""Forms that end whoever reads them, against a real server: it lives on, and answers everybody."""

from __future__ import annotations

import contextlib
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from tests.service.fakes import wait_until
from tests.service.processes import ServerProcess, serving
from tests.watching import is_running

if TYPE_CHECKING:
    from collections.abc import Iterator

CHAIN = "start: r0\n" + "\n".join(f"r{n}: r{n + 1}" for n in range(3000)) + '\nr3000: "a"'
TERMINALS = "start: T0\n" + "\n".join(f'T{n}: T{n + 1} "a"' for n in range(4000)) + '\nT4000: "a"'
GBNF = "root ::= r0\n" + "\n".join(f"r{n} ::= r{n + 1}" for n in range(4000)) + '\nr4000 ::= "a"'
BOMBS: list[tuple[str, dict[str, Any]]] = [
    ("guided_json", {"guided_json": {"type": "integer", "minimum": -1e300, "maximum": -1e30}}),
    ("json_schema", {"json_schema": {"type": "integer", "maximum": -(2**63)}}),
    (
        "grammar",
        {"grammar": 'start: %json {"type": "integer", "minimum": -1e99, "maximum": -1e30}'},
    ),
    ("grammar", {"grammar": CHAIN}),
    ("guided_grammar", {"guided_grammar": TERMINALS}),
    ("structured_outputs.grammar", {"structured_outputs": {"grammar": GBNF}}),
    ("grammar", {"grammar": "start: " + '"a"? ' * 20_000}),
    ("grammar", {"grammar": "start: " + '"a" | ' * 20_000 + '"a"'}),
    ("regex", {"regex": "((a{1000}){1000}){700}"}),
    ("grammar", {"grammar": 'start: A\nA: (("a"{1000}){1000}){7}'}),
    ("regex", {"regex": r"[^\s\S]"}),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("reading"), {}) as running:
        running.wait_ready()
        yield running


def readers(server: ServerProcess) -> set[int]:
    """The processes in which forms are read."""
    found = set()
    for child in server.process.children():
        with contextlib.suppress(psutil.ZombieProcess):
            if any(word.endswith("reading_worker.py") for word in child.cmdline()):
                found.add(child.pid)
    return found


@pytest.mark.parametrize(("param", "bomb"), BOMBS, ids=[str(bomb)[:40] for _, bomb in BOMBS])
def test_such_a_form_is_refused_by_its_field_and_the_next_request_answered(server, param, bomb):
    refused = server.complete(**bomb)
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert server.popen.poll() is None
    assert server.complete(regex="[a-z]+").status_code == 200


def test_those_who_ask_beside_such_forms_are_answered(server):
    with ThreadPoolExecutor(16) as pool:
        bombs = [
            pool.submit(server.complete, grammar=f'start: "{n}" ' + '"a"? ' * 20_000)
            for n in range(12)
        ]
        mates = [pool.submit(server.complete, regex=f"[a-z]+{n}") for n in range(4)]
        plain = [pool.submit(server.complete) for _ in range(4)]
        assert {mate.result().status_code for mate in [*mates, *plain]} == {200}
        answers = [bomb.result() for bomb in bombs]
    assert {answer.status_code for answer in answers} <= {400, 429}
    for answer in answers:
        assert answer.status_code == 400 or float(answer.headers["retry-after"]) > 0
    assert server.popen.poll() is None


def test_memory_does_not_grow_with_what_was_refused(server):
    def taken() -> int:
        processes = [server.process, *server.process.children(recursive=True)]
        return sum(process.memory_info().rss for process in processes)

    def send(count: int) -> None:
        for _ in range(count):
            number = next(numbers)
            bomb = f'start: A\nA: (("a"{{1000}}){{1000}}){{{number}}}'
            assert server.complete(grammar=bomb).status_code == 400

    numbers = iter(range(100, 1000))
    send(5)
    before = taken()
    send(20)
    assert taken() < before + 32 * 2**20


def test_a_reader_that_is_killed_is_replaced_and_nobody_notices(server):
    assert server.complete(regex="x+").status_code == 200
    killed = readers(server)
    assert killed
    for reader in killed:
        os.kill(reader, signal.SIGKILL)
    assert server.complete(regex="y+").status_code == 200
    assert readers(server)
    assert readers(server).isdisjoint(killed)


def test_readers_start_with_the_first_form_and_end_with_the_server(tmp_path):
    with serving(tmp_path, {}) as server:
        server.wait_ready()
        assert server.complete().status_code == 200
        assert readers(server) == set()
        assert server.complete(regex="x+").status_code == 200
        (reader,) = readers(server)
        server.popen.send_signal(signal.SIGTERM)
        assert server.popen.wait(20) == 0
        wait_until(lambda: not is_running(reader))


def test_readers_end_with_a_server_that_is_killed(tmp_path):
    with serving(tmp_path, {}) as server:
        server.wait_ready()
        assert server.complete(regex="x+").status_code == 200
        (reader,) = readers(server)
        server.popen.kill()
        server.popen.wait(20)
        wait_until(lambda: not is_running(reader))
