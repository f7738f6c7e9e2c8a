"""The page at /docs: complete in itself, well-formed, escaped, and with all that is documented."""

from __future__ import annotations

import dataclasses
from xml.etree import ElementTree as ET

import pytest

from service.api.docs_page import docs_html
from service.api.error_responses import STATUS
from service.api.openai.chat import ChatRequest
from service.api.openai.completion_request import CompletionRequest
from service.api.openai.fields import StreamOptions
from service.api.openapi import openapi_document
from tests.service.api.sample_endpoints import ENDPOINTS, TgiParameters

PAGE = docs_html(openapi_document(ENDPOINTS, version="1.2.3")).decode()


@pytest.fixture(scope="module")
def tree() -> ET.Element:
    """The page as strict a parser as any reads it."""
    return ET.fromstring(PAGE.removeprefix("<!DOCTYPE html>"))


def text_of(element: ET.Element) -> str:
    return "".join(element.itertext())


def article(tree: ET.Element, name: str) -> ET.Element:
    found = tree.find(f".//article[@id='{name}']")
    assert found is not None, name
    return found


def test_page_is_html(tree):
    assert PAGE.startswith("<!DOCTYPE html>\n<html lang=")
    assert tree.tag == "html"
    assert "1.2.3" in text_of(tree.find("head/title"))


def test_page_loads_nothing_and_runs_nothing(tree):
    for element in tree.iter():
        assert element.tag not in {"script", "link", "img", "iframe", "object", "form", "base"}
        for name, value in element.attrib.items():
            assert not name.startswith("on")
            if name in {"src", "href", "action", "srcset"}:
                assert value.startswith("#") or value == "openapi.json"
    css = text_of(tree.find("head/style"))
    assert "url(" not in css
    assert "@import" not in css
    policy = tree.find("head/meta[@http-equiv='Content-Security-Policy']").get("content")
    assert policy.startswith("default-src 'none'")


def test_page_is_readable_in_the_dark_and_by_keyboard(tree):
    css = text_of(tree.find("head/style"))
    assert "prefers-color-scheme: dark" in css
    assert ":focus-visible" in css
    assert tree.find("body/a").get("href") == "#content"
    assert all(head.get("scope") for head in tree.iter("th"))


def test_anchors_are_unique_and_every_link_has_one(tree):
    ids = [element.get("id") for element in tree.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    links = {link.get("href")[1:] for link in tree.iter("a") if link.get("href")[0] == "#"}
    assert links <= set(ids)
    assert {endpoint.name for endpoint in ENDPOINTS} <= links


def test_every_path_is_on_the_page(tree):
    for endpoint in ENDPOINTS:
        text = text_of(article(tree, endpoint.name))
        assert endpoint.method in text
        for path in endpoint.paths:
            assert path.replace(":path}", "}") in text


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("create_chat_completion", [*ChatRequest.model_fields, "messages[].role"]),
        ("create_completion", CompletionRequest.model_fields),
        ("create_completion", [f"stream_options.{name}" for name in StreamOptions.model_fields]),
        ("generate", [f"parameters.{name}" for name in TgiParameters.model_fields]),
    ],
)
def test_every_field_is_in_the_table_of_its_endpoint(tree, name, fields):
    rows = {text_of(row.find("th")): row for row in article(tree, name).iter("tr")}
    assert set(fields) <= set(rows)


def test_field_has_type_bounds_default_and_meaning(tree):
    rows = {text_of(row.find("th")): row for row in article(tree, "generate").iter("tr")}
    cells = [text_of(cell) for cell in rows["parameters.temperature"].findall("td")]
    assert cells == ["number", "> 0, ≤ 2", "1.0", "0 | 1: <b>how</b> wild."]
    assert [text_of(cell) for cell in rows["inputs"].findall("td")][2] == "required"


def test_every_status_is_on_the_page_with_its_codes(tree):
    text = text_of(article(tree, "create_chat_completion"))
    admin = text_of(article(tree, "load"))
    for form in STATUS.values():
        assert form.code in text + admin
    assert "OpenAIError (application/json)" in text
    assert "Chunk (text/event-stream)" in text
    assert "retry-after" in text


def test_bodies_of_errors_are_on_the_page(tree):
    rows = {text_of(row.find("th")) for row in tree.find(".//main").iter("tr")}
    assert {"error.message", "error.type", "error.param", "error.code", "error_type"} <= rows


def test_examples_are_calls_that_a_shell_takes(tree):
    example = text_of(article(tree, "create_chat_completion").find("pre/code"))
    assert example == (
        "curl -X POST http://localhost:8000/v1/chat/completions \\\n"
        '  -H "Authorization: Bearer $TETRAD_API_KEY" \\\n'
        "  -H 'Content-Type: application/json' \\\n"
        '  -d \'{"model": "MODEL", "messages": [{"role": "user", "content": "Hello!"}]}\''
    )
    assert "$TETRAD_ADMIN_KEY" in text_of(article(tree, "load").find("pre/code"))
    assert text_of(article(tree, "ready").find("pre/code")) == (
        "curl http://localhost:8000/health/ready"
    )


def test_text_that_looks_like_html_stays_text(tree):
    assert "<script" not in PAGE
    assert "<script>alert(1)</script>" in text_of(article(tree, "create_chat_completion"))


@pytest.mark.parametrize(
    "evil", ["<img src=x onerror=y>", "\"'><b>", "{{ 7 * 7 }}", "`<i>`", "]]>"]
)
def test_no_text_of_the_document_gets_out_of_its_place(evil):
    async def handle(request):
        """."""

    handle.__doc__ = f"{evil}\n\n{evil}"
    endpoint = dataclasses.replace(ENDPOINTS[0], handler=handle, tag=evil, path=f"/{evil}")
    page = docs_html(openapi_document([endpoint], version=evil, tags={evil: evil})).decode()
    tree = ET.fromstring(page.removeprefix("<!DOCTYPE html>"))
    assert evil.strip("`") in text_of(tree)
    assert not {"img", "b", "i"} & {element.tag for element in tree.iter()}
