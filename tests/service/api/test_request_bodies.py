"""How bodies are read: large ones beside the event loop."""

from __future__ import annotations

import asyncio
import json
import threading

import pytest
from pydantic import model_validator
from starlette.requests import Request

from service.api.request_bodies import MAX_BYTES_AT_ONCE, parse_request, read_request
from service.api.requests import ClosedModel, RequestModel
from service.errors import InvalidFieldError, UnknownFieldError
from service.server.lifecycle import Lifecycle
from tests.service.fakes import LIMITS, FakeModels, api_context


class Note(RequestModel):
    """A body that remembers which threads looked at it."""

    text: str

    @model_validator(mode="before")
    @classmethod
    def _note_thread(cls, fields: object) -> object:
        seen_by.append(threading.get_ident())
        return fields


seen_by: list[int] = []


def read(body: bytes) -> tuple[Note, bool]:
    """Read a body; also tell whether the event loop's thread did it."""

    async def run() -> Note:
        async def receive() -> dict[str, object]:
            return {"type": "http.request", "body": body, "more_body": False}

        headers = [(b"content-type", b"application/json")]
        request = Request({"type": "http", "headers": headers}, receive)
        models = FakeModels(None)
        return await read_request(request, Note, api_context(Lifecycle(models), models))

    seen_by.clear()
    note = asyncio.run(run())
    return note, seen_by == [threading.get_ident()]


def test_small_bodies_are_parsed_at_once():
    note, is_own_thread = read(b'{"text": "a"}')
    assert note.text == "a"
    assert is_own_thread


def test_large_bodies_are_parsed_beside_the_event_loop():
    text = "a" * MAX_BYTES_AT_ONCE
    note, is_own_thread = read(b'{"text": "%s"}' % text.encode())
    assert note.text == text
    assert not is_own_thread


def test_what_is_wrong_in_a_large_body_is_named_like_in_any_other():
    with pytest.raises(InvalidFieldError, match=r"^text: ") as caught:
        read(b'{"text": [%s1]}' % (b"1," * MAX_BYTES_AT_ONCE))
    assert caught.value.param == "text"


class Closed(ClosedModel):
    """A body whose every unknown field is refused."""


@pytest.mark.parametrize("length", [1, 20, 64, 5000])
def test_a_message_names_as_many_unknown_fields_as_200_characters_hold(length):
    body = json.dumps({f"{number:02}" + "f" * (length - 2): 1 for number in range(40)}).encode()
    with pytest.raises(UnknownFieldError) as raised:
        parse_request(body, Closed, LIMITS)
    assert len(str(raised.value)) <= 200
    assert " more; leave it out" in str(raised.value)
