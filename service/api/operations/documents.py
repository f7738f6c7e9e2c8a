"""GET /openapi.json and /docs: the API's own description, for programs and for people.

Both are made from the list of endpoints, at the first request for one of them.
"""

from __future__ import annotations

import asyncio
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from starlette.responses import HTMLResponse

from service.api.docs_page import docs_html
from service.api.endpoint import Endpoint
from service.api.openapi import openapi_document
from service.api.responses import JsonResponse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request
    from starlette.responses import Response


def document_endpoints(others: Sequence[Endpoint], root_path: str = "") -> list[Endpoint]:
    """Return the endpoints that describe themselves and the others.

    root_path: where a proxy offers them; empty for where they are.
    """
    documents = Documents(others, root_path)
    own = [
        Endpoint(
            method="GET",
            path="/openapi.json",
            tag="Operations",
            handler=documents.openapi_json,
        ),
        Endpoint(
            method="GET",
            path="/docs",
            tag="Operations",
            handler=documents.docs,
            media_type="text/html",
        ),
    ]
    documents.endpoints = [*others, *own]
    return own


class Documents:
    """The descriptions of one list of endpoints."""

    def __init__(self, endpoints: Sequence[Endpoint], root_path: str = "") -> None:
        self.endpoints = endpoints
        self._root_path = root_path

    async def openapi_json(self, _: Request) -> Response:
        """Describe the API for programs: an OpenAPI document."""
        # In a thread, as streams would wait for what takes tens of milliseconds.
        return JsonResponse(await asyncio.to_thread(lambda: self.document))

    async def docs(self, _: Request) -> Response:
        """Describe the API for people: a page that needs nothing else."""
        return HTMLResponse(await asyncio.to_thread(lambda: self.page))

    @cached_property
    def document(self) -> dict[str, Any]:
        document = openapi_document(self.endpoints, version=version("tetrad"))
        return {**document, "servers": [{"url": self._root_path}]} if self._root_path else document

    @cached_property
    def page(self) -> bytes:
        return docs_html(self.document)
