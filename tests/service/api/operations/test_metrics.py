"""GET /metrics: in which form, when, and for whom."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx2 as httpx
import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families

from tests.service.fakes import MODEL, ByteTokenizer, FakeEngine, running_server, says

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.service.fakes import RunningServer


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    tokenizer = ByteTokenizer()
    with running_server(FakeEngine(says(tokenizer, "yes")), tokenizer) as running:
        running.client().completions.create(model=MODEL, prompt="hi", n=2)
        yield running


def samples(text: str) -> dict[str, float]:
    """Values by name; of several with one name, the sum."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0) + sample.value
    return found


def test_without_a_wish_the_answer_is_prometheus_text(server):
    response = httpx.get(f"{server.url}/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = samples(response.text)
    assert found["vllm:request_success_total"] == 2
    assert found["vllm:e2e_request_latency_seconds_count"] == 1
    assert found["vllm:time_to_first_token_seconds_count"] == 2
    assert found["tetrad_variant_state"] == 1
    assert found["tetrad_process_open_fds"] > 0


def test_openmetrics_comes_to_who_accepts_it(server):
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
    response = httpx.get(f"{server.url}/metrics", headers={"accept": accept})
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    families = {family.name: family for family in openmetrics_families(response.text)}
    assert families["vllm:prompt_tokens"].type == "counter"
    assert families["vllm:time_to_first_token_seconds"].type == "histogram"


@pytest.mark.parametrize(
    "accept",
    [
        "text/plain;version=0.0.4",
        "text/plain;version=1.0.0;escaping=underscores",
        "application/openmetrics-text;version=1.0.0",
        "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8",
        "application/openmetrics-text",
    ],
)
def test_names_are_the_same_for_every_scraper(server, accept):
    text = httpx.get(f"{server.url}/metrics", headers={"accept": accept}).text
    assert "\nvllm:prompt_tokens_total{" in text
    assert "\nvllm:time_to_first_token_seconds_count{" in text
    assert "vllm_" not in text


def test_readiness_is_told_as_health_tells_it(server):
    assert "\ntetrad_ready 1.0\n" in httpx.get(f"{server.url}/metrics").text
    server.lifecycle.begin_draining()
    assert "\ntetrad_ready 0.0\n" in httpx.get(f"{server.url}/metrics").text
    server.lifecycle._is_draining = False


def test_head_answers_without_a_body(server):
    response = httpx.head(f"{server.url}/metrics")
    assert response.status_code == 200
    assert response.content == b""
    assert int(response.headers["content-length"]) > 1000


def test_scrapes_are_answered_while_the_server_drains(server):
    server.lifecycle.begin_draining()
    assert httpx.get(f"{server.url}/metrics").status_code == 200
    server.lifecycle._is_draining = False


def test_while_a_variant_loads_its_state_is_told_and_no_gauge_of_its_engine():
    with running_server(None, ByteTokenizer()) as server:
        text = httpx.get(f"{server.url}/metrics").text
    assert f'tetrad_variant_state{{model_name="{MODEL}",state="loading"}} 1.0' in text
    assert "vllm:num_requests_running{" not in text
    assert "vllm:kv_cache_usage_perc{" not in text


def test_the_documents_have_it(server):
    document = httpx.get(f"{server.url}/openapi.json").json()
    scrape = document["paths"]["/metrics"]["get"]
    assert list(scrape["responses"]["200"]["content"]) == ["text/plain"]
    assert scrape["security"]
    assert "/metrics" in httpx.get(f"{server.url}/docs").text
