"""Health, for supervisors and routers."""

from __future__ import annotations

from importlib.metadata import version

import httpx2 as httpx
import pytest

from loaders.reports.suspicion import Suspicion
from service.api.operations.answers import Liveness, Readiness
from tests.service.fakes import MODEL, FakeEngine, running_server, says


@pytest.mark.parametrize("path", ["/health", "/health/ready", "/ping"])
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


def test_answers_are_as_their_models_say(tiny_tokenizer):
    with running_server(FakeEngine(says(tiny_tokenizer, "yes")), tiny_tokenizer) as server:
        live = httpx.get(f"{server.url}/health/live")
        ready = httpx.get(f"{server.url}/health/ready")
        assert Liveness.model_validate_json(live.content).status == "alive"
        assert Readiness.model_validate_json(ready.content).variants[0].self_test.passed
    with running_server(None, tiny_tokenizer) as server:
        loading = httpx.get(f"{server.url}/health/ready")
        assert Readiness.model_validate_json(loading.content).phase.value == "loading"


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready", "/ping"])
def test_monitors_may_ask_by_head_and_without_a_key(tiny_tokenizer, path):
    engine = FakeEngine(says(tiny_tokenizer, "yes"))
    with running_server(engine, tiny_tokenizer, key="sk-1") as server:
        assert httpx.head(server.url + path).status_code == 200
        assert httpx.get(server.url + path).status_code == 200


def test_version_is_told_to_who_has_the_key(tiny_tokenizer):
    engine = FakeEngine(says(tiny_tokenizer, "yes"))
    with running_server(engine, tiny_tokenizer, key="sk-1") as server:
        assert httpx.get(f"{server.url}/version").status_code == 401
        response = httpx.get(f"{server.url}/version", headers={"x-api-key": "sk-1"})
        assert response.json() == {"version": version("tetrad")}
