"""The field `suffix` of /v1/completions: the answer is what stands between."""

from __future__ import annotations

from typing import TYPE_CHECKING

import openai
import pytest

from engine.outputs import TokenLogprobs
from tests.service.fakes import (
    MODEL,
    FakeEngine,
    gap_infilling,
    gap_tokenizer,
    running_server,
    says,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

TEXT = "return x and y and z"


@pytest.fixture(scope="module")
def tokenizer():
    return gap_tokenizer()


@pytest.fixture(scope="module")
def engine(tokenizer) -> FakeEngine:
    return FakeEngine(
        says(tokenizer, TEXT),
        logprobs=lambda token_id, params: TokenLogprobs(-0.5, ((token_id, -0.5),)),
    )


@pytest.fixture(scope="module")
def client(engine, tokenizer) -> Iterator[openai.OpenAI]:
    with (
        running_server(engine, tokenizer, infilling=gap_infilling(tokenizer)) as server,
        server.client() as made,
    ):
        yield made


def fill(client: openai.OpenAI, **fields: object) -> openai.types.Completion:
    return client.completions.create(
        **{"model": MODEL, "prompt": "ab", "suffix": "cd", "max_tokens": 64, **fields}
    )


def prompts(engine: FakeEngine, tokenizer, count: int = 1) -> list[str]:
    backend = tokenizer.backend_tokenizer
    ids = [prompt for prompt, _ in engine.submitted[-count:]]
    return [backend.decode(each, skip_special_tokens=False) for each in ids]


def test_prompt_is_the_prefix_of_a_gap(client, engine, tokenizer):
    answer = fill(client)
    assert answer.object == "text_completion"
    assert answer.choices[0].text == TEXT
    assert prompts(engine, tokenizer) == ["<s><fim_prefix>ab<fim_suffix>cd<fim_middle>"]


def test_no_suffix_is_no_gap(client, engine, tokenizer):
    for suffix in ("", None):
        fill(client, suffix=suffix)
        assert prompts(engine, tokenizer) == ["<s>ab"]


def test_each_of_several_prompts_gets_the_same_suffix(client, engine, tokenizer):
    assert len(fill(client, prompt=["a", "b"]).choices) == 2
    assert prompts(engine, tokenizer, 2) == [
        "<s><fim_prefix>a<fim_suffix>cd<fim_middle>",
        "<s><fim_prefix>b<fim_suffix>cd<fim_middle>",
    ]


def test_stream_gives_the_same_text(client):
    chunks = fill(client, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == TEXT


def test_echo_begins_with_the_prefix_alone(client):
    assert fill(client, echo=True).choices[0].text == "ab" + TEXT


def test_silent_max_tokens_is_sixteen(client, engine):
    client.completions.create(model=MODEL, prompt="ab", suffix="cd")
    assert engine.submitted[-1][1].max_tokens == 16


def test_logprobs_tell_the_answer_s_tokens(client):
    told = fill(client, logprobs=1, max_tokens=2).choices[0].logprobs
    assert told.tokens == ["r", "e"]
    assert told.text_offset == [0, 1]


def test_what_has_no_room_is_cut_and_summed_in_a_header(client, engine):
    prompt = ["a" * 300, "a" * 400]
    raw = client.completions.with_raw_response.create(
        model=MODEL, prompt=prompt, suffix="cd", max_tokens=6
    )
    assert [len(ids) for ids, _ in engine.submitted[-2:]] == [250, 250]
    assert raw.headers["x-truncated-prompt"] == f"prefix={(300 - 244) + (400 - 244)}"


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"prompt": [5, 6]}, "as text"),
        ({"prompt": [[5], [6]]}, "as text"),
        ({"extra_body": {"add_special_tokens": False}}, "add_special_tokens"),
        ({"echo": True, "logprobs": 1}, "echo has no logprobs"),
        ({"extra_body": {"truncate_prompt_tokens": 0}}, "truncate_prompt_tokens"),
        ({"max_tokens": 256}, "context length"),
        ({"extra_body": {"truncate_prompt_tokens": 3}}, "no room"),
    ],
)
def test_what_a_gap_cannot_have_is_refused(client, fields, word):
    with pytest.raises(openai.BadRequestError, match=word):
        fill(client, **fields)


def test_variant_that_cannot_says_why(tokenizer):
    server = running_server(FakeEngine(says(tokenizer, "x")), tokenizer)
    with server as running, running.client() as client:
        assert fill(client, suffix=None).choices[0].text == "x"
        with pytest.raises(openai.BadRequestError, match="no pieces that mark a gap") as refused:
            fill(client)
    assert refused.value.code == "infilling_not_supported"
