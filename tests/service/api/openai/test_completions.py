"""Completions over HTTP, as the official client sees them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import openai
import pytest

from service.api.openai import completions
from tests.service.fakes import MODEL, FakeEngine, running_server, says

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedTokenizerFast

TEXT = "one two three, Grüße 世界 🙂 four five six"


@pytest.fixture(scope="module")
def engine(tiny_tokenizer: PreTrainedTokenizerFast) -> FakeEngine:
    return FakeEngine(says(tiny_tokenizer, TEXT))


@pytest.fixture(scope="module")
def client(engine: FakeEngine, tiny_tokenizer: PreTrainedTokenizerFast) -> Iterator[openai.OpenAI]:
    with running_server(engine, tiny_tokenizer) as server, server.client() as made:
        yield made


def complete(client: openai.OpenAI, **fields: object) -> openai.types.Completion:
    return client.completions.create(
        **{"model": MODEL, "prompt": "hi", "max_tokens": 100, **fields}
    )


def streamed(client: openai.OpenAI, **fields: object) -> dict[int, str]:
    """Read a stream; return the text of each choice."""
    texts: dict[int, str] = {}
    for chunk in complete(client, stream=True, **fields):
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
    return texts


def test_whole_answer(client, engine):
    answer = complete(client)
    assert answer.id.startswith("cmpl-")
    assert answer.object == "text_completion"
    assert [choice.text for choice in answer.choices] == [TEXT]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens == len(engine.submitted[-1][0])


def test_stream_gives_the_same_text(client):
    assert streamed(client) == {0: TEXT}


def test_last_chunk_of_a_stream_has_the_reason(client):
    chunks = list(complete(client, stream=True, max_tokens=3))
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices[0].finish_reason == "length"
    assert {chunk.object for chunk in chunks} == {"text_completion"}


def test_prompt_gets_one_beginning_of_text(client, engine):
    complete(client, prompt="hi")
    assert engine.submitted[-1][0].count(0) == 1


def test_silent_max_tokens_is_sixteen(client, engine):
    client.completions.create(model=MODEL, prompt="hi")
    assert engine.submitted[-1][1].max_tokens == 16


def test_silent_max_tokens_shrinks_to_what_is_left(client, engine):
    client.completions.create(model=MODEL, prompt=[5] * 250)
    assert engine.submitted[-1][1].max_tokens == 6


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ([5, 6, 7], [[5, 6, 7]]),
        ([[5], [6, 7]], [[5], [6, 7]]),
    ],
)
def test_token_ids_are_taken_as_they_are(client, engine, prompt, expected):
    before = len(engine.submitted)
    complete(client, prompt=prompt)
    assert [ids for ids, _ in engine.submitted[before:]] == expected


def test_prompts_and_choices_multiply_in_order(tiny_tokenizer):
    """Each answer names its prompt and seed, so that its place can be checked."""

    def script(prompt_token_ids, params):
        word = tiny_tokenizer.decode(list(prompt_token_ids), skip_special_tokens=True)
        return tiny_tokenizer.encode(f"{word}+{params.seed}", add_special_tokens=False)

    with running_server(FakeEngine(script), tiny_tokenizer) as server:
        client = server.client()
        answer = complete(client, prompt=["a", "b"], n=2, seed=7)
        stream = streamed(client, prompt=["a", "b"], n=2, seed=7)
    texts = {choice.index: choice.text for choice in answer.choices}
    assert texts == stream == {0: "a+7", 1: "a+8", 2: "b+7", 3: "b+8"}


def test_a_prompt_counts_once_however_many_choices_it_has(client, engine):
    answer = complete(client, prompt=["abc", "de"], n=3)
    prompts = [ids for ids, _ in engine.submitted[-6:]]
    assert answer.usage.prompt_tokens == len(prompts[0]) + len(prompts[3])
    one = complete(client).usage.completion_tokens
    assert answer.usage.completion_tokens == 6 * one


@pytest.mark.parametrize("prompt", ["Grüße 🙂", [5, 6, 7]])
def test_echo_begins_each_answer_with_its_prompt(client, tiny_tokenizer, prompt):
    text = prompt if isinstance(prompt, str) else tiny_tokenizer.decode(prompt)
    answer = complete(client, prompt=prompt, echo=True, n=2)
    assert [choice.text for choice in answer.choices] == [text + TEXT] * 2
    assert streamed(client, prompt=prompt, echo=True, n=2) == {0: text + TEXT, 1: text + TEXT}


@pytest.mark.parametrize(
    ("stop", "left"),
    [
        (" three", "one two"),
        ("two three", "one "),  # crosses tokens
        ([" five", "e 世"], "one two three, Grüß"),  # crosses a character of several tokens
        ("🙂", "one two three, Grüße 世界 "),
        ("🙂 fo", "one two three, Grüße 世界 "),
        ("six", "one two three, Grüße 世界 🙂 four five "),
        ("o", ""),
        ("not in it", TEXT),
        ("six and more", TEXT),  # held back to the end, then sent
    ],
)
def test_stop_string_ends_the_text_and_never_shows(client, stop, left):
    answer = complete(client, stop=stop)
    assert answer.choices[0].text == left
    assert answer.choices[0].finish_reason == "stop"
    assert streamed(client, stop=stop) == {0: left}


def test_stop_string_aborts_the_sequence(tiny_tokenizer):
    engine = FakeEngine(says(tiny_tokenizer, "stop here " * 20))
    with running_server(engine, tiny_tokenizer) as server:
        answer = complete(server.client(), stop="here", max_tokens=200)
    assert answer.choices[0].text == "stop "
    assert engine.num_aborted == 1
    assert answer.usage.completion_tokens == engine.num_tokens < 20


def test_leading_space_is_kept(tiny_tokenizer):
    engine = FakeEngine(says(tiny_tokenizer, " world"))
    with running_server(engine, tiny_tokenizer) as server:
        assert complete(server.client(), prompt="Hello").choices[0].text == " world"


def test_broken_bytes_become_one_mark_not_an_error(tiny_tokenizer):
    half = tiny_tokenizer.encode("世", add_special_tokens=False)[:-1]
    engine = FakeEngine(lambda prompt, params: half)
    with running_server(engine, tiny_tokenizer) as server:
        client = server.client()
        assert complete(client).choices[0].text == "\ufffd"
        assert streamed(client) == {0: "\ufffd"}


@pytest.fixture
def decoded(monkeypatch) -> list[tuple[int, str]]:
    """How many ids were decoded to be echoed, and in which thread."""
    seen: list[tuple[int, str]] = []

    def decode(backend, token_ids, **options):
        seen.append((len(token_ids), threading.current_thread().name))
        return "text"

    monkeypatch.setattr(completions, "decode_whole", decode)
    return seen


def test_ids_without_room_are_refused_before_their_echo_is_made(client, decoded):
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        complete(client, prompt=[5] * 10_000, echo=True, max_tokens=1)
    assert decoded == []


def test_echo_of_ids_is_made_beside_the_event_loop(client, decoded):
    answer = complete(client, prompt=[[5] * 7, [5] * 9], echo=True, max_tokens=1)
    assert [choice.text[:4] for choice in answer.choices] == ["text"] * 2
    assert [num_ids for num_ids, _ in decoded] == [7, 9]
    assert all(name.startswith("short-text") for _, name in decoded)
