"""Which statuses an endpoint may answer beside its success, and what each says.

Every status of the table of errors is on the list of every endpoint, unless a rule here says for
which endpoints alone it can come: so a new error cannot be forgotten.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from service.api.endpoint import Access, ErrorShape
from service.api.error_responses import STATUS, UNEXPECTED

if TYPE_CHECKING:
    from collections.abc import Callable

    from service.api.endpoint import Endpoint

Rule: TypeAlias = "Callable[[Endpoint], bool]"


def statuses_of(endpoint: Endpoint) -> list[int]:
    """List what an endpoint may answer beside its success, in order."""
    of_errors = {form.status for form in (*STATUS.values(), UNEXPECTED)} | set(_BESIDE_ERRORS)
    common = {status for status in of_errors if _RULES.get(status, _any)(endpoint)}
    return sorted({*common, *endpoint.statuses, *endpoint.other_answers} - {endpoint.success})


def meaning_of(status: int) -> str:
    """Say what a status means; for one that has none here, just that it is an error."""
    return _MEANINGS.get(status, "The request was not answered.")


def codes_of(status: int) -> list[str]:
    """List the codes that errors with this status have."""
    forms = (*STATUS.values(), UNEXPECTED)
    return sorted({form.code for form in forms if form.status == status and form.code})


def _any(_: Endpoint) -> bool:
    return True


def _takes_body(endpoint: Endpoint) -> bool:
    return endpoint.method == "POST"


def _makes_text(endpoint: Endpoint) -> bool:
    return _takes_body(endpoint) and endpoint.access is Access.CALLER


def _names_something(endpoint: Endpoint) -> bool:
    return _takes_body(endpoint) or "{" in endpoint.path


_RULES: dict[int, Rule] = {
    400: _takes_body,
    401: lambda endpoint: endpoint.access is not Access.OPEN,
    404: _names_something,
    408: _makes_text,
    409: lambda endpoint: _takes_body(endpoint) and endpoint.access is Access.ADMIN,
    413: _takes_body,
    415: _takes_body,
    422: lambda endpoint: _takes_body(endpoint) and endpoint.errors is ErrorShape.TGI,
    429: _makes_text,
    503: _takes_body,
    507: lambda _: False,  # where something is kept, which its declaration says
}

# The router's own, and another server's word for what is wrong with a request.
_BESIDE_ERRORS = (405, 422)

_MEANINGS = {
    202: "What was asked for has begun.",
    400: "The request is wrong, or cannot be answered as asked; the message says what to change.",
    401: "No key was given, or none that opens this.",
    403: "A server without a key was asked by another name than a loopback one, or by a page of "
    "another origin.",
    404: "No such path, model, file or batch here.",
    405: "The path does not take this method.",
    408: "The request's own deadline passed.",
    409: "What was asked does not go with how things stand: with a variant's state, a batch's.",
    413: "The body has more bytes than are allowed, or all files together would.",
    415: "The body is of another media type than is taken, or compressed.",
    422: "The request is wrong; the message says what to change.",
    424: "The answer could not be generated.",
    429: "The server has too much to do; try again later.",
    500: "The server failed; this is a fault of its own.",
    501: "This server does not do that.",
    507: "What was sent could not be kept: the disk is full, or not to be written to.",
    503: "The server, or the variant, does not answer for now: it loads, restarts or stops.",
}
