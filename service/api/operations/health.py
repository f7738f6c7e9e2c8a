"""GET /health/live and /health/ready (also /health and /ping), for supervisors and routers.

No key is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.api.endpoint import Access, Endpoint, Handler
from service.api.responses import JsonResponse
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
        return JsonResponse({"status": "alive"})

    async def ready(_: Request) -> Response:
        """Answer 200 while requests are served, else 503: routers take this replica out on it."""
        phase = lifecycle.phase
        body = {
            "phase": phase.value,
            "uptime_s": round(lifecycle.uptime_s, 1),
            "variants": [_describe(status) for status in context.models.statuses],
        }
        if phase is Phase.SERVING:
            return JsonResponse(body)
        return JsonResponse(body, 503, {"retry-after": str(RETRY_AFTER_S)})

    def endpoint(path: str, handler: Handler, *other_paths: str) -> Endpoint:
        return Endpoint(
            method="GET",
            path=path,
            other_paths=other_paths,
            tag="Operations",
            handler=handler,
            access=Access.OPEN,
        )

    return [endpoint("/health/live", live), endpoint("/health/ready", ready, "/health", "/ping")]


def _describe(status: VariantStatus) -> dict[str, object]:
    """Say how a variant stands; not its name, nor why it failed: nobody was asked for a key."""
    found: dict[str, object] = {"state": status.state.value}
    if status.degraded is not None:
        found["degraded"] = True
    if status.suspicions:
        found["suspect"] = True
    if status.phase is not None:
        percent = None if status.percent is None else round(status.percent)
        found |= {"step": status.phase, "percent": percent}
    if (report := status.self_test) is not None:
        found["self_test"] = {"passed": report.passed, "finished": report.finished}
    return found
