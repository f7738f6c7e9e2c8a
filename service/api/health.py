"""GET /health/live and /health/ready (also /health): for supervisors and routers; no key needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter
from starlette.responses import Response

from service.api.error_responses import JsonResponse
from service.lifecycle import RETRY_AFTER_S, Phase

if TYPE_CHECKING:
    from service.lifecycle import Lifecycle


def health_router(lifecycle: Lifecycle) -> APIRouter:
    """Return the routes."""
    router = APIRouter()

    @router.get("/health/live", response_class=Response)
    async def live() -> Response:
        """Answer 200 as long as this process can answer at all."""
        return JsonResponse({"status": "alive"})

    @router.get("/health", response_class=Response)
    @router.get("/health/ready", response_class=Response)
    async def ready() -> Response:
        """Answer 200 while requests are served, else 503: routers take this replica out on it."""
        phase = lifecycle.phase
        body = {"phase": phase.value, "uptime_s": round(lifecycle.uptime_s, 1)}
        if phase is Phase.SERVING:
            return JsonResponse(body)
        return JsonResponse(body, 503, {"retry-after": str(RETRY_AFTER_S)})

    return router
