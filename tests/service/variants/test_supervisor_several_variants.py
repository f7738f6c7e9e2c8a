"""Several variants behind one server, changed while it runs. Real processes, a fake engine."""

from __future__ import annotations

import concurrent.futures
import threading
from typing import TYPE_CHECKING

import httpx2 as httpx
import pytest

from tests.service.fakes import wait_until
from tests.service.processes import MODEL, serving

if TYPE_CHECKING:
    from pathlib import Path

    from tests.service.processes import ServerProcess

pytestmark = pytest.mark.slow


def test_each_variant_has_an_engine_of_its_own(tmp_path: Path):
    with serving(tmp_path, also=["other=fake/other"]) as server:
        assert len(server.workers()) == 2
        for name in (MODEL, "other"):
            assert server.complete(model=name).json()["model"] == name
        pid = server.statuses()["other"]["pid"]
        assert server.complete(model="other", user="exit").status_code == 503
        assert server.complete().status_code == 200
        wait_until(lambda: server.state_of("other") == "serving", limit_s=10)
        assert server.statuses()["other"]["pid"] != pid
        assert server.statuses()[MODEL]["restarts"] == 0
        models = {model["id"]: model for model in server.client.get("/v1/models").json()["data"]}
        assert models["other"]["state"] == "serving"
        provenance = server.client.get("/v1/models/other").json()["provenance"]
        assert provenance["revision"] == "fake/other"


def test_variant_on_demand_is_loaded_unloaded_and_loaded_again(tmp_path: Path):
    entry = {
        "variant": "fake/other",
        "served_model_name": "other",
        "on_demand": True,
        "idle_unload_s": 0.5,
    }
    with serving(tmp_path, also=[entry]) as server:
        assert len(server.workers()) == 1
        assert server.is_ready()
        for _ in range(2):
            assert server.complete(model="other").status_code == 200
            assert len(server.workers()) == 2
            wait_until(lambda: server.state_of("other") == "unloaded")
            assert len(server.workers()) == 1


def test_swap_under_load_loses_no_request(tmp_path: Path):
    done = threading.Event()

    def ask(server: ServerProcess) -> set[str]:
        seen = set()
        with httpx.Client(base_url=server.url, timeout=20) as client:
            while not done.is_set():
                body = {"model": MODEL, "prompt": "hi", "max_tokens": 20}
                response = client.post("/v1/completions", json=body)
                assert response.status_code == 200, response.text
                answer = response.json()
                assert answer["choices"][0]["text"] == server.expected_text("hi", 20)
                seen.add(answer["system_fingerprint"])
        return seen

    with (
        serving(tmp_path, {"step_s": 0.002}) as server,
        concurrent.futures.ThreadPoolExecutor() as pool,
    ):
        old = server.statuses()[MODEL]["pid"]
        asking = [pool.submit(ask, server) for _ in range(4)]
        response = server.admin("swap", model=MODEL, variant="fake/better")
        assert response.status_code == 202
        assert server.admin("swap", model=MODEL, variant="fake/better").status_code == 409
        wait_until(lambda: len(server.admin().json()["data"]) == 1, limit_s=10)
        wait_until(lambda: len(server.workers()) == 1, limit_s=10)
        assert server.statuses()[MODEL]["pid"] != old
        done.set()
        for seen in concurrent.futures.wait(asking).done:
            assert len(seen.result()) == 2  # the old one's, and the new one's

        server.admin("swap", model=MODEL, variant="fake/broken")
        wait_until(lambda: "swap_failed" in server.log(), limit_s=10)
        assert server.complete().status_code == 200


def test_administrator_brings_variants_in_and_takes_them_out(tmp_path: Path):
    with serving(tmp_path) as server:
        settings = {"max_num_seqs": 3}
        body = {"model": "new", "variant": "fake/new", "settings": settings}
        assert server.admin("load", **body).json()["state"] == "loading"
        assert server.admin("load", **body).status_code == 409
        wait_until(lambda: server.state_of("new") == "serving", limit_s=10)
        assert server.complete(model="new").status_code == 200

        assert server.admin("drain", model="new").json()["state"] == "draining"
        refused = server.complete(model="new")
        assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
        server.admin("load", model="new")
        assert server.complete(model="new").status_code == 200

        assert server.admin("unload", model="new").json()["state"] == "unloading"
        wait_until(lambda: server.state_of("new") == "unloaded")
        assert len(server.workers()) == 1
        assert server.complete(model="new").status_code == 503
        assert server.admin("remove", model="new").status_code == 200
        assert server.complete(model="new").status_code == 404

        for wrong in (
            {"model": "x"},
            {"model": "x", "variant": "./no-folder"},
            {"model": "x", "variant": "a/b", "settings": {"port": 1}},
            {"model": "x", "variant": "a/b", "settings": {"max_num_seqs": 0}},
        ):
            assert server.admin("swap", **wrong).status_code in (400, 404)
        assert server.admin("load", model="x").status_code == 404


def test_admin_routes_ask_for_the_admins_key_and_no_other(tmp_path: Path):
    with serving(tmp_path, api_key="sk-user") as server:
        for headers in ({}, {"authorization": "Bearer sk-user"}):
            response = server.client.get("/admin/models", headers=headers)
            assert response.status_code == 401
            body = {"model": MODEL}
            response = server.client.post("/admin/models/unload", json=body, headers=headers)
            assert response.status_code == 401
        assert server.admin().status_code == 200
        admin = {"authorization": "Bearer sk-admin"}
        assert server.client.get("/v1/models", headers=admin).status_code == 401
        assert server.state_of(MODEL) == "serving"


def test_without_an_admin_key_there_are_no_admin_routes(tmp_path: Path):
    with serving(tmp_path, ready=False, admin_key=None) as server:
        wait_until(lambda: server.client.get("/health/live").status_code == 200)
        assert server.client.get("/admin/models").status_code == 404
        assert server.client.post("/admin/models/unload", json={}).status_code == 404
        assert "/admin" not in server.client.get("/openapi.json").text


def test_server_without_a_variant_left_is_not_ready_until_another_is_loaded(tmp_path: Path):
    def readiness() -> tuple[int, str]:
        response = server.client.get("/health/ready")
        return response.status_code, response.json()["phase"]

    with serving(tmp_path) as server:
        server.admin("unload", model=MODEL)
        wait_until(lambda: readiness() == (503, "unloaded"))
        wait_until(lambda: server.state_of(MODEL) == "unloaded")
        server.admin("remove", model=MODEL)
        assert readiness() == (503, "empty")
        assert server.complete().status_code == 404
        server.admin("load", model="new", variant="fake/new", settings={"on_demand": True})
        wait_until(lambda: readiness() == (200, "serving"), limit_s=10)
        assert server.complete(model="new").status_code == 200
