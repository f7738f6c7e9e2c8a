"""The order around a gap that an operator chooses, as the engine gets it from every path."""

from __future__ import annotations

import httpx2 as httpx
import pytest

from service.text.facts import VariantFacts
from service.text.infilling.families import CODELLAMA, STARCODER
from service.text.infilling.infilling import resolve_infilling
from tests.service.fakes import ByteTokenizer, FakeEngine, running_server, says

BODIES = {
    "/infill": {"input_prefix": "ab", "input_suffix": "yz"},
    "/v1/fim/completions": {"prompt": "ab", "suffix": "yz", "max_tokens": 9},
    "/v1/completions": {"prompt": "ab", "suffix": "yz", "max_tokens": 9},
}
FAMILIES = {"CodeLlama-7b": CODELLAMA, "starcoder": STARCODER}
PROMPTS = {
    ("CodeLlama-7b", None): "<s>▁<PRE>ab▁<SUF>yz▁<MID>",
    ("CodeLlama-7b", "psm"): "<s>▁<PRE>ab▁<SUF>yz▁<MID>",
    ("CodeLlama-7b", "spm"): "<s>▁<PRE>▁<SUF>yz▁<MID>ab",
    ("starcoder", None): "<s><fim_prefix>ab<fim_suffix>yz<fim_middle>",
    ("starcoder", "psm"): "<s><fim_prefix>ab<fim_suffix>yz<fim_middle>",
    ("starcoder", "spm"): "<s><fim_prefix><fim_suffix>yz<fim_middle>ab",
}


@pytest.mark.parametrize(("name", "order"), PROMPTS)
def test_every_path_writes_the_order_that_was_chosen(name, order):
    tokenizer = ByteTokenizer(FAMILIES[name].pieces)
    backend = tokenizer.backend_tokenizer
    infilling = resolve_infilling(tokenizer, VariantFacts(repo=name, model_type="llama"), order)
    engine = FakeEngine(says(tokenizer, "x"))
    with (
        running_server(engine, tokenizer, infilling=infilling) as server,
        httpx.Client(base_url=server.url, timeout=20) as http,
    ):
        (model,) = http.get("/v1/models").json()["data"]
        for path, body in BODIES.items():
            response = http.post(path, json={**body, "model": model["id"]})
            assert response.status_code == 200, response.text
            prompt, _ = engine.submitted[-1]
            assert backend.decode(prompt, skip_special_tokens=False) == PROMPTS[name, order]
    assert model["infilling"]["orders"] == ["psm", "spm"]
    assert model["infilling"]["default_order"] == (order or "psm")
