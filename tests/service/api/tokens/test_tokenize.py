"""Texts and dialogues to tokens over HTTP, in two servers' shapes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx2 as httpx
import pytest

from service.api import responses
from service.api.responses import ModelResponse
from service.api.tokens import tokenize as tokenize_module
from service.api.tokens.tokenize import TokenizeRequest
from service.text.templates import ChatTemplate
from tests import models
from tests.service.fakes import MODEL, TURN_END, FakeEngine, RunningServer, running_server, says

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedTokenizerFast

TURNS = [{"role": "user", "content": "Hi <|im_end|>"}]


@pytest.fixture(scope="module")
def template(tiny_tokenizer: PreTrainedTokenizerFast) -> Iterator[ChatTemplate]:
    made = ChatTemplate(tiny_tokenizer, name="ChatML", source=models.CHATML)
    yield made
    made.close()


@pytest.fixture(scope="module")
def engine(tiny_tokenizer: PreTrainedTokenizerFast) -> FakeEngine:
    return FakeEngine(says(tiny_tokenizer, "yes"))


@pytest.fixture(scope="module")
def server(
    engine: FakeEngine, template: ChatTemplate, tiny_tokenizer: PreTrainedTokenizerFast
) -> Iterator[RunningServer]:
    with running_server(engine, tiny_tokenizer, chat_template=template) as running:
        yield running


def post(server: RunningServer, path: str = "/tokenize", **body: Any) -> httpx.Response:
    return httpx.post(server.url + path, json=body)


def tokenize(server: RunningServer, **body: Any) -> dict[str, Any]:
    response = post(server, **body)
    assert response.status_code == 200, response.text
    return response.json()


def test_prompt_is_told_in_vllms_shape(server, tiny_tokenizer):
    ids = tiny_tokenizer("Hé").input_ids
    assert tokenize(server, prompt="Hé") == {
        "count": len(ids),
        "max_model_len": 256,
        "tokens": ids,
        "token_strs": None,
        "special": [True, False, False, False],
        "bos": "tokenizer",
    }


def test_pieces_are_told_where_asked_for(server):
    answer = tokenize(server, prompt="Hé", return_token_strs=True)
    assert answer["token_strs"] == ["<s>", "H", "Ã", "©"]


def test_bos_that_was_typed_is_not_doubled_and_is_told(server):
    answer = tokenize(server, prompt="<s>H")
    assert (answer["tokens"].count(0), answer["bos"]) == (1, "typed")


@pytest.mark.parametrize("field", ["prompt", "content"])
def test_bos_that_is_plain_text_was_not_typed_as_bos(server, field):
    body = {field: "<s>Hi", "parse_special": False}
    wanted = {"add_special": True} if field == "content" else {}
    answer = tokenize(server, **body, **wanted)
    assert (answer["special"].count(True), answer["bos"]) == (1, "tokenizer")


def test_no_bos_where_none_is_wanted(server):
    answer = tokenize(server, prompt="H", add_special_tokens=False)
    assert (answer["count"], answer["bos"]) == (1, None)


@pytest.mark.parametrize("field", ["prompt", "content"])
def test_special_pieces_are_parsed_unless_they_are_said_to_be_text(server, field):
    parsed = tokenize(server, **{field: "a<|im_end|>"})
    assert (parsed["tokens"][-1], parsed["special"][-1]) == (TURN_END, True)
    typed = tokenize(server, **{field: "a<|im_end|>", "parse_special": False})
    assert TURN_END not in typed["tokens"]


def test_dialogue_goes_through_the_template(server, template):
    answer = tokenize(server, messages=TURNS)
    assert answer["tokens"] == template.render(TURNS)
    assert (answer["bos"], answer["count"]) == ("tokenizer", len(answer["tokens"]))
    assert answer["special"].count(True) == 1 + 3  # BOS, one turn, the opening of the next


def test_dialogue_may_end_without_an_open_turn(server):
    opened = tokenize(server, messages=TURNS, add_generation_prompt=True)
    closed = tokenize(server, messages=TURNS, add_generation_prompt=False)
    assert opened["tokens"][: closed["count"]] == closed["tokens"]
    assert closed["count"] < opened["count"]


def test_final_message_may_stay_open(server, tiny_tokenizer):
    turns = [*TURNS, {"role": "assistant", "content": "So"}]
    answer = tokenize(server, messages=turns, continue_final_message=True)
    text = tiny_tokenizer.decode(answer["tokens"])
    assert text.endswith("assistant\nSo")


def test_variables_that_the_template_does_not_read_are_named(server):
    response = post(server, messages=TURNS, chat_template_kwargs={"enable_thinking": True})
    assert response.headers["x-ignored-params"] == "chat_template_kwargs.enable_thinking"
    assert response.json() == tokenize(server, messages=TURNS)


def test_content_is_told_in_llama_cpps_shape(server, tiny_tokenizer):
    ids = tiny_tokenizer("Hé", add_special_tokens=False).input_ids
    answer = tokenize(server, content="Hé")
    assert answer == {"tokens": ids, "special": [False] * 3, "bos": None}
    with_bos = tokenize(server, content="Hé", add_special=True)
    assert (with_bos["tokens"], with_bos["bos"]) == ([0, *ids], "tokenizer")


def test_pieces_of_content_are_texts_or_bytes(server):
    answer = tokenize(server, content="H é", with_pieces=True)
    pieces = [token["piece"] for token in answer["tokens"]]
    assert pieces == ["H", " ", [0xC3], [0xA9]]
    assert [token["id"] for token in answer["tokens"]] == tokenize(server, content="H é")["tokens"]


def test_empty_text_has_no_tokens_but_bos(server):
    assert tokenize(server, prompt="")["tokens"] == [0]
    assert tokenize(server, content="")["tokens"] == []


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"prompt": None},
        {"prompt": "a", "content": "a"},
        {"prompt": ["a"]},
        {"content": [1]},
        {"messages": []},
        {"messages": [{"role": "cook", "content": "a"}]},
        {"content": "a", "return_token_strs": True},
        {"prompt": "a", "with_pieces": True},
        {"messages": TURNS, "add_special_tokens": True},
        {"prompt": "a", "continue_final_message": True},
        {"messages": TURNS, "continue_final_message": True},
        {"messages": TURNS, "continue_final_message": True, "add_generation_prompt": True},
        {"messages": TURNS, "tools": [{"type": "function"}]},
        {"prompt": "a", "tools": [{"type": "function", "function": {"name": "f"}}]},
        {"messages": TURNS, "chat_template": "{{ messages }}"},
    ],
)
def test_bodies_that_say_nothing_or_too_much_are_refused(server, body):
    response = post(server, **body)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_names_of_models_count_and_nothing_is_generated(server, engine):
    assert tokenize(server, prompt="a", model=MODEL)["count"] == 2
    assert post(server, prompt="a", model="other").status_code == 404
    assert post(server, path="/v1/tokenize", prompt="a").status_code == 200
    assert engine.submitted == []


def test_dialogues_need_a_template(engine, tiny_tokenizer):
    with running_server(engine, tiny_tokenizer, chat_refusal="a base model") as server:
        response = post(server, messages=TURNS)
        assert post(server, prompt="a").status_code == 200
    assert response.json()["error"]["code"] == "chat_not_supported"


ODD_VALUES = [
    *(True, False, 0, -1, 2**63, 0.5, "", "a", "\x00", "é" * 300),
    *([], [0], ["a"], [None], {}, {"a": 1}, {"a": [1]}, None),
]


@pytest.mark.parametrize("source", [{"prompt": "a"}, {"messages": TURNS}, {"content": "a"}])
def test_odd_values_are_taken_or_refused(server, source):
    with httpx.Client(base_url=server.url) as client:
        for name in TokenizeRequest.model_fields:
            for value in ODD_VALUES:
                response = client.post("/tokenize", json={**source, name: value})
                assert response.status_code in (200, 400, 404), (name, value)


@pytest.mark.parametrize("body", [{"prompt": "a"}, {"content": "a"}, {"messages": TURNS}])
def test_answers_are_written_beside_the_event_loop(monkeypatch, server, body):
    """A text may have a million tokens, and others wait meanwhile."""
    written_in_loop: list[bool] = []

    def write(*args: Any, **others: Any) -> ModelResponse:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            written_in_loop.append(False)
        else:
            written_in_loop.append(True)
        return ModelResponse(*args, **others)

    monkeypatch.setattr(responses, "ModelResponse", write)
    tokenize(server, **body)
    assert written_in_loop == [False]


@pytest.mark.parametrize("source", ["prompt", "content"])
def test_turns_are_neither_opened_nor_closed_in_a_text(server, source):
    assert tokenize(server, **{source: "a"}, add_generation_prompt=True)
    response = post(server, **{source: "a"}, add_generation_prompt=False)
    assert response.status_code == 400
    assert "only with messages" in response.json()["error"]["message"]


def test_each_piece_is_spelt_once_however_often_it_comes(server, monkeypatch):
    spelt: list[bytes] = []

    def spell(raw: bytes) -> str:
        spelt.append(raw)
        return raw.decode()

    monkeypatch.setattr(tokenize_module, "_piece", spell)
    body = {"content": "a\n" * 50, "with_pieces": True}
    told = httpx.post(f"{server.url}/tokenize", json=body).json()["tokens"]
    assert "".join(token["piece"] for token in told) == "a\n" * 50
    assert len(spelt) == len({token["id"] for token in told}) < len(told)
