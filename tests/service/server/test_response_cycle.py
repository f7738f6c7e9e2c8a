"""How an answer is put on the wire, by the version and the method that asked."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from service.server.response_cycle import ResponseCycle

START = {"type": "http.response.start", "status": 200, "headers": []}


class Transport:
    def __init__(self) -> None:
        self.sent = b""
        self.num_writes = 0

    def write(self, data: bytes) -> None:
        self.sent += data
        self.num_writes += 1

    def writelines(self, pieces: list[bytes]) -> None:
        self.write(b"".join(pieces))

    def is_closing(self) -> bool:
        return False


class Flow:
    write_paused = False


class Ended:
    """Whether the answer was said to be complete, and how often."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def piece(body: bytes, *, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": more}


def send(
    *messages: dict[str, Any],
    method: str = "GET",
    version: str = "1.1",
    keep_alive: bool = True,
    expects: bool = False,
) -> tuple[bytes, ResponseCycle]:
    """Send an answer; return what went out."""

    async def run() -> tuple[bytes, ResponseCycle]:
        logger = logging.getLogger(__name__)
        cycle = ResponseCycle(
            scope={"method": method, "http_version": version},  # type: ignore[arg-type]
            transport=Transport(),  # type: ignore[arg-type]
            flow=Flow(),  # type: ignore[arg-type]
            logger=logger,
            access_logger=logger,
            access_log=False,
            default_headers=[],
            message_event=asyncio.Event(),
            expect_100_continue=expects,
            keep_alive=keep_alive,
            on_response=Ended(),
        )
        for message in messages:
            await cycle.send(message)  # type: ignore[arg-type]
        return cycle.transport.sent, cycle  # type: ignore[attr-defined]

    return asyncio.run(run())


def with_length(length: int) -> dict[str, Any]:
    return {**START, "headers": [(b"content-length", b"%d" % length)]}


def test_stream_goes_out_in_chunks_and_ends_once():
    sent, cycle = send(START, piece(b"ab"), piece(b""), piece(b"c"), piece(b"", more=False))
    head, _, body = sent.partition(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in head
    assert body == b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
    assert cycle.on_response.count == 1
    assert cycle.keep_alive


def test_head_and_body_of_a_known_length_go_out_together_and_a_stream_does_not_wait():
    sent, cycle = send(with_length(2), piece(b"ab", more=False))
    assert sent.endswith(b"\r\n\r\nab")
    assert cycle.transport.num_writes == 1
    sent, _ = send(START)
    assert sent.endswith(b"\r\n\r\n")
    sent, _ = send(with_length(2), method="HEAD")
    assert sent.endswith(b"\r\n\r\n")
    sent, cycle = send(with_length(4), piece(b"ab"), piece(b"cd", more=False))
    assert sent.endswith(b"\r\n\r\nabcd")
    assert cycle.transport.num_writes == 2


def test_last_part_may_hold_the_end_of_the_body():
    sent, _ = send(START, piece(b"ab"), piece(b"cd", more=False))
    assert sent.endswith(b"2\r\nab\r\n2\r\ncd\r\n0\r\n\r\n")


def test_http_1_0_gets_no_chunks_and_no_other_answer():
    sent, cycle = send(START, piece(b"ab"), piece(b"cd", more=False), version="1.0")
    head, _, body = sent.partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert b"connection: close" in head
    assert body == b"abcd"
    assert not cycle.keep_alive


def test_http_1_0_is_told_that_its_connection_stays_where_it_asked_for_that():
    sent, cycle = send(with_length(2), piece(b"ab", more=False), version="1.0")
    assert b"connection: keep-alive" in sent
    assert cycle.keep_alive
    sent, _ = send(with_length(2), piece(b"ab", more=False), version="1.0", keep_alive=False)
    assert b"connection: close" in sent


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("start", [START, with_length(4)])
def test_head_gets_no_body(version, start):
    sent, cycle = send(
        start, piece(b"ab"), piece(b"cd", more=False), method="HEAD", version=version
    )
    assert sent.endswith(b"\r\n\r\n")
    assert cycle.on_response.count == 1


def test_lengths_are_held_to():
    with pytest.raises(RuntimeError, match="longer"):
        send(with_length(1), piece(b"ab", more=False))
    with pytest.raises(RuntimeError, match="shorter"):
        send(with_length(3), piece(b"ab", more=False))
    with pytest.raises(RuntimeError, match="after its end"):
        send(with_length(2), piece(b"ab", more=False), piece(b"c"))


def test_connection_ends_where_it_is_not_known_whether_a_body_comes():
    """The client waited to be asked for it, and got an answer instead."""
    sent, cycle = send(with_length(2), piece(b"ab", more=False), expects=True)
    assert b"connection: close" in sent
    assert not cycle.keep_alive


def test_nothing_is_sent_to_who_has_left():
    sent, cycle = send(START, piece(b"ab"))
    cycle.leave()
    asyncio.run(cycle.send(piece(b"cd", more=False)))  # type: ignore[arg-type]
    assert cycle.transport.sent == sent
    assert cycle.on_response.count == 0
