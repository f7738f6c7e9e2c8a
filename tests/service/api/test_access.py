"""Whose key a path asks for: what was forgotten is closed."""

from __future__ import annotations

import pytest

from service.api.access import access_rule
from service.api.endpoint import Access, Endpoint


async def handle(request):
    """Answer."""


def endpoint(path: str, access: Access, *other_paths: str) -> Endpoint:
    return Endpoint(
        method="GET", path=path, other_paths=other_paths, tag="x", handler=handle, access=access
    )


RULE = access_rule(
    [
        endpoint("/health/ready", Access.OPEN, "/health"),
        endpoint("/v1/models/{name:path}", Access.CALLER),
        endpoint("/admin/models/{name}", Access.ADMIN),
        endpoint("/status", Access.ADMIN),
    ]
)


@pytest.mark.parametrize("path", ["/health", "/health/ready"])
def test_listed_path_is_open_by_each_of_its_names(path):
    assert RULE(path) is Access.OPEN


@pytest.mark.parametrize(
    "path",
    ["", "*", "/", "/nothing", "/health/", "/health/ready/x", "//health", "/Health", "/v1/models/x",
     "/v1/models/../../health", "/health%2f", "/health?x", "/admin", "/administration"],
)  # fmt: skip
def test_any_other_path_asks_for_a_key(path):
    assert RULE(path) is Access.CALLER


@pytest.mark.parametrize("path", ["/admin/", "/admin/models/x", "/admin/nothing", "/status"])
def test_administrators_paths_ask_for_their_key(path):
    assert RULE(path) is Access.ADMIN


def test_stricter_one_counts_where_two_share_a_path():
    shared = [endpoint("/x", Access.CALLER), endpoint("/x", Access.OPEN)]
    assert access_rule(shared)("/x") is Access.CALLER
    assert access_rule(reversed(shared))("/x") is Access.CALLER


@pytest.mark.parametrize(
    ("path", "access"),
    [
        ("/health/{name}", Access.OPEN),
        ("/status/{name}", Access.ADMIN),
        ("/admin/models", Access.CALLER),
        ("/admin/health", Access.OPEN),
    ],
)
def test_access_that_a_path_alone_cannot_tell_is_refused(path, access):
    with pytest.raises(ValueError, match=path):
        access_rule([endpoint(path, access)])
