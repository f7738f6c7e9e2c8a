"""GET /health/live and /health/ready (also /health): for supervisors and routers; no key needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter
from starlette.responses import Response

from service.api.error_responses import JsonResponse
from service.server.lifecycle import RETRY_AFTER_S, Phase

if TYPE_CHECKING:
    from service.api.context import ApiContext
    from service.variants.variant import VariantStatus


def health_router(context: ApiContext) -> APIRouter:
    """Return the routes."""
    router, lifecycle = APIRouter(), context.lifecycle

    @router.get("/health/live", response_class=Response)
    async def live() -> Response:
        """Answer 200 as long as this process can answer at all."""
        return JsonResponse({"status": "alive"})

    @router.get("/health", response_class=Response)
    @router.get("/health/ready", response_class=Response)
    async def ready() -> Response:
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

    return router


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
