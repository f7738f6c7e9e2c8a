"""/v1/batches: many requests in one file, answered when there is time."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, StringConstraints

from service.api.endpoint import Endpoint
from service.api.openai.batch_answers import BatchList, BatchObject, batch_list, batch_object
from service.api.pages import read_page
from service.api.request_bodies import read_request
from service.api.requests import RequestModel
from service.api.responses import ModelResponse
from service.api.scope import caller_of
from service.errors import InvalidFieldError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request
    from starlette.responses import Response

    from service.api.context import ApiContext
    from service.batches.keeper import BatchKeeper

MAX_WINDOW_S = 14 * 86_400
MAX_METADATA = 16
_SECONDS = {"h": 3600, "d": 86_400}
_WINDOW = r"^[0-9]{1,3}[hd]$"
_MAX_EMPTY_BODY = 64

Id = Annotated[str, StringConstraints(min_length=1, max_length=128)]
Key = Annotated[str, StringConstraints(min_length=1, max_length=64)]
Value = Annotated[str, StringConstraints(max_length=512)]


class OutputExpiry(RequestModel):
    """When a batch's output files are deleted by themselves."""

    anchor: Literal["created_at"] = Field(description="What the seconds are counted from.")
    seconds: int = Field(ge=3600, le=30 * 86_400, description="After so many.")


class BatchRequest(RequestModel):
    """The body of POST /v1/batches."""

    input_file_id: Id = Field(description="The file with the requests, one JSON object a line.")
    endpoint: Id = Field(description="Where all of them go, such as /v1/chat/completions.")
    completion_window: str = Field(
        "24h",
        json_schema_extra={"pattern": _WINDOW},
        description="How long it may take, as in `24h` or `7d`; 14 days at most. What was not run"
        " by then is told among the errors.",
    )
    metadata: dict[Key, Value] | None = Field(
        None, max_length=MAX_METADATA, description="Told again with the batch."
    )
    output_expires_after: OutputExpiry | None = Field(
        None, description="When the output files are deleted; never by themselves when absent."
    )


class BatchHandlers:
    """Answer what is asked of batches."""

    def __init__(
        self, context: ApiContext, keeper: BatchKeeper, endpoints: Sequence[Endpoint]
    ) -> None:
        self._context = context
        self._keeper = keeper
        self._targets = sorted(
            each.path
            for each in endpoints
            if each.takes_room and each.path in _BATCHED and each.method == "POST"
        )

    async def create_batch(self, http_request: Request) -> Response:
        """Have the requests of a file answered beside everything else, when there is time."""
        request = await read_request(http_request, BatchRequest, self._context)
        if request.endpoint not in self._targets:
            raise InvalidFieldError(
                f"endpoint: give one of {', '.join(self._targets)}", param="endpoint"
            )
        batch = await self._keeper.create_batch(caller_of(http_request.scope), _values(request))
        return ModelResponse(batch_object(batch))

    async def list_batches(self, http_request: Request) -> Response:
        """List the caller's batches, the newest first."""
        page, after = read_page(http_request, default=20, most=100)
        records = await self._keeper.batches(caller_of(http_request.scope), page, after=after)
        return ModelResponse(batch_list(records, page.limit))

    async def get_batch(self, http_request: Request) -> Response:
        """Tell how far a batch is."""
        batch_id = http_request.path_params["batch_id"]
        return ModelResponse(
            batch_object(await self._keeper.batch(caller_of(http_request.scope), batch_id))
        )

    async def cancel_batch(self, http_request: Request) -> Response:
        """End a batch; what was answered by then is in its output file."""
        await _require_no_body(http_request)
        batch_id = http_request.path_params["batch_id"]
        batch = await self._keeper.cancel_batch(caller_of(http_request.scope), batch_id)
        return ModelResponse(batch_object(batch))


def batch_endpoints(
    context: ApiContext, keeper: BatchKeeper, endpoints: Sequence[Endpoint]
) -> list[Endpoint]:
    """Return the endpoints; endpoints: those that a batch's requests may go to, among others."""
    own = BatchHandlers(context, keeper, endpoints)
    return [
        Endpoint(
            method="POST",
            path="/v1/batches",
            tag="OpenAI",
            handler=own.create_batch,
            request=BatchRequest,
            response=BatchObject,
            statuses=(409, 507),
        ),
        Endpoint(
            method="GET",
            path="/v1/batches",
            tag="OpenAI",
            handler=own.list_batches,
            query={
                "after": "The id of the last one that is known.",
                "limit": "How many, up to 100.",
                "order": "`desc`, the newest first, or `asc`.",
            },
            response=BatchList,
            statuses=(400, 404, 503, 507),
        ),
        Endpoint(
            method="GET",
            path="/v1/batches/{batch_id}",
            tag="OpenAI",
            handler=own.get_batch,
            response=BatchObject,
            statuses=(503, 507),
        ),
        Endpoint(
            method="POST",
            path="/v1/batches/{batch_id}/cancel",
            tag="OpenAI",
            handler=own.cancel_batch,
            response=BatchObject,
            statuses=(409, 507),
        ),
    ]


# What answers without a stream, and by an id of the batch's own.
_BATCHED = ("/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses")


def _values(request: BatchRequest) -> dict[str, Any]:
    """Return the columns of a new batch."""
    window, now = request.completion_window, int(time.time())
    is_time = re.fullmatch(_WINDOW, window) is not None
    window_s = int(window[:-1]) * _SECONDS[window[-1]] if is_time else 0
    if not 0 < window_s <= MAX_WINDOW_S:
        raise InvalidFieldError(
            "completion_window: give a time as 24h or 7d, from 1h to 14d", param="completion_window"
        )
    expiry = request.output_expires_after
    return {
        "input_file_id": request.input_file_id,
        "endpoint": request.endpoint,
        "completion_window": window,
        "metadata": request.metadata,
        "output_expires_after_s": None if expiry is None else expiry.seconds,
        "created_at": now,
        "expires_at": now + window_s,
    }


async def _require_no_body(http_request: Request) -> None:
    """Refuse a body that says anything, as it would be without effect."""
    body = b""
    async for piece in http_request.stream():
        body += piece
        if len(body) > _MAX_EMPTY_BODY:
            break
    if body.strip() not in (b"", b"{}", b"null"):
        raise InvalidFieldError("the body has no effect here; leave it out")
