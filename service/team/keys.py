"""Decides whether a request's headers name a caller.

One key for everybody for now, under a name that counts and log lines may say. Only its digest is
kept, and digests are compared in constant time,
so neither the time taken nor a dump of memory tells the key.

A key may come as `Authorization: Bearer`, as `x-api-key` or as `api-key`: clients of other APIs
send the latter, some of them beside an Authorization that is a placeholder or a proxy's own. So one
right key opens, whatever else came: who has it could have left the rest out. The same header twice
is refused, since a proxy before us may have looked at the other one.
"""

from __future__ import annotations

import hashlib
import hmac
from copy import copy
from typing import TYPE_CHECKING

from service.errors import InvalidKeyError

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_NAME = "default"
_HOW = "send the server's key as 'Authorization: Bearer <key>', 'x-api-key: <key>' or 'api-key'"


class ApiKeys:
    """The keys that open this server."""

    def __init__(self, key: str, name: str = DEFAULT_NAME) -> None:
        """name: what is said of whoever has the key."""
        self._digests = {name: _digest(key.encode("ascii"))}

    def with_others(self, others: ApiKeys | None) -> ApiKeys:
        """Return what is opened by these keys and by others."""
        joined = copy(self)
        joined._digests = {**({} if others is None else others._digests), **self._digests}
        return joined

    def check(
        self,
        authorizations: Sequence[bytes],
        x_api_keys: Sequence[bytes] = (),
        api_keys: Sequence[bytes] = (),
    ) -> str:
        """Return the name of the key that a header holds; raise InvalidKeyError if none does.

        Each is given as all values that came under the header's name.
        """
        _require_one_each(
            {"Authorization": authorizations, "x-api-key": x_api_keys, "api-key": api_keys}
        )
        tokens = [value.strip() for value in (*x_api_keys, *api_keys)]
        bearer = _bearer_token(authorizations)
        if bearer is not None:
            tokens.append(bearer)
        # Each is compared, whatever the others were: the time taken does not tell which was right.
        matches = [
            name
            for token in map(_digest, tokens)
            for name, digest in self._digests.items()
            if hmac.compare_digest(token, digest)
        ]
        if matches:
            return matches[-1]
        if tokens:
            raise InvalidKeyError(f"the key is not valid here; {_HOW}")
        if authorizations:
            raise InvalidKeyError(f"the Authorization header is not of the Bearer scheme; {_HOW}")
        raise InvalidKeyError(f"no key was given; {_HOW}")


def _require_one_each(values_by_header: dict[str, Sequence[bytes]]) -> None:
    for header, values in values_by_header.items():
        if len(values) > 1:
            raise InvalidKeyError(f"several {header} headers were given; {_HOW}")


def _bearer_token(authorizations: Sequence[bytes]) -> bytes | None:
    """Return what follows the scheme; None where there is none, or another."""
    for authorization in authorizations:
        scheme, _, token = authorization.strip().partition(b" ")
        if scheme.lower() == b"bearer":
            return token.strip()
    return None


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
