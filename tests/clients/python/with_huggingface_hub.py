"""`huggingface_hub.InferenceClient` on the server's bare address, as AWQ cards show it."""

from __future__ import annotations

import asyncio

import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import HfHubHTTPError, ValidationError

PROMPT = "Colours of the rainbow: red,"
NUM_TOKENS = 6


@pytest.fixture(scope="module")
def client(server):
    return InferenceClient(server.url, api_key=server.key, timeout=60)


def test_chat_completion_streamed_and_not(client, question):
    asked = {"messages": question, "max_tokens": 30, "temperature": 0.0}
    answer = client.chat_completion(**asked)
    assert "Paris" in answer.choices[0].message.content
    assert answer.usage.completion_tokens > 1
    stream = client.chat_completion(**asked, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == answer.choices[0].message.content


def test_chat_completion_takes_openai_fields(client, question):
    answer = client.chat_completion(
        messages=question,
        max_tokens=4,
        temperature=0.0,
        frequency_penalty=0.5,
        presence_penalty=0.5,
        logprobs=True,
        top_logprobs=2,
        n=2,
        seed=1,
        stop=["\n"],
        top_p=0.9,
    )
    assert len(answer.choices) == 2
    assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 2


def test_chat_through_its_openai_names(client, server, question):
    answer = client.chat.completions.create(model=server.model, messages=question, max_tokens=2)
    assert answer.model == server.model


def test_text_generation_gives_text(client):
    text = client.text_generation(PROMPT, max_new_tokens=NUM_TOKENS)
    assert isinstance(text, str)
    assert text
    assert not text.startswith(PROMPT)
    whole = client.text_generation(PROMPT, max_new_tokens=NUM_TOKENS, return_full_text=True)
    assert whole == PROMPT + text  # greedy, as nothing asks for sampling


def test_text_generation_with_the_fields_of_a_card(client):
    text = client.text_generation(
        PROMPT,
        max_new_tokens=NUM_TOKENS,
        do_sample=True,
        temperature=0.7,
        top_p=0.95,
        top_k=40,
        repetition_penalty=1.1,
        seed=3,
    )
    assert text


def test_text_generation_tells_details(client):
    answer = client.text_generation(
        PROMPT, max_new_tokens=NUM_TOKENS, details=True, decoder_input_details=True, top_n_tokens=2
    )
    details = answer.details
    assert details.finish_reason == "length"
    assert details.generated_tokens == len(details.tokens) == NUM_TOKENS
    assert "".join(token.text for token in details.tokens) == answer.generated_text
    assert all(token.logprob <= 0 and not token.special for token in details.tokens)
    assert "".join(token.text for token in details.prefill) == PROMPT
    assert [len(top) for top in details.top_tokens] == [2] * NUM_TOKENS


def test_text_generation_ends_at_a_stop_string(client):
    answer = client.text_generation(PROMPT, max_new_tokens=40, stop=[","], details=True)
    assert answer.details.finish_reason == "stop_sequence"
    assert "," not in answer.generated_text.rstrip(",")


def test_text_generation_streams(client):
    whole = client.text_generation(PROMPT, max_new_tokens=NUM_TOKENS)
    pieces = list(client.text_generation(PROMPT, max_new_tokens=NUM_TOKENS, stream=True))
    assert "".join(pieces) == whole
    events = list(
        client.text_generation(PROMPT, max_new_tokens=NUM_TOKENS, stream=True, details=True)
    )
    assert [event.token.text for event in events] == pieces
    assert [event.generated_text for event in events] == [*[None] * (len(events) - 1), whole]
    assert events[-1].details.finish_reason == "length"
    assert events[-1].details.generated_tokens == NUM_TOKENS


def test_async_client_says_the_same(server, client):
    whole = client.text_generation(PROMPT, max_new_tokens=NUM_TOKENS)

    async def ask() -> tuple[str, str]:
        async with AsyncInferenceClient(server.url, api_key=server.key) as client:
            text = await client.text_generation(PROMPT, max_new_tokens=NUM_TOKENS)
            stream = await client.text_generation(PROMPT, max_new_tokens=NUM_TOKENS, stream=True)
            return text, "".join([piece async for piece in stream])

    assert asyncio.run(ask()) == (whole, whole)


@pytest.mark.parametrize("stream", [False, True])
def test_text_generation_raises_the_clients_own_errors(server, client, stream):
    with pytest.raises(ValidationError):
        list(client.text_generation(server.too_long, max_new_tokens=2, stream=stream))
    with pytest.raises(ValidationError):
        list(client.text_generation(PROMPT, top_p=2.0, max_new_tokens=2, stream=stream))


def test_wrong_key_is_refused(server, question):
    stranger = InferenceClient(server.url, api_key="sk-wrong")
    with pytest.raises(HfHubHTTPError) as caught:
        stranger.chat_completion(question, max_tokens=2)
    assert caught.value.response.status_code == 401
