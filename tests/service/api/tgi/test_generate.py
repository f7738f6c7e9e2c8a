"""text-generation-inference's endpoints over HTTP, also as huggingface_hub's client sees them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx2 as httpx
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import OverloadedError, ValidationError

from engine.errors import EngineDeadError, NonFiniteLogitsError, QueueFullError
from engine.outputs import TokenLogprobs
from tests.service.fakes import (
    END,
    MODEL,
    TURN_END,
    Defaults,
    FakeEngine,
    RunningServer,
    running_server,
    says,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedTokenizerFast

    from engine.sampling_params import SamplingParams

TEXT = "one two, Grüße 世界 three"


def logprobs(token_id: int, params: SamplingParams) -> TokenLogprobs:
    num_top = max(params.logprobs or 0, params.prompt_logprobs or 0)
    return TokenLogprobs(-0.25, tuple((i, -0.5 * i) for i in range(10, 10 + num_top)))


@pytest.fixture(scope="module")
def engine(tiny_tokenizer: PreTrainedTokenizerFast) -> FakeEngine:
    return FakeEngine(says(tiny_tokenizer, TEXT), logprobs=logprobs)


@pytest.fixture(scope="module")
def server(engine: FakeEngine, tiny_tokenizer: PreTrainedTokenizerFast) -> Iterator[RunningServer]:
    with running_server(engine, tiny_tokenizer) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: RunningServer) -> InferenceClient:
    return InferenceClient(server.url)


def post(server: RunningServer, path: str = "/generate", **body: Any) -> httpx.Response:
    return httpx.post(server.url + path, json={"inputs": "Hi", **body})


def generate(server: RunningServer, **parameters: Any) -> dict[str, Any]:
    response = post(server, parameters=parameters)
    assert response.status_code == 200, response.text
    return response.json()


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """Return a stream's events; refuse anything that is none."""
    blocks = response.text.removesuffix("\n\n").split("\n\n")
    return [json.loads(block.removeprefix("data:")) for block in blocks]


def last(engine: FakeEngine) -> tuple[list[int], SamplingParams]:
    return engine.submitted[-1]


# ── huggingface_hub ─────────────────────────────────────────────────────────────────────────────


def test_inference_client_gets_the_text(client):
    assert client.text_generation("Hi") == TEXT


def test_inference_client_streams_the_text(client):
    pieces = list(client.text_generation("Hi", stream=True))
    assert "".join(pieces) == TEXT + "</s>"
    assert len(pieces) > 5


def test_inference_client_gets_details(client, tiny_tokenizer):
    answer = client.text_generation("Hi", details=True, decoder_input_details=True)
    details = answer.details
    assert answer.generated_text == TEXT
    assert (details.finish_reason, details.seed) == ("eos_token", None)
    assert details.generated_tokens == len(details.tokens)
    assert "".join(token.text for token in details.tokens if not token.special) == TEXT
    ends = [(token.id, token.text) for token in details.tokens if token.special]
    assert ends == [(END, "</s>")]
    assert [token.id for token in details.prefill] == tiny_tokenizer("Hi").input_ids
    assert [token.logprob for token in details.prefill] == [None, -0.25, -0.25]


def test_inference_client_streams_details(client, tiny_tokenizer):
    *firsts, final = client.text_generation("Hi", details=True, stream=True, max_new_tokens=4)
    assert [(one.generated_text, one.details) for one in firsts] == [(None, None)] * 3
    assert final.details.finish_reason == "length"
    assert final.details.generated_tokens == 4
    assert final.details.input_length == len(tiny_tokenizer("Hi").input_ids)
    assert final.generated_text == "".join(one.token.text for one in (*firsts, final))


def test_inference_client_understands_the_errors(client, engine):
    with pytest.raises(ValidationError, match="best_of"):
        client.text_generation("Hi", best_of=2)
    engine.refusal = QueueFullError("too much waits", retry_after_s=3)
    try:
        with pytest.raises(OverloadedError, match="too much waits"):
            client.text_generation("Hi")
    finally:
        engine.refusal = None


# ── shapes ──────────────────────────────────────────────────────────────────────────────────────


def test_root_answers_with_a_list_of_one(server):
    assert post(server, "/").json() == [{"generated_text": TEXT}]
    assert post(server).json() == {"generated_text": TEXT}


def test_root_streams_where_it_is_asked_to(server):
    response = post(server, "/", stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert events(response) == events(post(server, "/generate_stream"))


def test_paths_work_with_v1_too(server):
    assert post(server, "/v1/generate").json() == {"generated_text": TEXT}
    assert events(post(server, "/v1/generate_stream"))[-1]["generated_text"] == TEXT


def test_stream_has_a_frame_a_token_and_no_other_end(server):
    response = post(server, "/generate_stream", parameters={"max_new_tokens": 2})
    first, second, rest = response.text.split("\n\n")
    assert rest == ""
    assert first == (
        'data:{"index":1,"token":{"id":298,"text":"on","logprob":-0.25,"special":false},'
        '"generated_text":null,"details":null}'
    )
    assert json.loads(second.removeprefix("data:"))["generated_text"] == "one"


def test_whole_and_streamed_tokens_are_the_same(server):
    whole = generate(server, details=True, top_n_tokens=2)["details"]
    parameters = {"details": True, "top_n_tokens": 2}
    streamed = events(post(server, "/generate_stream", parameters=parameters))
    assert [event["token"] for event in streamed] == whole["tokens"]
    assert [event["top_tokens"] for event in streamed] == whole["top_tokens"]
    assert [event["index"] for event in streamed] == list(range(1, len(streamed) + 1))
    told = {"finish_reason", "generated_tokens", "seed"}
    assert {n: streamed[-1]["details"][n] for n in told} == {n: whole[n] for n in told}


def test_a_character_of_several_tokens_is_told_with_its_last(server, tiny_tokenizer):
    tokens = generate(server, details=True)["details"]["tokens"]
    texts = [token["text"] for token in tokens]
    assert "世" in texts
    assert texts[texts.index("世") - 1] == ""
    assert [token["id"] for token in tokens[:-1]] == says(tiny_tokenizer, TEXT)([], None)


def test_character_that_is_never_finished_belongs_to_its_token(tiny_tokenizer):
    unfinished = tiny_tokenizer("世", add_special_tokens=False).input_ids[0]
    engine = FakeEngine(lambda prompt, params: [unfinished], logprobs=logprobs)
    with running_server(engine, tiny_tokenizer) as server:
        answer = generate(server, details=True)
    texts = [token["text"] for token in answer["details"]["tokens"]]
    assert (answer["generated_text"], texts) == ("\ufffd", ["\ufffd", "</s>"])


def test_end_pieces_are_special_whatever_the_tokenizer_says(server, engine):
    engine.script, script = (lambda prompt, params: [40, TURN_END]), engine.script
    try:
        tokens = generate(server, details=True)["details"]["tokens"]
    finally:
        engine.script = script
    assert [(token["id"], token["special"]) for token in tokens] == [(40, False), (TURN_END, True)]


# ── parameters ──────────────────────────────────────────────────────────────────────────────────


def test_silence_is_greedy_and_a_hundred_tokens(server, engine):
    post(server)
    params = last(engine)[1]
    assert (params.temperature, params.max_tokens, params.seed) == (0.0, 100, None)
    assert params.logprobs is None


def test_silent_max_new_tokens_shrinks_to_what_is_left(server, engine):
    post(server, inputs="a" * 200)
    prompt, params = last(engine)
    assert params.max_tokens == 256 - len(prompt)


@pytest.mark.parametrize(
    ("given", "temperature"),
    [
        ({"do_sample": True}, 1.0),
        ({"temperature": 0.5}, 0.5),
        ({"top_k": 5}, 1.0),
        ({"top_p": 0.5}, 1.0),
        ({"typical_p": 0.5}, 1.0),
        ({"temperature": 1.0, "top_k": 0, "top_p": 1.0, "typical_p": 1.0}, 0.0),
        ({"temperature": 0, "do_sample": True}, 0.0),
        ({"do_sample": False}, 0.0),
    ],
)
def test_what_means_sampling(server, engine, given, temperature):
    generate(server, **given)
    params = last(engine)[1]
    assert params.temperature == temperature
    assert (params.seed is None) == (temperature == 0)


def test_sampling_settings_reach_the_engine(server, engine):
    given = {"temperature": 0.7, "top_k": 4, "top_p": 0.9, "typical_p": 0.8, "seed": 5}
    penalties = {"repetition_penalty": 1.5, "frequency_penalty": 0.5, "max_new_tokens": 7}
    generate(server, **given, **penalties)
    params = last(engine)[1]
    for name, value in (given | penalties).items():
        assert getattr(params, name.replace("max_new_tokens", "max_tokens")) == value


def test_variants_own_settings_do_not_count(tiny_tokenizer):
    engine = FakeEngine(says(tiny_tokenizer, TEXT))
    defaults = Defaults(temperature=0.3, top_k=7, top_p=0.4)
    with running_server(engine, tiny_tokenizer, defaults=defaults) as server:
        generate(server, do_sample=True)
    params = last(engine)[1]
    assert (params.temperature, params.top_k, params.top_p) == (1.0, None, 1.0)


def test_seed_that_was_drawn_is_told(server, engine):
    seed = generate(server, do_sample=True, details=True)["details"]["seed"]
    assert seed == last(engine)[1].seed
    assert 0 <= seed < 2**53
    assert generate(server, do_sample=True, details=True, seed=3)["details"]["seed"] == 3


@pytest.mark.parametrize("name", ["stop", "stop_sequences"])
def test_stop_string_ends_the_text_and_stays(server, name):
    answer = generate(server, details=True, **{name: ["two"]})
    assert answer["generated_text"] == "one two"
    assert answer["details"]["finish_reason"] == "stop_sequence"
    assert "".join(token["text"] for token in answer["details"]["tokens"]) == "one two"


def test_stop_string_within_a_token_cuts_its_text(server):
    answer = generate(server, details=True, stop=["ne t"])
    assert answer["generated_text"] == "one t"
    streamed = events(post(server, "/generate_stream", parameters={"stop": ["w"]}))
    assert streamed[-1]["generated_text"] == "one tw"
    assert "".join(event["token"]["text"] for event in streamed) == "one tw"


def test_best_of_returns_the_likeliest_and_tells_the_others(tiny_tokenizer):
    def likelier_with_its_seed(token_id: int, params: SamplingParams) -> TokenLogprobs:
        return TokenLogprobs(-1.0 / (1 + params.seed), ())

    engine = FakeEngine(says(tiny_tokenizer, TEXT), logprobs=likelier_with_its_seed)
    with running_server(engine, tiny_tokenizer) as server:
        answer = generate(server, best_of=3, do_sample=True, seed=4, details=True)
        assert "details" not in generate(server, best_of=2, do_sample=True)
    details = answer["details"]
    assert details["seed"] == 6
    assert [one["seed"] for one in details["best_of_sequences"]] == [4, 5]
    assert [one["generated_text"] for one in details["best_of_sequences"]] == [TEXT] * 2


def test_details_are_told_only_where_asked_for(server):
    assert "details" not in generate(server, details=False)
    details = generate(server, details=True)["details"]
    assert details["prefill"] == []
    assert details.keys() == {"finish_reason", "generated_tokens", "seed", "prefill", "tokens"}
    assert generate(server, decoder_input_details=True)["details"]["prefill"]


def test_top_n_tokens_are_the_likeliest_at_each_place(server):
    tops = generate(server, details=True, top_n_tokens=2)["details"]["top_tokens"]
    assert [[token["id"] for token in top] for top in tops] == [[10, 11]] * len(tops)
    assert tops[0][0]["logprob"] == -5.0


def test_full_text_begins_with_the_prompt(server):
    assert generate(server, return_full_text=True)["generated_text"] == "Hi" + TEXT
    streamed = events(post(server, "/generate_stream", parameters={"return_full_text": True}))
    assert streamed[-1]["generated_text"] == "Hi" + TEXT
    assert streamed[0]["token"]["text"] == "on"


def test_truncate_keeps_bos_and_the_last_tokens(server, engine, tiny_tokenizer):
    post(server, inputs="abcdefgh", parameters={"truncate": 3})
    ids = tiny_tokenizer("abcdefgh").input_ids
    assert last(engine)[0] == [ids[0], *ids[-2:]]


def test_special_pieces_typed_in_the_prompt_are_parsed(server, engine):
    post(server, inputs="<s>a<|im_end|>")
    prompt = last(engine)[0]
    assert prompt.count(0) == 1
    assert prompt[-1] == TURN_END


def test_null_and_neutral_values_say_nothing(server, engine):
    names = ("stop", "seed", "best_of", "grammar", "watermark", "adapter_id", "truncate", "top_k")
    response = post(server, parameters=dict.fromkeys(names), stream=False)
    assert response.status_code == 200
    assert "x-ignored-params" not in response.headers
    assert post(server, parameters=None).status_code == 200
    assert post(server, parameters={"watermark": False, "stop": []}).status_code == 200
    assert post(server, parameters={"seed": -1, "stop": [""]}).status_code == 200


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"watermark": True}, "watermark"),
        ({"grammar": {"type": "bnf", "value": "a"}}, "grammar.type"),
        ({"grammar": {"type": "regex"}}, "grammar.value"),
        ({"grammar": {"type": "regex", "value": {}}}, "grammar"),
        ({"grammar": {"type": "json", "value": "{"}}, "grammar"),
        ({"grammar": {"type": "json", "value": ""}}, "grammar"),
        ({"grammar": {"type": "json", "value": {"type": "dog"}}}, "grammar"),
        ({"adapter_id": "a"}, "adapter_id"),
        ({"best_of": 2}, "best_of"),
        ({"best_of": 100, "do_sample": True}, "best_of"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 5000}, "max_new_tokens"),
        ({"max_new_tokens": 1.5}, "max_new_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"typical_p": 0}, "typical_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"frequency_penalty": 3}, "frequency_penalty"),
        ({"seed": -2}, "seed"),
        ({"top_n_tokens": 21}, "top_n_tokens"),
        ({"truncate": 0}, "truncate"),
        ({"stop": ["a"], "stop_sequences": ["b"]}, "stop and stop_sequences"),
        ({"stop": [1]}, "stop"),
    ],
)
def test_wrong_parameters_are_named(server, parameters, name):
    response = post(server, parameters=parameters)
    assert response.status_code == 422
    assert response.json()["error_type"] == "validation"
    assert name in response.json()["error"]


@pytest.mark.parametrize(
    "parameters", [{"best_of": 2, "do_sample": True}, {"decoder_input_details": True}]
)
def test_what_cannot_be_streamed_is_refused(server, parameters):
    response = post(server, "/generate_stream", parameters=parameters)
    assert response.status_code == 422
    assert "cannot be streamed" in response.json()["error"]


@pytest.mark.parametrize(
    ("path", "given", "is_named"),
    [
        ("/generate", True, True),
        ("/generate", False, False),
        ("/generate_stream", True, False),
        ("/generate_stream", False, False),
    ],
)
def test_stream_is_named_where_it_has_no_effect(server, path, given, is_named):
    response = post(server, path, stream=given)
    assert (response.headers.get("x-ignored-params") == "stream") is is_named
    is_stream = response.headers["content-type"].startswith("text/event-stream")
    assert is_stream is (path == "/generate_stream")


def test_unknown_parameters_are_named(server):
    response = post(server, parameters={"num_beams": 4}, options={"wait_for_model": True})
    assert response.headers["x-ignored-params"] == "options, parameters.num_beams"


def test_model_may_be_named(server):
    assert post(server, model=MODEL).status_code == 200
    response = post(server, model="other")
    assert (response.status_code, response.json()["error_type"]) == (404, "model_not_found")


# ── errors ──────────────────────────────────────────────────────────────────────────────────────


def test_prompt_that_is_empty_or_too_long_is_refused(server):
    for inputs in ("", "a" * 1000):
        response = post(server, inputs=inputs)
        assert (response.status_code, response.json()["error_type"]) == (422, "validation")
    assert "maximum context length is 256 tokens" in response.json()["error"]


@pytest.mark.parametrize("path", ["/", "/generate", "/generate_stream", "/v1/generate"])
def test_errors_before_the_handler_have_the_same_shape(tiny_tokenizer, path):
    engine = FakeEngine(says(tiny_tokenizer, TEXT))
    with running_server(engine, tiny_tokenizer, key="secret", max_body_bytes=50) as server:
        url, key = server.url + path, {"x-api-key": "secret"}
        responses = [
            httpx.post(url, json={"inputs": "a"}),
            httpx.post(url, content=b"a", headers=key),
            httpx.post(url, json={"inputs": "a" * 100}, headers=key),
            httpx.get(url, headers=key),
            httpx.post(url, json=[], headers=key),
        ]
        server.lifecycle.begin_draining()
        responses.append(httpx.post(url, json={"inputs": "a"}, headers=key))
    assert [response.status_code for response in responses] == [401, 415, 413, 405, 422, 503]
    kinds = [response.json()["error_type"] for response in responses]
    assert kinds == ["invalid_api_key", *["validation"] * 4, "not_ready"]
    assert all(response.json().keys() == {"error", "error_type"} for response in responses)
    assert responses[0].headers["www-authenticate"] == "Bearer"
    assert int(responses[-1].headers["retry-after"]) > 0


@pytest.mark.parametrize(
    ("failure", "status", "kind"),
    [
        (NonFiniteLogitsError("not finite"), 424, "generation"),
        (QueueFullError("full", retry_after_s=2), 429, "overloaded"),
        (EngineDeadError("gone"), 503, "engine_dead"),
        (ZeroDivisionError("secret"), 500, "internal_error"),
    ],
)
def test_failures_have_their_statuses(tiny_tokenizer, failure, status, kind):
    engine = FakeEngine(says(tiny_tokenizer, TEXT), refusal=failure)
    with running_server(engine, tiny_tokenizer) as server:
        response = post(server)
    assert (response.status_code, response.json()["error_type"]) == (status, kind)
    assert "secret" not in response.text


def test_failure_on_the_way_ends_the_stream_with_an_error(tiny_tokenizer):
    failure = NonFiniteLogitsError("not finite")
    engine = FakeEngine(says(tiny_tokenizer, TEXT), fails_after=2, failure=failure)
    with running_server(engine, tiny_tokenizer) as server:
        *told, end = events(post(server, "/generate_stream"))
    assert [event["token"]["text"] for event in told] == ["on", "e"]
    assert end == {"error": "not finite", "error_type": "generation"}


def test_silence_in_a_stream_is_filled_with_comments(tiny_tokenizer):
    engine = FakeEngine(says(tiny_tokenizer, "ab"), delay_s=0.2)
    with running_server(engine, tiny_tokenizer, keep_alive_interval_s=0.05) as server:
        response = post(server, "/generate_stream")
        client = InferenceClient(server.url)
        text = "".join(client.text_generation("Hi", stream=True))
    assert ": keep-alive\ndata:" in response.text
    assert text == "ab</s>"
