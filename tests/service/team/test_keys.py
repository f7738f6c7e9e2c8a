"""Which headers open the server."""

from __future__ import annotations

import pytest

from service.errors import InvalidKeyError
from service.team.keys import ApiKeys


@pytest.fixture
def keys() -> ApiKeys:
    return ApiKeys("sk-1")


@pytest.mark.parametrize("value", [b"Bearer sk-1", b"bearer sk-1", b"BEARER   sk-1 "])
def test_key_opens(keys, value):
    keys.check([value])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "no key was given"),
        ([b"Bearer sk-1", b"Bearer sk-1"], "several"),
        ([b"sk-1"], "Bearer scheme"),
        ([b"Basic sk-1"], "Bearer scheme"),
        ([b""], "Bearer scheme"),
        ([b"Bearer "], "not valid"),
        ([b"Bearer sk-2"], "not valid"),
        ([b"Bearer sk-1 sk-1"], "not valid"),
    ],
)
def test_anything_else_does_not(keys, values, message):
    with pytest.raises(InvalidKeyError, match=message) as caught:
        keys.check(values)
    assert "sk-" not in str(caught.value)


def test_key_is_not_kept(keys):
    assert "sk-1" not in repr(vars(keys))


@pytest.mark.parametrize("header", ["x_api_keys", "api_keys"])
@pytest.mark.parametrize("value", [b"sk-1", b" sk-1 "])
def test_key_opens_in_the_headers_of_other_apis(keys, header, value):
    keys.check([], **{header: [value]})


@pytest.mark.parametrize(
    "authorization",
    [b"Bearer sk-1", b"Bearer placeholder", b"Bearer ", b"", b"Basic dXNlcjpwYXNz", b"\xff"],
)
def test_right_key_opens_beside_whatever_else_came(keys, authorization):
    keys.check([authorization], [b"sk-1"])
    keys.check([authorization], [b""], [b"sk-1"])
    keys.check([b"Bearer sk-1"], [b"placeholder"], [authorization])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (([], [b"sk-2"]), "not valid"),
        (([], [b""]), "not valid"),
        (([], [], [b"sk-\xff"]), "not valid"),
        (([], [b"Bearer sk-1"]), "not valid"),
        (([b"Basic sk-1"], [b"x"]), "not valid"),
        (([b"Bearer sk-2"], [b"sk-3"], [b"sk-4"]), "not valid"),
        (([], [b"sk-1", b"sk-1"]), "several x-api-key"),
        (([], [], [b"sk-1", b"x"]), "several api-key"),
        (([b"Bearer sk-1"], [b"x", b"y"]), "several x-api-key"),
        (([b"Bearer x", b"Bearer y"], [b"sk-1"]), "several Authorization"),
        (([], [b"x" * 1_000_000]), "not valid"),
    ],
)
def test_no_other_header_opens_without_the_key(keys, given, message):
    with pytest.raises(InvalidKeyError, match=message) as caught:
        keys.check(*given)
    assert "sk-" not in str(caught.value)


def test_every_key_that_came_is_compared(keys, monkeypatch):
    compared = []
    monkeypatch.setattr(
        "service.team.keys.hmac.compare_digest", lambda a, b: compared.append(a) or a == b
    )
    keys.check([b"Bearer x"], [b"sk-1"], [b"y"])
    assert len(compared) == 3


def test_who_opens_is_known_by_the_name_of_the_key():
    keys = ApiKeys("one").with_others(ApiKeys("two", "metrics"))
    assert keys.check([b"Bearer one"]) == "default"
    assert keys.check([b"Bearer two"]) == "metrics"
    with pytest.raises(InvalidKeyError):
        keys.check([b"Bearer three"])
    assert ApiKeys("one").with_others(None).check([b"Bearer one"]) == "default"
