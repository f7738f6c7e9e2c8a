"""Reads which page of a list a query asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.batches.file_store import Page
from service.errors import InvalidFieldError

if TYPE_CHECKING:
    from starlette.requests import Request


def read_page(request: Request, *, default: int, most: int) -> tuple[Page, str | None]:
    """Return how many of a list are asked for and in which order, and the id before the first.

    Raises InvalidFieldError.
    """
    limit = request.query_params.get("limit")
    if limit is not None and not (limit.isascii() and limit.isdecimal() and len(limit) < 10):
        raise InvalidFieldError(f"limit: give a number from 1 to {most}", param="limit")
    count = default if limit is None else int(limit)
    if not 1 <= count <= most:
        raise InvalidFieldError(f"limit: give a number from 1 to {most}", param="limit")
    order = request.query_params.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidFieldError("order: give asc or desc", param="order")
    after = request.query_params.get("after") or None
    return Page(limit=count, is_newest_first=order == "desc"), after
