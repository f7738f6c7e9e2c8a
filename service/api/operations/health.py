"""Health, for supervisors and routers, and this server's version.

/health/live, and /health/ready with its other names, ask for no key.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from service.api.endpoint import Access, Endpoint
from service.api.operations.answers import (
    Liveness,
    Readiness,
    SelfTestOutcome,
    ServerVersion,
    VariantHealth,
)
from service.api.responses import ModelResponse
from service.server.lifecycle import RETRY_AFTER_S, Phase

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from service.api.context import ApiContext
    from service.variants.variant import VariantStatus


def health_endpoints(context: ApiContext) -> list[Endpoint]:
    """Return the endpoints."""
    lifecycle = context.lifecycle

    async def live(_: Request) -> Response:
        """Answer 200 as long as this process can answer at all."""
        return ModelResponse(Liveness(status="alive"))

    async def ready(_: Request) -> Response:
        """Answer 200 while requests are served, else 503: routers take this replica out on it."""
        body = Readiness(
            phase=lifecycle.phase,
            uptime_s=round(lifecycle.uptime_s, 1),
            variants=[_describe(status) for status in context.models.statuses],
        )
        if body.phase is Phase.SERVING:
            return ModelResponse(body)
        return ModelResponse(body, 503, {"retry-after": str(RETRY_AFTER_S)})

    async def show_version(_: Request) -> Response:
        """Tell this server's version."""
        return ModelResponse(ServerVersion(version=version("tetrad")))

    return [
        Endpoint(
            method="GET",
            path="/health/live",
            tag="Operations",
            handler=live,
            response=Liveness,
            access=Access.OPEN,
        ),
        Endpoint(
            method="GET",
            path="/health/ready",
            other_paths=("/health", "/ping"),
            tag="Operations",
            handler=ready,
            response=Readiness,
            other_answers={503: Readiness},
            access=Access.OPEN,
        ),
        Endpoint(
            method="GET",
            path="/version",
            tag="Operations",
            handler=show_version,
            response=ServerVersion,
        ),
    ]


def _describe(status: VariantStatus) -> VariantHealth:
    found = VariantHealth(state=status.state)
    if status.degraded is not None:
        found.degraded = True
    if status.suspicions:
        found.suspect = True
    if status.phase is not None:
        found.step = status.phase
        found.percent = None if status.percent is None else round(status.percent)
    if (report := status.self_test) is not None:
        found.self_test = SelfTestOutcome(passed=report.passed, finished=report.finished)
    return found
