"""What is served, in text-generation-inference's words."""

from __future__ import annotations

from importlib.metadata import version

import httpx2 as httpx

from tests.service.fakes import LIMITS, MODEL, FakeEngine, running_server, says


def test_info_tells_what_is_served_and_its_bounds(tiny_tokenizer):
    with running_server(FakeEngine(says(tiny_tokenizer, "yes")), tiny_tokenizer) as server:
        info = httpx.get(f"{server.url}/info").json()
        assert httpx.get(f"{server.url}/info", params={"model": MODEL}).json() == info
        other = httpx.get(f"{server.url}/info", params={"model": "other"})
    assert info == {
        "model_id": MODEL,
        "model_sha": None,  # "0123abc" is no commit
        "model_pipeline_tag": "text-generation",
        "max_best_of": LIMITS.max_choices,
        "max_stop_sequences": LIMITS.max_stop_strings,
        "max_input_tokens": 255,
        "max_total_tokens": 256,
        "max_client_batch_size": LIMITS.max_prompts,
        "router": "tetrad",
        "version": version("tetrad"),
    }
    assert (other.status_code, other.json()["error_type"]) == (404, "model_not_found")


def test_info_of_a_variant_that_loads_leaves_its_bounds_open(tiny_tokenizer):
    with running_server(None, tiny_tokenizer) as server:
        info = httpx.get(f"{server.url}/info").json()
    assert (info["model_id"], info["max_total_tokens"], info["max_input_tokens"]) == (
        MODEL,
        None,
        None,
    )
