"""Makes the web application out of its collaborators; starts nothing and loads nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route

from service.api.access import access_rule
from service.api.anthropic.messages import messages_endpoints
from service.api.at_the_head import AtTheHead
from service.api.browser_guard import BrowserGuard, PageRule
from service.api.cors import cors_middleware
from service.api.endpoint import FORM
from service.api.error_responses import http_error_response
from service.api.error_shapes import shape_rule
from service.api.key_rule import KeyRule
from service.api.llama_cpp.infill import infill_endpoints
from service.api.llama_cpp.props import props_endpoints
from service.api.middleware import AuthMiddleware, ErrorBoundary, OpenRequests, RequestId
from service.api.not_offered import not_offered
from service.api.observing import ObserveRequests, label_rule
from service.api.openai.batches import batch_endpoints
from service.api.openai.chat import chat_endpoints
from service.api.openai.completions import completion_endpoints
from service.api.openai.files import file_endpoints
from service.api.openai.fim import fim_endpoints
from service.api.openai.models import model_endpoints
from service.api.openai.render import render_endpoints
from service.api.openai.responses.create import response_endpoints
from service.api.operations.admin import admin_endpoints
from service.api.operations.documents import document_endpoints
from service.api.operations.health import health_endpoints
from service.api.operations.metrics import metrics_endpoints
from service.api.room import RequireRoom, Room
from service.api.scope import keep_send
from service.api.tgi.generate import generate_endpoints
from service.api.tgi.info import info_endpoints
from service.api.tokens.detokenize import detokenize_endpoints
from service.api.tokens.template import template_endpoints
from service.api.tokens.tokenize import tokenize_endpoints

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import BaseRoute
    from starlette.types import Message, Receive, Scope, Send

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
        *response_endpoints(context),
        *fim_endpoints(context),
        *model_endpoints(context),
        *messages_endpoints(context),
        *tokenize_endpoints(context),
        *detokenize_endpoints(context),
        *template_endpoints(context),
        *infill_endpoints(context),
        *props_endpoints(context),
        *generate_endpoints(context),
        *info_endpoints(context),
    ]
    if context.batches is not None:
        endpoints += batch_endpoints(context, context.batches, endpoints)
        endpoints += file_endpoints(context, context.batches)
    endpoints += [
        *health_endpoints(context),
        *metrics_endpoints(context),
        *(() if administration is None else admin_endpoints(administration, context)),
    ]
    return [*endpoints, *document_endpoints(endpoints, root_path)]


class Application(Starlette):
    """The application, which can say at once what some requests are answered."""

    def __init__(self, room: Room, at_the_head: AtTheHead, **parts: Any) -> None:
        super().__init__(**parts)
        self._room = room
        self._at_the_head = at_the_head

    def answer_at_once(self, scope: Scope) -> Sequence[Message] | None:
        """Return the whole answer of a request whose head is known, where that is enough."""
        return self._at_the_head.answer(scope)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run a request."""
        await self._room.begin(scope)
        keep_send(scope, send)
        await super().__call__(scope, receive, send)


def create_app(
    context: ApiContext,
    keys: ApiKeys | None,
    administration: Administration | None = None,
    *,
    cors_origins: Sequence[str] = (),
    metrics_keys: ApiKeys | None = None,
    root_path: str = "",
) -> Application:
    """Return the application.

    keys: what opens it; None opens it to whoever reaches it, which the settings allow on a
    loopback address only, but to no page of another origin. administration: the routes under
    /admin/ and their own keys; None leaves them out. cors_origins: of the pages that browsers may
    call it from. metrics_keys: what opens /metrics beside `keys`. root_path: what a proxy puts
    before every path; documents say so, and no path here has it.
    """
    admin_keys = None if administration is None else administration.keys
    endpoints = endpoints_of(context, administration, root_path)
    form_paths = [path for each in endpoints if each.request_type == FORM for path in each.paths]
    page_rule = PageRule(cors_origins, form_paths) if keys is None else None
    access_of, shape_of = access_rule(endpoints), shape_rule(endpoints)
    label_of = label_rule(endpoints)
    key_rule = KeyRule(access_of, keys, admin_keys, metrics_keys)
    room = Room(context, endpoints)
    app = Application(
        room,
        AtTheHead(room, key_rule, page_rule, context.observation, label_of),
        routes=[route for endpoint in endpoints for route in _routes(endpoint)],
        middleware=[
            Middleware(RequestId, shape_of=shape_of),
            Middleware(
                ObserveRequests,
                observation=context.observation,
                label_of=label_of,
                access_of=access_of,
            ),
            *cors_middleware(cors_origins),
            Middleware(ErrorBoundary, shape_of=shape_of),
            *([] if page_rule is None else [Middleware(BrowserGuard, rule=page_rule)]),
            Middleware(AuthMiddleware, rule=key_rule),
            Middleware(RequireRoom, room=room),
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
        headers = error.headers
        if error.status_code == 405:
            allowed = _methods_at(path, request.app.routes)
            headers = {"allow": allowed}
            message = f"this path does not take {request.method[:20]}; it takes {allowed}"
        elif error.status_code == 404:
            message = not_offered(path) or "there is no such path here; see /openapi.json"
        else:
            message = error.detail
        return http_error_response(
            error.status_code,
            message,
            headers,
            shape_of(path),
            request.scope.get("request_id"),
        )

    return refuse


def _methods_at(path: str, routes: Sequence[BaseRoute]) -> str:
    """List the methods that a path takes, all its routes together."""
    found = {
        method
        for route in routes
        if isinstance(route, Route) and route.path_regex.match(path)
        for method in route.methods or ()
    }
    return ", ".join(sorted(found))
