"""The headers this server answers with, and what they say: once, for documents and for browsers."""

from __future__ import annotations

from functools import cache

from service.api.endpoint import ErrorShape

# On any answer, whatever its status.
ALWAYS = {
    "x-request-id": "The request's own x-request-id, if it had a sane one, else one made up.",
}

# On any answer of Anthropic's paths, as its clients look for their request's id there.
ANTHROPIC = {
    "request-id": "The same as x-request-id.",
}

# On answers that a variant made.
ORIGIN = {
    "x-model-revision": "Commit of the files that the variant was loaded from.",
    "x-quantization": "How the variant's weights are quantised.",
    "x-kernel": "What multiplies with them.",
}

IGNORED = {
    "x-ignored-params": "Paths of the request's fields that had no effect, with commas between.",
}

TRUNCATED = {
    "x-truncated-prompt": "Tokens of the text around a gap that had no room, as in prefix=12.",
}

# By the status they come with.
WITH_STATUS = {
    401: {"www-authenticate": "How a key is sent."},
    405: {"allow": "The methods that this path takes."},
    408: {"x-should-retry": "false: the deadline was the request's own, and would pass again."},
    429: {"retry-after": "Seconds after which to try again."},
    503: {"retry-after": "Seconds after which to try again."},
}


@cache
def id_headers(shape: ErrorShape) -> tuple[bytes, ...]:
    """Return the headers that tell a request's id on paths whose errors have this shape."""
    names = (*ALWAYS, *ANTHROPIC) if shape is ErrorShape.ANTHROPIC else tuple(ALWAYS)
    return tuple(name.encode() for name in names)


def exposed() -> list[str]:
    """List the headers that a page in a browser may read: all that say something to a client."""
    names = [*ALWAYS, *ANTHROPIC, *ORIGIN, *IGNORED, *TRUNCATED]
    for headers in WITH_STATUS.values():
        names += [name for name in headers if name not in names]
    return names
