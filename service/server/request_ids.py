"""Makes ids of requests that bring none: for answers and the log, no secrets."""

from __future__ import annotations

import random

_random = random.Random()


def new_request_id() -> str:
    """Return 32 hexadecimal digits."""
    return f"{_random.getrandbits(128):032x}"
