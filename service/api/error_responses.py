"""The one place where errors become HTTP: a status, a type and a code for each.

The table maps the errors of all packages; an error that is not in it, nor any class above it, is
our own fault, and says nothing of itself to the client.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.errors import (
    DeadlineExceededError,
    EngineDeadError,
    InvalidRequestError,
    NoCandidatesError,
    NonFiniteLogitsError,
    OutOfMemoryError,
    PromptTooLongError,
    QueueFullError,
)
from service.api.endpoint import ErrorShape
from service.api.responses import JsonResponse
from service.batches.errors import StorageError
from service.errors import (
    BodyTooLargeError,
    ConflictError,
    ContextLengthError,
    HostNotAllowedError,
    InvalidFieldError,
    InvalidFormError,
    InvalidJsonError,
    InvalidKeyError,
    MissingFieldError,
    ModelNotFoundError,
    NotFoundError,
    OriginNotAllowedError,
    RequestError,
    UnavailableError,
    UnknownFieldError,
    UnsupportedBodyError,
    UnsupportedFieldError,
    VariantStateError,
)
from service.server.lifecycle import RETRY_AFTER_S
from service.text.errors import (
    ChatNotSupportedError,
    InfillingNotSupportedError,
    InvalidTemplateOptionsError,
    TemplateFailedError,
    TemplateInterruptedError,
    TextError,
    TokenizerFailedError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.responses import Response

INVALID = "invalid_request_error"
NAMES_A_FIELD = (RequestError, InvalidTemplateOptionsError)


@dataclass(frozen=True, slots=True)
class ErrorForm:
    """How clients see a kind of error."""

    status: int
    type: str
    code: str | None = None


STATUS: dict[type[Exception], ErrorForm] = {
    InvalidJsonError: ErrorForm(400, INVALID, "invalid_json"),
    InvalidFieldError: ErrorForm(400, INVALID, "invalid_value"),
    MissingFieldError: ErrorForm(400, INVALID, "missing_required_parameter"),
    UnknownFieldError: ErrorForm(400, INVALID, "unknown_parameter"),
    UnsupportedFieldError: ErrorForm(400, INVALID, "unsupported_parameter"),
    ContextLengthError: ErrorForm(400, INVALID, "context_length_exceeded"),
    PromptTooLongError: ErrorForm(400, INVALID, "context_length_exceeded"),
    InvalidRequestError: ErrorForm(400, INVALID, "invalid_value"),
    TextError: ErrorForm(400, INVALID, "invalid_value"),
    ChatNotSupportedError: ErrorForm(400, INVALID, "chat_not_supported"),
    InfillingNotSupportedError: ErrorForm(400, INVALID, "infilling_not_supported"),
    TemplateFailedError: ErrorForm(400, INVALID, "template_failed"),
    TemplateInterruptedError: ErrorForm(503, "service_unavailable", "template_interrupted"),
    TokenizerFailedError: ErrorForm(400, INVALID, "tokenizer_failed"),
    InvalidKeyError: ErrorForm(401, INVALID, "invalid_api_key"),
    HostNotAllowedError: ErrorForm(403, INVALID, "host_not_allowed"),
    OriginNotAllowedError: ErrorForm(403, INVALID, "origin_not_allowed"),
    InvalidFormError: ErrorForm(400, INVALID, "invalid_form"),
    NotFoundError: ErrorForm(404, INVALID, "not_found"),
    ConflictError: ErrorForm(409, INVALID, "conflict"),
    StorageError: ErrorForm(507, "server_error", "storage_failed"),
    ModelNotFoundError: ErrorForm(404, INVALID, "model_not_found"),
    BodyTooLargeError: ErrorForm(413, INVALID, "body_too_large"),
    UnsupportedBodyError: ErrorForm(415, INVALID, "unsupported_media_type"),
    UnavailableError: ErrorForm(503, "service_unavailable", "not_ready"),
    NonFiniteLogitsError: ErrorForm(500, "server_error", "non_finite_logits"),
    EngineDeadError: ErrorForm(503, "service_unavailable", "engine_dead"),
    QueueFullError: ErrorForm(429, "rate_limit_error", "queue_full"),
    DeadlineExceededError: ErrorForm(408, INVALID, "deadline_exceeded"),
    OutOfMemoryError: ErrorForm(500, "server_error", "out_of_memory"),
    NoCandidatesError: ErrorForm(400, INVALID, "nothing_to_pick"),
    VariantStateError: ErrorForm(409, INVALID, "wrong_state"),
}
MAX_MESSAGE = 10 * 203  # characters: ten findings of 200, and what stands between them
UNEXPECTED = ErrorForm(500, "server_error", "internal_error")

# By the status in the table above: text-generation-inference's own status and word. Where it has
# none (no key, no such model, not ready), ours stay.
_TGI = {
    400: (422, "validation"),
    405: (405, "validation"),
    413: (413, "validation"),
    415: (415, "validation"),
    429: (429, "overloaded"),
    500: (424, "generation"),
}

# By the status in the table above: Anthropic's word for it. Statuses stay.
_ANTHROPIC = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
}
# By these words some of its clients know that they must shorten their dialogue.
_TOO_LONG = "prompt is too long: "


def error_form(error: Exception) -> ErrorForm:
    """Find how clients see an error: by its class, else the nearest one above."""
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), UNEXPECTED)


def error_body(error: Exception) -> dict[str, dict[str, str | None]]:
    """Return an error in OpenAI's shape."""
    form = error_form(error)
    param = error.param if isinstance(error, NAMES_A_FIELD) else None
    return _body(_message(error), form.type, param, form.code)


def tgi_error_body(error: Exception) -> dict[str, object]:
    """Return an error in text-generation-inference's shape."""
    return {"error": _message(error), "error_type": _tgi_form(error_form(error))[1]}


def anthropic_error_body(error: Exception, request_id: str | None) -> dict[str, object]:
    """Return an error in the shape of Anthropic's API."""
    form, message = error_form(error), _message(error)
    if form.code == "context_length_exceeded":
        message = _TOO_LONG + message
    return _anthropic_body(form.status, message, request_id)


def error_response(
    error: Exception, shape: ErrorShape = ErrorShape.OPENAI, request_id: str | None = None
) -> Response:
    """Return an error as a response, in the words of the server whose path was asked.

    request_id: for those that tell it in the body.
    """
    form = error_form(error)
    if shape is ErrorShape.TGI:
        return JsonResponse(tgi_error_body(error), _tgi_form(form)[0], _headers(error))
    if shape is ErrorShape.ANTHROPIC:
        return JsonResponse(anthropic_error_body(error, request_id), form.status, _headers(error))
    return JsonResponse(error_body(error), form.status, _headers(error))


def http_error_response(
    status: int,
    message: str,
    headers: Mapping[str, str] | None,
    shape: ErrorShape = ErrorShape.OPENAI,
    request_id: str | None = None,
) -> Response:
    """Return what the router refuses (no such route, no such method) in the same shape."""
    if shape is ErrorShape.ANTHROPIC:
        return JsonResponse(_anthropic_body(status, message, request_id), status, headers)
    if shape is ErrorShape.TGI:
        status, kind = _tgi_form(ErrorForm(status, INVALID))
        return JsonResponse({"error": message, "error_type": kind}, status, headers)
    return JsonResponse(_body(message, INVALID, None, None), status, headers)


def _message(error: Exception) -> str:
    if error_form(error) is UNEXPECTED:
        return "the server failed; this is a fault of its own"
    return str(error)[:MAX_MESSAGE]


def _tgi_form(form: ErrorForm) -> tuple[int, str]:
    if form is UNEXPECTED:
        return form.status, "internal_error"
    return _TGI.get(form.status, (form.status, form.code or form.type))


def _anthropic_body(status: int, message: str, request_id: str | None) -> dict[str, object]:
    error = {"type": _ANTHROPIC.get(status, INVALID), "message": message}
    return {"type": "error", "error": error, "request_id": request_id}


def _body(
    message: str, kind: str, param: str | None, code: str | None
) -> dict[str, dict[str, str | None]]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _headers(error: Exception) -> dict[str, str]:
    if isinstance(error, InvalidKeyError):
        return {"www-authenticate": "Bearer"}
    if isinstance(error, UnavailableError):
        return {"retry-after": str(error.retry_after_s)}
    if isinstance(error, QueueFullError):
        return {"retry-after": str(math.ceil(error.retry_after_s))}
    if isinstance(error, DeadlineExceededError):
        # The official clients ask again after a 408, twice: three times the work, for nothing.
        return {"x-should-retry": "false"}
    if isinstance(error, (EngineDeadError, TemplateInterruptedError)):
        return {"retry-after": str(RETRY_AFTER_S)}
    return {}
