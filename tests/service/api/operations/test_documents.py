"""The API's own description, as the server serves it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import httpx2 as httpx
import pytest

from service.api.application import endpoints_of
from service.api.operations.admin import Administration
from service.api.operations.documents import Documents, document_endpoints
from service.server.lifecycle import Lifecycle
from service.team.keys import ApiKeys
from tests.service.api.sample_endpoints import ENDPOINTS
from tests.service.fakes import (
    ByteTokenizer,
    FakeEngine,
    FakeModels,
    RunningServer,
    api_context,
    running_server,
    says,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.api.endpoint import Endpoint


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    tokenizer = ByteTokenizer()
    with running_server(FakeEngine(says(tokenizer, "yes")), tokenizer) as running:
        yield running


def all_endpoints() -> list[Endpoint]:
    models = FakeModels(None)
    administration = Administration(ApiKeys("sk-admin"), None, None)
    return endpoints_of(api_context(Lifecycle(models), models), administration)


def test_document_and_page_are_served_and_describe_themselves(server):
    response = httpx.get(f"{server.url}/openapi.json")
    assert response.headers["content-type"] == "application/json"
    document = response.json()
    assert {"/openapi.json", "/docs", "/v1/chat/completions", "/health"} <= set(document["paths"])
    page = httpx.get(f"{server.url}/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "/v1/chat/completions" in page.text
    assert "/openapi.json" in page.text


@pytest.mark.parametrize("path", ["/openapi.json", "/docs"])
def test_head_is_answered_without_a_body(server, path):
    response = httpx.head(f"{server.url}{path}")
    assert response.status_code == 200
    assert response.content == b""


def test_document_of_every_endpoint_there_is_is_valid():
    validator = pytest.importorskip("openapi_spec_validator", reason="needs the extra `dev`")
    document = Documents(all_endpoints()).document
    validator.OpenAPIV31SpecValidator(document).validate()


def test_every_path_is_in_the_document_and_every_endpoint_on_the_page():
    documents = Documents(endpoints := all_endpoints())
    page = documents.page.decode()
    for endpoint in endpoints:
        assert f'id="{endpoint.name}"' in page
        for path in endpoint.paths:
            bare = re.sub(r":\w+}", "}", path)
            assert endpoint.method.lower() in documents.document["paths"][bare]
            assert bare in page


def test_both_are_made_once():
    documents = Documents(ENDPOINTS)
    assert documents.document is documents.document
    assert documents.page is documents.page


def test_own_endpoints_need_a_key_like_any_other():
    assert {endpoint.access.value for endpoint in document_endpoints(ENDPOINTS)} == {"caller"}
