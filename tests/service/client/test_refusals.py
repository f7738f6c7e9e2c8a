"""What a refusal says to people."""

from __future__ import annotations

import pytest

from service.client.refusals import refusal
from tests.service.client.scripted_server import as_json, error

URL = "http://host/v1"


def said(status: int, body: bytes, **headers: str) -> str:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return str(refusal(status, named, body, URL))


def test_the_servers_own_words_come_first_and_then_what_to_do():
    key = said(401, error("no key was given", "invalid_api_key"))
    assert key.startswith("no key was given; put the key into TETRAD_API_KEY or OPENAI_API_KEY")
    assert "--api-key-file" in key
    busy = error("too much to do", "queue_full")
    assert said(429, busy, retry_after="7") == "too much to do; try again in 7 s"
    assert said(429, busy) == "too much to do"
    assert said(503, error("it loads"), retry_after="Mon, 1 Jan") == (
        "it loads; try again after Mon, 1 Jan"
    )
    chat = said(400, error("it has no template", "chat_not_supported"))
    assert chat == "it has no template; `tetrad complete` goes on from a text"


def test_a_model_that_is_not_there_is_told_as_the_server_tells_it():
    assert said(404, error("it serves 'demo'", "model_not_found")) == "it serves 'demo'"


def test_the_kind_of_error_is_kept_for_the_session():
    found = refusal(400, {}, error("too long", "context_length_exceeded"), URL)
    assert (str(found), found.code) == ("too long", "context_length_exceeded")


def test_another_kind_of_server_is_told():
    asked = f"it was asked at {URL}: --url takes the API's address, with or without /v1"
    assert said(404, b"<html>nginx</html>") == (
        f"the server at {URL} answers with status 404; {asked}"
    )
    assert said(404, error("there is no such path here")) == f"there is no such path here; {asked}"
    assert said(502, b"<html>") == (
        f"the server at {URL} answers with status 502; a proxy answers there: see whether the"
        " server behind it runs"
    )


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("https://host/v1", "it leads elsewhere: give --url https://host/v1"),
        ("https://host/v1/models", "it leads elsewhere: give --url https://host/v1"),
        ("//other:8000/api/v2/models", "it leads elsewhere: give --url http://other:8000/api/v2"),
        ("/login", "it leads to http://host/login, and --url takes the API's own address"),
        ("//[", "it leads to //[, and --url takes the API's own address"),
        ("", "it leads elsewhere, without saying where; --url names another address"),
    ],
)
def test_where_another_address_is_told_it_is_one_that_can_be_given(location, words):
    assert said(302, b"", location=location).endswith(f"answers with status 302; {words}")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (as_json({"error": "in a string"}), "in a string"),
        (as_json({"detail": "in detail"}), "in detail"),
        (as_json({"message": "in message"}), "in message"),
        (as_json({"error": {"text": "?"}}), '{"text": "?"}'),
        (b"plain words", "plain words"),
        (b"[" * 100_000, "[" * 200),
        (b"x" * 5000, "x" * 200),
    ],
)
def test_whatever_shape_an_error_has_is_shortened_to_its_words(body, words):
    assert said(500, body) == words
