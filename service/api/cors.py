"""Lets pages of other origins call this server from a browser, where the settings name them.

A browser asks first, by OPTIONS and without a key, so this comes before the key is asked for. What
a page then sends needs the key like anything else; cookies are neither set nor looked at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from service.api.error_responses import http_error_response
from service.api.headers import exposed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.datastructures import Headers
    from starlette.responses import Response

METHODS = ("GET", "HEAD", "POST", "DELETE")  # all that any path takes
REMEMBERED_S = 600  # how long a browser need not ask again


def cors_middleware(origins: Sequence[str]) -> list[Middleware]:
    """Return what answers browsers; nothing where no origin is named."""
    if not origins:
        return []
    return [
        Middleware(
            _Cors,
            allow_origins=tuple(origins),
            allow_methods=METHODS,
            # Any: the official clients send a dozen (authorization, x-api-key, x-stainless-…,
            # anthropic-…), other ones with each version, and none of them opens anything.
            allow_headers=("*",),
            expose_headers=exposed(),
            max_age=REMEMBERED_S,
        )
    ]


class _Cors(CORSMiddleware):
    """Refuses in the words of the other errors."""

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        reason = bytes(response.body).decode().removeprefix("Disallowed CORS ")
        kept = {
            name: value
            for name, value in response.headers.items()
            if name == "vary" or name.startswith("access-control-")
        }
        message = (
            f"a page may not call this server so; not allowed: {reason}. Origins are allowed by"
            f" the server's setting cors_origins, methods are {', '.join(METHODS)}"
        )
        return http_error_response(response.status_code, message, kept)
