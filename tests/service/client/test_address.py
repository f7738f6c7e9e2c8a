"""Where the server is."""

from __future__ import annotations

import pytest

from service.client.address import base_url, default_address, stays_on_this_machine
from service.client.errors import WrongQuestionError


@pytest.mark.parametrize(
    ("given", "base"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000/v1"),
        ("localhost:8000", "http://localhost:8000/v1"),
        ("gpu-box", "http://gpu-box/v1"),
        ("https://example.org/models/tetrad", "https://example.org/models/tetrad/v1"),
        ("https://example.org/api/v2", "https://example.org/api/v2"),
        ("http://[::1]:8000", "http://[::1]:8000/v1"),
    ],
)
def test_an_address_may_be_given_with_or_without_v1(given, base):
    assert base_url(given) == base


def test_by_default_it_is_where_serve_listens():
    assert default_address() == "http://127.0.0.1:8000"


@pytest.mark.parametrize(
    "given",
    [
        "", "ftp://host", "http://", "http://host:port", "http://host:99999", "http://[::1",
        "http://ho st", "http://host/\x1b[2J", "http://hö.example", "http://a..b",
    ],
)  # fmt: skip
def test_what_is_no_address_is_told_with_an_example(given):
    with pytest.raises(WrongQuestionError, match="is no address; give one as in http://127"):
        base_url(given)


@pytest.mark.parametrize(
    "given",
    ["http://me:secret@host", "http://secret@host", "http://host?key=secret", "host#secret"],
)
def test_an_address_holds_no_key_and_none_is_repeated(given):
    with pytest.raises(WrongQuestionError, match="TETRAD_API_KEY") as caught:
        base_url(given)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "stays"),
    [
        ("http://127.0.0.1:8000/v1", True),
        ("http://localhost/v1", True),
        ("http://[::1]:8000/v1", True),
        ("http://10.0.0.1/v1", False),
        ("http://localhost.example.org/v1", False),
    ],
)
def test_loopback_is_this_machine(url, stays):
    assert stays_on_this_machine(url) is stays
