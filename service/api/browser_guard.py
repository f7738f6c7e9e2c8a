"""Keeps the pages that somebody visits from using a server that asks for no key.

Such a server listens on a loopback address, and trusts whoever reaches it. A browser on the same
machine does, on behalf of every page it shows: by a name of the page's own that is made to point
here (DNS rebinding), by posts that it sends without asking first, by plain links and images. So
only loopback names are answered as Host, only plain JSON is taken as a body, which a browser asks
leave for, and no other page's requests are run, unless `cors_origins` names it. Forms are taken
where files are, but of no page at all: a browser sends them for any page without asking. What
browsers say of themselves is believed because pages cannot change it; other programs need not say
it.

With a key none of this is needed: pages do not know it.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from service.api.scope import header_values
from service.errors import HostNotAllowedError, OriginNotAllowedError, UnsupportedBodyError
from service.settings import is_loopback

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from starlette.types import ASGIApp, Receive, Scope, Send

_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{0,5})?")
_ORIGIN = re.compile(r"https?://(?P<host>[^/]+)")


class BrowserGuard:
    """Lets requests pass that no page of another origin can have sent."""

    def __init__(self, app: ASGIApp, rule: PageRule) -> None:
        self._app = app
        self._rule = rule

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raise a RequestError for a request that may come from such a page."""
        self._rule.check(scope)
        await self._app(scope, receive, send)


class PageRule:
    """Which requests no page of another origin can have sent."""

    def __init__(self, cors_origins: Sequence[str], form_paths: Collection[str] = ()) -> None:
        """cors_origins: of the pages that are let in; `*` lets in all of them.

        form_paths: where a form is taken as a body.
        """
        self._form_paths = frozenset(form_paths)
        self._origins = frozenset(origin.encode() for origin in cors_origins)

    def check(self, scope: Scope) -> None:
        """Raise a RequestError for a request that may come from such a page."""
        _check_host(header_values(scope, b"host"))
        self._check_page(scope)
        if scope["method"] == "POST":
            if scope["path"] in self._form_paths:
                _check_form(scope)
            else:
                _check_body_type(header_values(scope, b"content-type"))

    def _check_page(self, scope: Scope) -> None:
        if b"*" in self._origins:
            return
        origins = header_values(scope, b"origin")
        # Requests for images and the like name no origin, but say that they cross sites. Links are
        # let pass: whoever follows one to the documents meant to, and a page cannot read the rest.
        crosses = header_values(scope, b"sec-fetch-site") == [b"cross-site"]
        is_link = (
            header_values(scope, b"sec-fetch-mode") == [b"navigate"] and scope["method"] == "GET"
        )
        if all(map(self._is_let_in, origins)) and (origins or not crosses or is_link):
            return
        raise OriginNotAllowedError(
            "this server asks for no key, so pages of other origins may not use it; name the page's"
            " origin in the setting cors_origins, or set a key (api_key)"
        )

    def _is_let_in(self, origin: bytes) -> bool:
        if origin in self._origins:
            return True
        found = _ORIGIN.fullmatch(origin.decode("latin-1"))
        return found is not None and _is_loopback_host(found["host"])


def _check_host(hosts: Sequence[bytes]) -> None:
    """Refuse names that may be a page's own; who sends none, as HTTP/1.0 may, is no browser."""
    if all(_is_loopback_host(host.decode("latin-1")) for host in hosts):
        return
    raise HostNotAllowedError(
        "this server asks for no key, so it answers to loopback names only: ask for localhost,"
        " 127.0.0.1 or [::1] (the Host header names another), or set a key (api_key)"
    )


def _check_body_type(types: Sequence[bytes]) -> None:
    """Refuse posts that a browser sends for any page without asking first."""
    if [found.partition(b";")[0].strip().lower() for found in types] != [b"application/json"]:
        raise UnsupportedBodyError(
            "without a key only JSON is taken; send the body as 'Content-Type: application/json',"
            " once, or set a key (api_key)"
        )


def _check_form(scope: Scope) -> None:
    """Refuse forms that any page has sent, of whatever origin."""
    if header_values(scope, b"origin") or header_values(scope, b"sec-fetch-site"):
        raise OriginNotAllowedError(
            "this server asks for no key, so it takes files from programs only, and from no page;"
            " set a key (api_key)"
        )
    types = header_values(scope, b"content-type")
    if [found.partition(b";")[0].strip().lower() for found in types] != [b"multipart/form-data"]:
        raise UnsupportedBodyError(
            "send the file as a form ('Content-Type: multipart/form-data'), once"
        )


@lru_cache(maxsize=64)  # clients name the server in few ways
def _is_loopback_host(host: str) -> bool:
    """Whether a name and perhaps a port are this machine's wherever they are looked up."""
    found = _HOST.fullmatch(host.lower())
    if found is None:
        return False
    name = found["name"].strip("[]").removesuffix(".")
    return is_loopback(name) or name.endswith(".localhost")
