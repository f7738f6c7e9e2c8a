"""GET /props: what is true, and no more."""

from __future__ import annotations

import httpx2 as httpx

from tests.service.fakes import MODEL, ByteTokenizer, Defaults, FakeEngine, running_server, says


def get(path: str, engine: FakeEngine | None, **of_server: object) -> httpx.Response:
    with running_server(engine, ByteTokenizer(), **of_server) as server:
        return httpx.get(server.url + path, timeout=20)


def fake_engine() -> FakeEngine:
    return FakeEngine(says(ByteTokenizer(), "x"))


def test_props_tell_context_defaults_and_pieces():
    body = get("/props", fake_engine(), defaults=Defaults(temperature=0.25, top_k=7)).json()
    settings = body["default_generation_settings"]
    assert settings["n_ctx"] == 256
    assert settings["params"]["temperature"] == 0.25
    assert settings["params"]["top_k"] == 7
    assert settings["params"]["seed"] == -1
    assert body["model_alias"] == MODEL
    assert (body["bos_token"], body["eos_token"]) == ("<s>", "</s>")
    assert body["modalities"] == {"vision": False, "audio": False}


def test_what_is_not_so_here_is_not_told():
    body = get("/props", fake_engine()).json()
    assert not body.keys() & {"total_slots", "model_path", "chat_template_caps"}


def test_variant_is_named_in_the_query():
    assert get(f"/props?model={MODEL}", fake_engine()).status_code == 200
    assert get("/props?model=other", fake_engine()).status_code == 404


def test_variant_that_is_loading_is_told_to_be():
    response = get("/props", None)
    assert response.status_code == 503
    assert "loading" in response.json()["error"]["message"]
    assert int(response.headers["retry-after"]) > 0


def test_it_asks_for_the_key():
    assert get("/props", fake_engine(), key="sk-1").status_code == 401
