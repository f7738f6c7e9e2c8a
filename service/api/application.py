"""Makes the web application out of its collaborators; starts nothing and loads nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route

from service.api.access import access_rule
from service.api.browser_guard import BrowserGuard
from service.api.cors import cors_middleware
from service.api.error_responses import http_error_response
from service.api.error_shapes import shape_rule
from service.api.llama_cpp.infill import infill_endpoints
from service.api.llama_cpp.props import props_endpoints
from service.api.middleware import AuthMiddleware, ErrorBoundary, OpenRequests, RequestId
from service.api.not_offered import not_offered
from service.api.observing import ObserveRequests, label_rule
from service.api.openai.chat import chat_endpoints
from service.api.openai.completions import completion_endpoints
from service.api.openai.fim import fim_endpoints
from service.api.openai.models import model_endpoints
from service.api.openai.render import render_endpoints
from service.api.operations.admin import admin_endpoints
from service.api.operations.documents import document_endpoints
from service.api.operations.health import health_endpoints
from service.api.operations.metrics import metrics_endpoints
from service.api.room import RequireRoom
from service.api.tgi.generate import generate_endpoints
from service.api.tgi.info import info_endpoints
from service.api.tokens.detokenize import detokenize_endpoints
from service.api.tokens.template import template_endpoints
from service.api.tokens.tokenize import tokenize_endpoints

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from starlette.requests import Request
    from starlette.responses import Response

    from service.api.context import ApiContext
    from service.api.endpoint import Endpoint
    from service.api.error_shapes import ShapeRule
    from service.api.operations.admin import Administration
    from service.team.keys import ApiKeys


def endpoints_of(
    context: ApiContext, administration: Administration | None = None, root_path: str = ""
) -> list[Endpoint]:
    """Return every endpoint there is."""
    endpoints = [
        *completion_endpoints(context),
        *chat_endpoints(context),
        *render_endpoints(context),
        *fim_endpoints(context),
        *model_endpoints(context),
        *tokenize_endpoints(context),
        *detokenize_endpoints(context),
        *template_endpoints(context),
        *infill_endpoints(context),
        *props_endpoints(context),
        *generate_endpoints(context),
        *info_endpoints(context),
        *health_endpoints(context),
        *metrics_endpoints(context),
        *(() if administration is None else admin_endpoints(administration, context)),
    ]
    return [*endpoints, *document_endpoints(endpoints, root_path)]


def create_app(
    context: ApiContext,
    keys: ApiKeys | None,
    administration: Administration | None = None,
    *,
    cors_origins: Sequence[str] = (),
    metrics_keys: ApiKeys | None = None,
    root_path: str = "",
) -> Starlette:
    """Return the application.

    keys: what opens it; None opens it to whoever reaches it, which the settings allow on a
    loopback address only, but to no page of another origin. administration: the routes under
    /admin/ and their own keys; None leaves them out. cors_origins: of the pages that browsers may
    call it from. metrics_keys: what opens /metrics beside `keys`. root_path: what a proxy puts
    before every path; documents say so, and no path here has it.
    """
    guard = [Middleware(BrowserGuard, cors_origins=cors_origins)] if keys is None else []
    admin_keys = None if administration is None else administration.keys
    endpoints = endpoints_of(context, administration, root_path)
    access_of, shape_of = access_rule(endpoints), shape_rule(endpoints)
    app = Starlette(
        routes=[route for endpoint in endpoints for route in _routes(endpoint)],
        middleware=[
            Middleware(RequestId),
            Middleware(
                ObserveRequests,
                observation=context.observation,
                label_of=label_rule(endpoints),
                access_of=access_of,
            ),
            *cors_middleware(cors_origins),
            Middleware(ErrorBoundary, shape_of=shape_of),
            *guard,
            Middleware(
                AuthMiddleware,
                keys=keys,
                admin_keys=admin_keys,
                metrics_keys=metrics_keys,
                access_of=access_of,
            ),
            Middleware(RequireRoom, context=context, endpoints=endpoints),
            Middleware(OpenRequests, lifecycle=context.lifecycle, access_of=access_of),
        ],
        exception_handlers={HTTPException: _refused_by_router(shape_of)},
    )
    app.router.redirect_slashes = False
    return app


def _routes(endpoint: Endpoint) -> list[Route]:
    return [
        Route(path, endpoint.handler, methods=[endpoint.method], name=endpoint.name)
        for path in endpoint.paths
    ]


def _refused_by_router(shape_of: ShapeRule) -> Callable[[Request, Exception], Awaitable[Response]]:
    """Return what answers where no route does: no such path, or not by this method."""

    async def refuse(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            raise error
        path: str = request.scope["path"]
        if error.status_code == 405:
            allowed = (error.headers or {}).get("allow") or (error.headers or {}).get("Allow")
            message = f"this path does not take {request.method[:20]}; it takes {allowed}"
        elif error.status_code == 404:
            message = not_offered(path) or "there is no such path here; see /openapi.json"
        else:
            message = error.detail
        return http_error_response(error.status_code, message, error.headers, shape_of(path))

    return refuse
