"""docs/api.md and README.md against what the server does, where no table is generated."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs_pages.api_fields import all_endpoints
from service.api.not_offered import not_offered
from service.api.openai.model_answers import Capabilities
from service.api.tgi.parameters import GenerationParameters
from service.observation.request_story import CLIENT_GONE, CUT_OFF, STALLED

ROOT = Path(__file__).parents[2]
API = (ROOT / "docs/api.md").read_text(encoding="utf-8")
OPERATIONS = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def section(title: str, page: str = API) -> str:
    found = page.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    assert found, title
    return found


def test_nothing_that_is_offered_is_called_not_offered():
    told = set(re.findall(r"[a-z]+", section("What is not offered").lower()))
    offered = {
        part
        for endpoint in all_endpoints()
        for part in endpoint.path.removeprefix("/v1").strip("/").split("/")[:1]
    }
    assert {"files", "batches", "responses", "messages", "infill"} <= offered
    assert not told & offered


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("embeddings", "Embeddings"),
        ("rerank", "rerank"),
        ("images/generations", "images"),
        ("audio/speech", "audio"),
        ("moderations", "moderation"),
        ("fine_tuning/jobs", "fine-tuning"),
        ("conversations", "conversations"),
        ("threads", "threads"),
        ("vector_stores", "vector\nstores"),
        ("uploads", "uploads in parts"),
    ],
)
def test_what_is_called_not_offered_says_so_at_its_path(path, words):
    assert words in section("What is not offered")
    assert not_offered(f"/v1/{path}")


def test_fields_that_are_called_refused_are_those_that_are_not_supported():
    (sentence,) = re.findall(
        r"[^.]*are refused where\s+they say anything", section("Text-generation-inference")
    )
    refused = {
        name
        for name, field in GenerationParameters.model_fields.items()
        if field.description == "Not supported."
    }
    assert set(re.findall(r"`(\w+)`", sentence)) == refused


def test_each_capability_is_named():
    (sentence,) = re.findall(r"A model's `capabilities` are ([^;]*);", API)
    assert set(re.findall(r"`(\w+)`", sentence)) == set(Capabilities.model_fields)


def test_who_ended_a_request_is_told_of_batches_too():
    (row,) = re.findall(r"^\| `outcome` \|(.*)$", OPERATIONS, re.MULTILINE)
    assert {CLIENT_GONE, CUT_OFF, STALLED} <= set(re.findall(r"`(\w+)`", row))
    assert "a batch's have no line then" in row


@pytest.mark.parametrize("page", ["structured_output", "batches", "infilling", "api"])
def test_examples_are_followed_by_the_page_that_tells_more(page):
    assert f"(docs/{page}.md)" in section("Ask it", README)


def slug(heading: str) -> str:
    """Make a heading's anchor as GitHub does."""
    kept = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower())
    return kept.replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_to_pages_and_headings_that_there_are(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        linked = page.parent / name if name else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [slug(heading) for heading in headings], target
