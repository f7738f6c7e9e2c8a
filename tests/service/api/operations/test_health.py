"""Health, for supervisors and routers."""

from __future__ import annotations

import httpx2 as httpx
import pytest

from loaders.reports.suspicion import Suspicion
from tests.service.fakes import MODEL, FakeEngine, running_server, says


@pytest.mark.parametrize("path", ["/health", "/health/ready"])
def test_ready_only_while_serving(tiny_tokenizer, path):
    engine = FakeEngine(says(tiny_tokenizer, "yes"))
    with running_server(engine, tiny_tokenizer) as server:
        response = httpx.get(server.url + path)
        assert (response.status_code, response.json()["phase"]) == (200, "serving")
        engine.is_alive = False
        response = httpx.get(server.url + path)
        assert (response.status_code, response.json()["phase"]) == (503, "failed")
        engine.is_alive = True
        server.lifecycle.begin_draining()
        response = httpx.get(server.url + path)
        assert (response.status_code, response.json()["phase"]) == (503, "draining")
        assert int(response.headers["retry-after"]) > 0


def test_loading_server_is_alive_and_not_ready(tiny_tokenizer):
    with running_server(None, tiny_tokenizer) as server:
        assert httpx.get(f"{server.url}/health/live").status_code == 200
        response = httpx.get(f"{server.url}/health/ready")
    assert response.status_code == 503
    assert response.json()["phase"] == "loading"
    assert response.json()["uptime_s"] >= 0
    loading = {"state": "loading", "step": "reading the weights", "percent": 43}
    assert response.json()["variants"] == [loading]


def test_health_tells_the_self_tests_outcome_and_no_more(tiny_tokenizer):
    with running_server(FakeEngine(says(tiny_tokenizer, "yes")), tiny_tokenizer) as server:
        (variant,) = httpx.get(f"{server.url}/health/ready").json()["variants"]
    assert variant["self_test"] == {"passed": True, "finished": 1_700_000_000}


def test_health_says_that_files_are_suspect_but_not_why(tiny_tokenizer):
    engine = FakeEngine(says(tiny_tokenizer, "yes"))
    with running_server(engine, tiny_tokenizer) as server:
        (variant,) = httpx.get(f"{server.url}/health/ready").json()["variants"]
    assert "suspect" not in variant
    suspicions = (Suspicion("scales_elsewhere", "scales of model.layers.0 do not fit"),)
    with running_server(engine, tiny_tokenizer, suspicions=suspicions) as server:
        response = httpx.get(f"{server.url}/health/ready")
    (variant,) = response.json()["variants"]
    assert (response.status_code, variant["suspect"]) == (200, True)
    assert "scales" not in response.text


def test_health_needs_no_key_and_tells_nothing_of_the_model(tiny_tokenizer):
    engine = FakeEngine(says(tiny_tokenizer, "yes"))
    with running_server(engine, tiny_tokenizer, key="sk-x") as server:
        for path in ("/health", "/health/ready", "/health/live"):
            response = httpx.get(server.url + path)
            assert response.status_code == 200
            assert response.json().keys() <= {"status", "phase", "uptime_s", "variants"}
            assert MODEL not in response.text
            assert "layers" not in response.text
