"""GET /metrics: what was counted, for Prometheus and whatever reads its format.

Answers while the server loads and drains. Made anew for each scrape, of plain counts: nothing is
locked, and nobody is waited for.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from starlette.responses import Response

from service.api.endpoint import Access, Endpoint
from service.observation.metrics import Metrics, Scrape
from service.server.lifecycle import Phase

if TYPE_CHECKING:
    from starlette.requests import Request

    from service.api.context import ApiContext


def metrics_endpoints(context: ApiContext) -> list[Endpoint]:
    """Return the endpoint."""
    metrics = Metrics(
        context.observation,
        context.models,
        is_ready=lambda: context.lifecycle.phase is Phase.SERVING,
        batches=context.batches,
    )

    async def scrape(request: Request) -> Response:
        """Tell the server's metrics, in Prometheus's text format or as OpenMetrics.

        Opened by the server's key, or by a token for this alone (setting `metrics_token`).
        """
        # Of one moment; written beside the event loop, as a model's histograms take a millisecond.
        counted = Scrape(metrics)
        accept = request.headers.get("accept", "")
        body, media_type = await asyncio.to_thread(counted.render, accept)
        return Response(body, headers={"content-type": media_type, "cache-control": "no-store"})

    return [
        Endpoint(
            method="GET",
            path="/metrics",
            tag="Operations",
            handler=scrape,
            media_type="text/plain",
            access=Access.METRICS,
        )
    ]
