"""`openai`, as its users call it: both classes, streams, log probabilities, errors."""

from __future__ import annotations

import asyncio
import re

import openai
import pytest

# Of the answer to the question: cut by length, so that each token is part of the text.
NUM_TOKENS = 5


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.base_url, api_key=server.key, max_retries=0) as client:
        yield client


@pytest.fixture
def asked(server, question):
    return {"model": server.model, "messages": question, "temperature": 0, "max_tokens": NUM_TOKENS}


@pytest.fixture
def prompted(server):
    return {
        "model": server.model,
        "prompt": "Colours of the rainbow: red,",
        "temperature": 0,
        "max_tokens": NUM_TOKENS,
    }


def ignored_fields(raw) -> set[str]:
    return set(re.split(r"[,\s]+", raw.headers.get("x-ignored-params", ""))) - {""}


# ── answers ─────────────────────────────────────────────────────────────────────────────────────


def test_chat_answers(client, asked):
    answer = client.chat.completions.create(**{**asked, "max_tokens": 40})
    (choice,) = answer.choices
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    assert "Paris" in choice.message.content
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0


def test_stream_and_the_async_client_say_the_same(server, client, asked):
    whole = client.chat.completions.create(**asked).choices[0].message.content
    streamed = list(client.chat.completions.create(**asked, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == whole
    assert streamed[0].choices[0].delta.role == "assistant"
    assert streamed[0].choices[0].delta.content == ""
    assert [chunk.choices[0].finish_reason for chunk in streamed[-2:]] == [None, "length"]
    assert len({(chunk.id, chunk.created) for chunk in streamed}) == 1

    async def ask() -> tuple[str, str]:
        async with openai.AsyncOpenAI(base_url=server.base_url, api_key=server.key) as client:
            answer = await client.chat.completions.create(**asked)
            stream = await client.chat.completions.create(**asked, stream=True)
            text = [chunk.choices[0].delta.content or "" async for chunk in stream]
            return answer.choices[0].message.content, "".join(text)

    assert asyncio.run(ask()) == (whole, whole)


def test_completion_and_its_stream(client, prompted):
    whole = client.completions.create(**prompted)
    assert whole.id.startswith("cmpl-")
    assert whole.usage.completion_tokens == NUM_TOKENS
    streamed = list(client.completions.create(**prompted, stream=True))
    assert "".join(chunk.choices[0].text for chunk in streamed) == whole.choices[0].text
    assert streamed[-1].choices[0].finish_reason == "length"


def test_several_prompts_as_texts_and_as_ids(client, prompted):
    answer = client.completions.create(**{**prompted, "prompt": ["One, two,", "A, B,"]})
    assert [choice.index for choice in answer.choices] == [0, 1]
    answer = client.completions.create(**{**prompted, "prompt": [[1, 2, 3], [4, 5]]})
    assert [choice.index for choice in answer.choices] == [0, 1]


def test_several_choices_streamed_and_not(client, asked):
    drawn = {**asked, "temperature": 1.5, "seed": 7, "n": 3}
    whole = client.chat.completions.create(**drawn)
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in whole.choices}) > 1
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(**drawn, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert all(texts)


def test_stop_string_ends_the_answer_and_is_no_part_of_it(client, asked):
    asked = {**asked, "max_tokens": 40, "stop": [" Paris", "\n\n\n"]}
    (choice,) = client.chat.completions.create(**asked).choices
    assert choice.finish_reason == "stop"
    assert choice.message.content.startswith("The capital")
    assert "Paris" not in choice.message.content
    streamed = client.chat.completions.create(**asked, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
    assert text == choice.message.content
    assert choice.stop_reason == " Paris"


def test_usage_comes_in_a_last_chunk_without_choices(client, asked, prompted):
    options = {"stream": True, "stream_options": {"include_usage": True}}
    for streamed in (
        list(client.chat.completions.create(**asked, **options)),
        list(client.completions.create(**prompted, **options)),
    ):
        assert streamed[-1].choices == []
        assert streamed[-1].usage.completion_tokens == NUM_TOKENS
        assert {chunk.usage for chunk in streamed[:-1]} == {None}


def test_a_stream_can_be_left_early(client, asked):
    with client.chat.completions.create(**{**asked, "max_tokens": 400}, stream=True) as stream:
        next(iter(stream))
    assert client.chat.completions.create(**asked).choices[0].message.content


def test_stream_helper_puts_the_answer_together(client, asked):
    asked = {**asked, "max_tokens": 40}  # it takes an answer cut by length for a failure
    with client.chat.completions.stream(**asked, logprobs=True, top_logprobs=2) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done", "logprobs.content.delta"} <= kinds
    whole = client.chat.completions.create(**asked)
    assert final.choices[0].message.content == whole.choices[0].message.content
    assert len(final.choices[0].logprobs.content) >= NUM_TOKENS


# ── log probabilities ───────────────────────────────────────────────────────────────────────────


def test_chat_logprobs_streamed_and_not(client, asked):
    asked = {**asked, "logprobs": True, "top_logprobs": 3}
    (choice,) = client.chat.completions.create(**asked).choices
    told = choice.logprobs.content
    assert b"".join(bytes(entry.bytes) for entry in told).decode() == choice.message.content
    assert len(told) == NUM_TOKENS
    for entry in told:
        assert entry.logprob <= 0
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].token == entry.token  # the greedy one leads
        best_first = [top.logprob for top in entry.top_logprobs]
        assert best_first == sorted(best_first, reverse=True)

    chunks = client.chat.completions.create(**asked, stream=True)
    streamed = [
        entry
        for chunk in chunks
        if chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content
    ]
    assert [entry.token for entry in streamed] == [entry.token for entry in told]
    assert [entry.logprob for entry in streamed] == pytest.approx(
        [entry.logprob for entry in told], abs=1e-3
    )


def test_completion_logprobs_streamed_and_not(client, prompted):
    prompted = {**prompted, "logprobs": 2}
    (choice,) = client.completions.create(**prompted).choices
    told = choice.logprobs
    assert "".join(told.tokens) == choice.text
    assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == NUM_TOKENS
    assert all(len(top) >= 2 for top in told.top_logprobs)
    streamed = collect_logprobs(client.completions.create(**prompted, stream=True))
    assert streamed == (told.tokens, told.text_offset)


def test_completion_logprobs_with_echo_tell_of_the_prompt(client, prompted):
    prompted = {**prompted, "logprobs": 1, "echo": True}
    (choice,) = client.completions.create(**prompted).choices
    told = choice.logprobs
    assert choice.text.startswith(prompted["prompt"])
    assert "".join(told.tokens) == choice.text
    assert told.token_logprobs[0] is None  # nothing comes before the first token
    assert all(logprob <= 0 for logprob in told.token_logprobs[1:])
    assert len(told.tokens) > NUM_TOKENS
    for token, offset in zip(told.tokens, told.text_offset, strict=True):
        assert choice.text[offset:].startswith(token)
    streamed = collect_logprobs(client.completions.create(**prompted, stream=True))
    assert streamed == (told.tokens, told.text_offset)


def collect_logprobs(stream) -> tuple[list[str], list[int]]:
    tokens, offsets = [], []
    for chunk in stream:
        if chunk.choices and chunk.choices[0].logprobs:
            tokens += chunk.choices[0].logprobs.tokens
            offsets += chunk.choices[0].logprobs.text_offset
    return tokens, offsets


# ── what is sent back, and what is sent beside ──────────────────────────────────────────────────


def test_message_is_taken_back_as_the_client_dumps_it(client, asked, question):
    answer = client.chat.completions.create(**asked)
    dialogue = [
        *question,
        answer.choices[0].message.model_dump(),
        {"role": "user", "content": "And of Italy?"},
    ]
    again = client.chat.completions.create(**{**asked, "messages": dialogue})
    assert again.choices[0].message.content
    assert again.usage.prompt_tokens > answer.usage.prompt_tokens
    dialogue[1] = answer.choices[0].message  # the object itself, which the client dumps its own way
    same = client.chat.completions.create(**{**asked, "messages": dialogue})
    assert same.choices[0].message.content == again.choices[0].message.content


def test_content_as_parts_and_the_developer_role(client, asked):
    messages = [
        {"role": "developer", "content": "Answer in English."},
        {"role": "user", "content": [{"type": "text", "text": "Say hello."}]},
    ]
    assert client.chat.completions.create(**{**asked, "messages": messages}).choices


def test_neutral_values_count_as_absent(client, asked):
    raw = client.chat.completions.with_raw_response.create(
        **asked,
        frequency_penalty=0,
        presence_penalty=0,
        logit_bias={},
        logprobs=False,
        n=1,
        response_format={"type": "text"},
        tools=[],
        top_p=1,
        user="",
        extra_body={"top_logprobs": None, "function_call": None, "stop": None, "seed": None},
    )
    assert ignored_fields(raw) == set()
    plain = client.chat.completions.create(**asked)
    assert raw.parse().choices[0].message.content == plain.choices[0].message.content


def test_fields_without_effect_are_taken_and_named(client, asked):
    fields = {
        "store": True,
        "metadata": {"session": "1"},
        "service_tier": "flex",
        "prompt_cache_key": "editor",
        "safety_identifier": "somebody",
        "verbosity": "low",
        "prediction": {"type": "content", "content": "Paris"},
        "made_up": 1,
    }
    raw = client.chat.completions.with_raw_response.create(**asked, extra_body=fields)
    assert raw.parse().choices
    assert ignored_fields(raw) == set(fields)


def test_bias_and_penalties_have_their_effect(client, prompted):
    raw = client.completions.create(**prompted, extra_body={"return_token_ids": True})
    (choice,) = raw.choices
    assert len(choice.token_ids) == NUM_TOKENS
    banned = {str(token_id): -100 for token_id in choice.token_ids}
    assert client.completions.create(**prompted, logit_bias=banned).choices[0].text != choice.text

    prompted = {**prompted, "prompt": "la la la la la la la la", "max_tokens": 12}
    same = client.completions.create(**prompted).choices[0].text
    other = client.completions.create(**prompted, frequency_penalty=2, presence_penalty=2)
    assert other.choices[0].text != same


def test_headers_tell_where_an_answer_came_from(client, asked):
    raw = client.chat.completions.with_raw_response.create(
        **asked, extra_headers={"x-request-id": "from-the-client"}
    )
    assert raw.headers["x-request-id"] == raw.request_id == "from-the-client"
    assert raw.headers["x-quantization"]
    assert raw.headers["x-kernel"]
    assert raw.headers["x-model-revision"]
    answer = raw.parse()
    assert answer._request_id == "from-the-client"
    assert answer.system_fingerprint.startswith("fp_")


def test_raw_stream_has_headers_too(client, asked):
    with client.chat.completions.with_streaming_response.create(**asked, stream=True) as raw:
        assert raw.headers["content-type"].startswith("text/event-stream")
        assert raw.headers["x-request-id"]
        assert list(raw.parse())


# ── models ──────────────────────────────────────────────────────────────────────────────────────


def test_models_are_listed_and_retrieved(server, client):
    (model,) = client.models.list()
    assert model.id == server.model
    assert client.models.retrieve(server.model).id == server.model
    assert model.max_model_len == server.max_model_len


def test_paths_work_without_v1(server, asked):
    with openai.OpenAI(base_url=server.url, api_key=server.key, max_retries=0) as client:
        assert client.models.list().data
        assert client.models.retrieve(server.model).id == server.model
        assert client.chat.completions.create(**asked).choices


def test_absent_model_is_the_one_that_is_served(client, asked):
    answer = client.chat.completions.create(**{**asked, "model": ""})
    assert answer.choices[0].message.content


# ── errors ──────────────────────────────────────────────────────────────────────────────────────


def test_wrong_key_is_an_authentication_error(server):
    stranger = openai.OpenAI(base_url=server.base_url, api_key="sk-wrong", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError) as caught:
        stranger.models.list()
    assert caught.value.code == "invalid_api_key"
    assert caught.value.response.headers["www-authenticate"]


def test_unknown_model_is_not_found_and_the_known_ones_are_named(server, client, asked):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(**{**asked, "model": "gpt-unknown"})
    assert caught.value.code == "model_not_found"
    assert caught.value.type == "invalid_request_error"
    assert server.model in caught.value.message
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-unknown")


def test_what_is_not_served_is_not_found(client, server):
    with pytest.raises(openai.NotFoundError) as caught:
        client.embeddings.create(model=server.model, input="text")
    assert "embeddings" in caught.value.message


def test_bad_value_is_a_bad_request_that_names_the_field(client, asked):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{**asked, "temperature": 5})
    assert caught.value.param == "temperature"
    assert caught.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(**{**asked, "temperature": "warm"})
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(**{**asked, "messages": []})


@pytest.mark.parametrize("stream", [False, True])
def test_too_long_prompt_is_a_bad_request_with_its_code(server, client, asked, prompted, stream):
    long = [{"role": "user", "content": server.too_long}]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{**asked, "messages": long}, stream=stream)
    assert caught.value.code == "context_length_exceeded"
    words = f"This model's maximum context length is {server.max_model_len} tokens"
    assert words in caught.value.message
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        client.completions.create(**{**prompted, "prompt": server.too_long}, stream=stream)


def test_full_queue_is_a_rate_limit_error(client, prompted):
    """Others' prompts wait, more than the server lets; once they have left, a retry is answered."""
    many = {**prompted, "prompt": ["One, two,"] * 24, "max_tokens": 40}
    with client.completions.create(**many, stream=True) as others:
        next(iter(others))
        with pytest.raises(openai.RateLimitError) as caught:
            client.completions.create(**prompted)
    assert int(caught.value.response.headers["retry-after"]) >= 1
    assert caught.value.code == "queue_full"
    assert client.with_options(max_retries=5).completions.create(**prompted).choices
