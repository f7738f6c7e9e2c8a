"""The list of models, and one model by a name that holds slashes, colons and at signs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING
from urllib.parse import quote

import httpx2 as httpx
import openai
import pytest

from engine.statistics import LiveCheckStatistics
from loaders.reports.suspicion import Suspicion
from service.text.template_check import TemplateFinding
from tests.service.fakes import MODEL, FakeEngine, RunningServer, running_server, says

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedTokenizerFast


@pytest.fixture(scope="module")
def server(tiny_tokenizer: PreTrainedTokenizerFast) -> Iterator[RunningServer]:
    with running_server(FakeEngine(says(tiny_tokenizer, "yes")), tiny_tokenizer) as running:
        yield running


def test_list_names_what_is_served(server):
    (model,) = server.client().models.list()
    assert (model.id, model.object, model.owned_by) == (MODEL, "model", "tetrad")
    assert model.created == 1_700_000_000


def test_list_says_what_is_not_loaded(tiny_tokenizer):
    with running_server(None, tiny_tokenizer) as loading:
        (model,) = loading.client().models.list()
        assert (model.id, model.state, model.max_model_len) == (MODEL, "loading", None)
        assert loading.client().models.retrieve(MODEL).state == "loading"


def test_models_say_why_their_files_are_suspect(server, tiny_tokenizer):
    (model,) = server.client().models.list()
    assert model.suspect is None
    suspicions = (Suspicion("one", "this is odd"), Suspicion("other", "that too"))
    engine = FakeEngine(says(tiny_tokenizer, "yes"))
    with running_server(engine, tiny_tokenizer, suspicions=suspicions) as suspect:
        (listed,) = suspect.client().models.list()
        found = suspect.client().models.retrieve(MODEL)
    assert listed.suspect == found.suspect == ["one: this is odd", "other: that too"]


def test_a_model_tells_its_chat_template_and_the_doubts_about_it(server, tiny_tokenizer):
    model = server.client().models.retrieve(MODEL)
    assert model.chat_template == {"name": "plain", "source": "family", "findings": []}
    engine, finding = FakeEngine(says(tiny_tokenizer, "yes")), TemplateFinding("code", "a sentence")
    with running_server(
        engine, tiny_tokenizer, chat_refusal="a base model", template_findings=(finding,)
    ) as doubtful:
        assert doubtful.client().models.retrieve(MODEL).chat_template == {
            "name": None,
            "source": None,
            "findings": [{"code": "code", "sentence": "a sentence"}],
        }


def test_official_client_finds_a_model_by_its_name(server):
    model = server.client().models.retrieve(MODEL)
    assert model.id == MODEL
    assert model.provenance == {"commit": "0123abc"}
    assert model.self_test["passed"]
    assert model.self_test["checks"][0]["worst"] == 0.3
    with pytest.raises(openai.NotFoundError, match="owner/name"):
        server.client().models.retrieve("other/name")


def test_a_model_tells_how_far_its_live_check_has_come(tiny_tokenizer):
    statistics = LiveCheckStatistics(
        num_layers=14, num_checked=31, num_skipped=3, num_rounds=2, last_round_s=12.5
    )
    engine = FakeEngine(says(tiny_tokenizer, "yes"), live_check=statistics)
    with running_server(engine, tiny_tokenizer) as running:
        assert running.client().models.retrieve(MODEL).live_check == {
            "num_layers": 14,
            "num_checked": 31,
            "num_skipped": 3,
            "num_rounds": 2,
            "last_round_s": 12.5,
            "problem": None,
        }


def test_list_says_what_a_variant_can_do(server):
    (model,) = server.client().models.list()
    assert model.root == MODEL
    assert model.parent is None
    assert model.aliases == []
    assert model.max_model_len == model.context_length == 256
    assert model.capabilities == {
        "completion": True,
        "chat": True,
        "infilling": False,
        "tools": True,
    }
    assert (model.infilling, model.chat_refusal) == (None, None)


def test_list_says_why_a_variant_cannot(tiny_tokenizer):
    engine = FakeEngine(says(tiny_tokenizer, "yes"))
    with running_server(engine, tiny_tokenizer, chat_refusal="a base model") as running:
        (model,) = running.client().models.list()
    assert not model.capabilities["chat"]
    assert model.chat_refusal == "a base model"
    assert model.infilling_refusal == "it has no pieces that mark a gap"


def test_infilling_is_told_as_its_record(tiny_tokenizer):
    record = {
        "family": "Some",
        "orders": ["psm", "spm"],
        "default_order": "psm",
        "stop": ["<end>"],
        "file_pieces": False,
    }
    engine = FakeEngine(says(tiny_tokenizer, "yes"))
    infilling = SimpleNamespace(record=record)
    with running_server(engine, tiny_tokenizer, infilling=infilling) as running:
        (model,) = running.client().models.list()
    assert model.infilling == record
    assert model.capabilities["infilling"]


def test_anthropics_clients_get_their_fields(server):
    headers = {"anthropic-version": "2023-06-01"}
    listed = httpx.get(f"{server.url}/v1/models", headers=headers).json()
    assert (listed["has_more"], listed["first_id"], listed["last_id"]) == (False, MODEL, MODEL)
    model = httpx.get(f"{server.url}/v1/models/{MODEL}", headers=headers).json()
    for found in (listed["data"][0], model):
        assert (found["type"], found["display_name"]) == ("model", MODEL)
        assert found["created_at"] == "2023-11-14T22:13:20Z"
        assert found["object"] == "model"
    plain = httpx.get(f"{server.url}/v1/models").json()
    assert plain.keys() == {"object", "data"}
    assert "created_at" not in plain["data"][0]


def test_codex_gets_a_list_of_its_own(server):
    listed = httpx.get(f"{server.url}/models", params={"client_version": "0.99.0"}).json()
    assert listed["models"] == []
    assert [model["id"] for model in listed["data"]] == [MODEL]


@pytest.mark.parametrize("spelt", [MODEL, quote(MODEL), quote(MODEL, safe="")])
def test_name_works_however_it_is_encoded(server, spelt):
    response = httpx.get(f"{server.url}/v1/models/{spelt}")
    assert response.json()["id"] == MODEL
    assert response.headers["x-kernel"] == "reference"


@pytest.mark.parametrize("name", ["", "x" * 3000, "%00", "%ff", "..", "owner"])
def test_other_names_are_not_found(server, name):
    assert httpx.get(f"{server.url}/v1/models/{name}").status_code == 404


def test_openapi_describes_the_bodies(server):
    description = httpx.get(f"{server.url}/openapi.json").json()
    body = description["paths"]["/v1/chat/completions"]["post"]["requestBody"]
    reference = body["content"]["application/json"]["schema"]["$ref"]
    schemas = description["components"]["schemas"]
    assert schemas[reference.rsplit("/", 1)[1]]["required"] == ["messages"]
    assert "Message" in schemas
    assert '"#/$defs' not in str(description)


def test_there_is_no_page_that_loads_scripts_from_elsewhere(server):
    assert httpx.get(f"{server.url}/redoc").status_code == 404
    page = httpx.get(f"{server.url}/docs").text
    assert "<script" not in page
    assert "src=" not in page
