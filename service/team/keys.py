"""Decides whether a request's `Authorization` names a caller.

One key for everybody for now. Only its digest is kept, and digests are compared in constant time,
so neither the time taken nor a dump of memory tells the key.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING

from service.errors import InvalidKeyError

if TYPE_CHECKING:
    from collections.abc import Sequence

_HOW = "send the server's key as 'Authorization: Bearer <key>'"


class ApiKeys:
    """The keys that open this server."""

    def __init__(self, key: str) -> None:
        self._digest = _digest(key.encode("ascii"))

    def check(self, authorizations: Sequence[bytes]) -> None:
        """Raise InvalidKeyError unless the request's one Authorization header holds the key."""
        if not authorizations:
            raise InvalidKeyError(f"no key was given; {_HOW}")
        if len(authorizations) > 1:
            raise InvalidKeyError(f"several Authorization headers were given; {_HOW}")
        scheme, _, token = authorizations[0].strip().partition(b" ")
        if scheme.lower() != b"bearer":
            raise InvalidKeyError(f"the Authorization header is not of the Bearer scheme; {_HOW}")
        if not hmac.compare_digest(_digest(token.strip()), self._digest):
            raise InvalidKeyError(f"the key is not valid here; {_HOW}")


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
