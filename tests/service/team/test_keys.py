"""Which Authorization opens the server."""

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
