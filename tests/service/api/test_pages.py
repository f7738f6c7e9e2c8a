from __future__ import annotations

import pytest
from starlette.requests import Request

from service.api.pages import read_page
from service.batches.file_store import Page
from service.errors import InvalidFieldError


def request(query: str) -> Request:
    return Request({"type": "http", "query_string": query.encode(), "headers": []})


def test_a_query_says_how_many_in_which_order_and_behind_what():
    assert read_page(request(""), default=20, most=100) == (Page(limit=20), None)
    page, after = read_page(request("limit=7&order=asc&after=batch_1"), default=20, most=100)
    assert page == Page(limit=7, is_newest_first=False)
    assert after == "batch_1"


@pytest.mark.parametrize(
    "query",
    [
        *("limit=0", "limit=101", "limit=-1", "limit=x", "limit=", "limit=%C2%B2", "limit=1e3"),
        *("limit=" + "9" * 5000, "order=up", "order="),
    ],
)
def test_what_no_page_is_is_refused_by_name(query):
    with pytest.raises(InvalidFieldError) as caught:
        read_page(request(query), default=20, most=100)
    assert caught.value.param == query.partition("=")[0]
