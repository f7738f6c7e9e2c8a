"""The ids of requests: those they bring, and those they are given, for answers and the log.

No secrets. A request has one from the moment at which somebody asks for it, whoever that is.
"""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, MutableMapping

_SANE_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
_random = random.Random()


def new_request_id() -> str:
    """Return 32 hexadecimal digits."""
    return f"{_random.getrandbits(128):032x}"


def brought_id(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Return the id that a request gives itself, if it is one and a sane one.

    headers: names in small letters.
    """
    given = [value for name, value in headers if name == b"x-request-id"]
    return given[0].decode() if len(given) == 1 and _SANE_ID.fullmatch(given[0]) else None


def identify(scope: MutableMapping[str, Any], new_id: str | None = None) -> str:
    """Return the id that a request's scope keeps: what it brings, or `new_id`, or a new one."""
    if "request_id" not in scope:
        scope["request_id"] = brought_id(scope["headers"]) or new_id or new_request_id()
    request_id: str = scope["request_id"]
    return request_id
