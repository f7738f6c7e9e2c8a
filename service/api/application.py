"""Makes the web application out of its collaborators; starts nothing and loads nothing."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from service.api.access import access_by_path
from service.api.admin import NamedModel, NewModel, admin_router
from service.api.chat import chat_router
from service.api.completions import completions_router
from service.api.cors import cors_middleware
from service.api.endpoint import Access
from service.api.error_responses import http_error_response
from service.api.health import health_router
from service.api.middleware import (
    OPEN_PATHS,
    AuthMiddleware,
    ErrorBoundary,
    OpenRequests,
    RequestId,
)
from service.api.models import models_router
from service.api.openapi import describe
from service.api.requests import ChatRequest, CompletionRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request
    from starlette.responses import Response

    from service.api.admin import Administration
    from service.api.context import ApiContext
    from service.team.keys import ApiKeys


def create_app(
    context: ApiContext,
    keys: ApiKeys | None,
    administration: Administration | None = None,
    *,
    cors_origins: Sequence[str] = (),
) -> FastAPI:
    """Return the application.

    keys: what opens it; None opens it to whoever reaches it, which the settings allow on a
    loopback address only. administration: the routes under /admin/ and their own keys; None leaves
    them out. cors_origins: of the pages that browsers may call it from.
    """
    access_of = access_by_path(dict.fromkeys(OPEN_PATHS, Access.OPEN))
    admin_keys = None if administration is None else administration.keys
    app = FastAPI(
        title="Tetrad",
        version=version("tetrad"),
        # Their pages load scripts from elsewhere; /openapi.json stays.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        middleware=[
            Middleware(RequestId),
            *cors_middleware(cors_origins),
            Middleware(ErrorBoundary),
            Middleware(AuthMiddleware, keys=keys, admin_keys=admin_keys, access_of=access_of),
            Middleware(OpenRequests, lifecycle=context.lifecycle, access_of=access_of),
        ],
        exception_handlers={HTTPException: _refused_by_router},
    )
    for make_router in (completions_router, chat_router, models_router):
        app.include_router(make_router(context))
    app.include_router(health_router(context))
    if administration is None:
        describe(app, ChatRequest, CompletionRequest)
    else:
        app.include_router(admin_router(administration, context))
        describe(app, ChatRequest, CompletionRequest, NamedModel, NewModel)
    return app


async def _refused_by_router(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    if error.status_code == 405:
        allowed = (error.headers or {}).get("allow") or (error.headers or {}).get("Allow")
        message = f"this path does not take {request.method}; it takes {allowed}"
    elif error.status_code == 404:
        message = "there is no such path here; see /openapi.json"
    else:
        message = error.detail
    return http_error_response(error.status_code, message, error.headers)
