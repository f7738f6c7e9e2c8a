"""What the parser could not read, as an answer for whoever sent it."""

from __future__ import annotations

import httptools

from service.server.refusals import Refusal, malformed, not_spoken
from service.server.request_head import VERSIONS

TLS_HANDSHAKE = b"\x16\x03"
MAX_FAULT = 200  # characters


def explain(error: httptools.HttpParserError, data: bytes, version: str) -> Refusal:
    """Return the refusal for a parser's error.

    data: what it was reading. version: of HTTP, as far as it was read. What a callback of ours
    refused is returned as it is; anything else that one raised is a fault of ours, told in the log.
    """
    if isinstance(error, httptools.HttpParserCallbackError):
        raised = error.__context__
        if isinstance(raised, Refusal):
            return raised
        refusal = malformed("the request cannot be read")
        refusal.fault = f"{type(raised).__name__}: {raised}"[:MAX_FAULT]
        return refusal
    if data.startswith(TLS_HANDSHAKE):
        return malformed("this looks like TLS, which is not spoken at this port; use http://")
    reason = str(error)
    if "HTTP version" in reason or (version not in VERSIONS and "PRI" in reason):
        return not_spoken()
    return malformed(f"the request is not HTTP as it should be: {reason}")
