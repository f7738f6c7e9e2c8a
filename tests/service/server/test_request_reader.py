"""Requests out of bytes, however they are cut."""

from __future__ import annotations

import contextlib
import gc
import random
import weakref
from typing import TYPE_CHECKING

import pytest

from service.server.limits import ConnectionLimits
from service.server.refusals import Refusal
from service.server.request_reader import RequestReader
from tests.service.server.raw_http_inputs import INPUTS

if TYPE_CHECKING:
    from service.server.request_head import RequestHead

SEEDS = [sent for case in INPUTS if 0 < len(sent := b"".join(case.pieces)) < 3000]
PARTS = [
    b"\r\n",
    b"\n",
    b" ",
    b":",
    b"\x00",
    b"0",
    b"transfer-encoding: chunked\r\n",
    b"content-length: 5\r\n",
    b"connection: upgrade\r\nupgrade: h2c\r\n",
]
OFFER = (
    b"POST /a HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n"
    b"content-length: 3\r\n\r\nabc"
)


class Listener:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.heads: list[RequestHead] = []
        self.bodies: list[bytes] = []
        self.num_whole = 0

    def on_head(self, head: RequestHead, *, may_keep_alive: bool) -> None:
        self.heads.append(head)
        self.bodies.append(b"")

    def on_body_part(self, part: bytes) -> None:
        self.bodies[-1] += part

    def on_whole(self) -> None:
        self.num_whole += 1


def read(sent: bytes, size: int) -> tuple[Listener, str | None]:
    """Read bytes in pieces of a size; also return what was said against them."""
    listener = Listener()
    reader = RequestReader(ConnectionLimits(), listener)
    try:
        for start in range(0, len(sent), size):
            reader.feed(sent[start : start + size])
    except Refusal as refusal:
        return listener, refusal.code
    return listener, None


@pytest.mark.parametrize("sent", SEEDS, ids=range(len(SEEDS)))
def test_how_bytes_are_cut_makes_no_difference(sent):
    whole, said = read(sent, len(sent))
    for size in (1, 2, 7, 64):
        cut, said_of_cut = read(sent, size)
        assert said_of_cut == said
        assert (cut.heads, cut.bodies, cut.num_whole) == (
            whole.heads,
            whole.bodies,
            whole.num_whole,
        )


def test_a_body_behind_an_offer_belongs_to_its_request():
    listener, said = read(OFFER + OFFER.replace(b"abc", b"def"), 1000)
    assert said is None
    assert listener.bodies == [b"abc", b"def"]
    assert listener.num_whole == 2


def test_what_is_wrong_behind_an_offer_is_refused_as_elsewhere():
    _, said = read(OFFER + b"GET / HTTP/1.1\r\n\r\n", 1000)
    assert said == "invalid_http"
    _, said = read(OFFER + b"GET / HTTP/1.1\r\nhost: x\r\na: " + b"b" * 70_000, 100_000)
    assert said is None  # not yet
    _, said = read(OFFER + b"GET / HTTP/1.1\r\nhost: x\r\na: " + b"b" * 70_000 + b"\r\n\r\n", 9999)
    assert said == "headers_too_large"


def test_bytes_at_random_are_read_or_refused():
    chance = random.Random(16)
    for _ in range(3000):
        sent = bytearray(chance.choice(SEEDS) + chance.choice([b"", chance.choice(SEEDS)]))
        for _ in range(chance.randrange(6)):
            place = chance.randrange(len(sent) + 1)
            if chance.random() < 0.5:
                sent[place:place] = chance.choice(PARTS)
            else:
                sent[place : place + chance.randrange(8)] = bytes([chance.randrange(256)])
        read(bytes(sent), chance.choice([1, 3, 17, 100_000]))


def test_no_refused_request_outlives_its_connection():
    """What is raised keeps the frames it passed: a refusal that is kept would keep them all."""
    readers: list[weakref.ref[RequestReader]] = []
    for sent in SEEDS:
        reader = RequestReader(ConnectionLimits(), Listener())
        readers.append(weakref.ref(reader))
        with contextlib.suppress(Refusal):
            reader.feed(sent)
        reader.close()
        del reader
    gc.collect()
    assert len(readers) > 100
    assert [sent for kept, sent in zip(readers, SEEDS, strict=True) if kept() is not None] == []
