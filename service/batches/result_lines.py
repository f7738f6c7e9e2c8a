"""Writes the lines of output files, in OpenAI's shape."""

from __future__ import annotations

import secrets

import msgspec

from service.batches.records import BatchStatus

_WHY_UNANSWERED = {
    BatchStatus.EXPIRED: (
        "batch_expired",
        "this request was not run before the batch's completion window was over",
    ),
    BatchStatus.CANCELLED: (
        "batch_cancelled",
        "this request was not run before the batch was cancelled",
    ),
}


def answered_line(
    custom_id: str, status: int, request_id: str, body: bytes, ignored: str | None = None
) -> bytes:
    """Return the line of a request that was answered, be it with an error.

    body: JSON. ignored: names of what the request held in vain, as the header tells them that a
    request over the wire gets.
    """
    response: dict[str, object] = {
        "status_code": status,
        "request_id": request_id,
        "body": msgspec.Raw(body),
    }
    if ignored is not None:
        response["ignored_params"] = ignored
    return _line(custom_id, response=response, error=None)


def failed_line(custom_id: str, code: str, message: str) -> bytes:
    """Return the line of a request that nobody answered."""
    return _line(custom_id, response=None, error={"code": code, "message": message})


def unanswered_line(custom_id: str, status: BatchStatus) -> bytes:
    """Return the line of a request that was not run before its batch ended so."""
    return failed_line(custom_id, *_WHY_UNANSWERED.get(status, ("not_run", "it was not run")))


def _line(custom_id: str, *, response: object, error: object) -> bytes:
    line_id = f"batch_req_{secrets.token_hex(12)}"
    return msgspec.json.encode(
        {"id": line_id, "custom_id": custom_id, "response": response, "error": error}
    )
