"""`openai`'s files and batches, beside requests that are answered at once."""

from __future__ import annotations

import io
import json
import time

import openai
import pytest

NUM_LINES = 12
LIMIT_S = 60


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.base_url, api_key=server.key, max_retries=0) as client:
        yield client


def line(number: int, model: str, **body: object) -> str:
    asked = {
        "model": model,
        "messages": [{"role": "user", "content": f"Say {number}."}],
        "max_tokens": 4,
        "temperature": 0,
        **body,
    }
    return json.dumps(
        {
            "custom_id": f"request {number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": asked,
        }
    )


@pytest.fixture
def file(client, server):
    lines = [line(number, server.model) for number in range(NUM_LINES)]
    lines[3] = line(3, server.model, temperature=9)
    content = "\n".join(lines).encode()
    file = client.files.create(file=("batch.jsonl", io.BytesIO(content)), purpose="batch")
    assert client.files.content(file.id).content == content
    yield file
    assert client.files.delete(file.id).deleted


def start(client, file, **how):
    return client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        **how,
    )


def until_over(client, batch):
    began = time.monotonic()
    while batch.status in ("validating", "in_progress", "finalizing", "cancelling"):
        assert time.monotonic() - began < LIMIT_S
        time.sleep(0.1)
        batch = client.batches.retrieve(batch.id)
    return batch


def results(client, file_id) -> dict[str, dict]:
    lines = client.files.content(file_id).text.splitlines()
    told = [json.loads(text) for text in lines]
    return {each["custom_id"]: each for each in told}


def test_a_batch_is_answered_beside_requests_that_do_not_wait(client, server, file):
    batch = start(client, file, metadata={"job": "nightly"})
    assert batch.object == "batch"
    asked = {"model": server.model, "messages": [{"role": "user", "content": "Hello!"}]}
    for _ in range(3):  # the queue is small, and the batch takes nothing of it
        assert client.chat.completions.create(**asked, max_tokens=4).choices
    batch = until_over(client, batch)
    assert batch.status == "completed"
    assert batch.metadata == {"job": "nightly"}
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (NUM_LINES, NUM_LINES - 1, 1)
    answers = results(client, batch.output_file_id)
    assert len(answers) == NUM_LINES - 1
    for answer in answers.values():
        assert answer["response"]["status_code"] == 200
        assert answer["response"]["body"]["choices"][0]["message"]["content"]
    (failed,) = results(client, batch.error_file_id).values()
    assert failed["custom_id"] == "request 3"
    assert failed["response"]["body"]["error"]["param"] == "temperature"
    assert batch.id in [each.id for each in client.batches.list(limit=2)]
    files = {each.id for each in client.files.list(purpose="batch_output")}
    assert {batch.output_file_id, batch.error_file_id} <= files


def test_a_batch_is_cancelled(client, server):
    lines = [line(number, server.model, max_tokens=200) for number in range(200)]
    file = client.files.create(file=("a.jsonl", "\n".join(lines).encode()), purpose="batch")
    batch = start(client, file)
    batch = client.batches.cancel(batch.id)
    assert batch.status in ("cancelling", "cancelled")
    assert until_over(client, batch).status == "cancelled"
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(batch.id)
    client.files.delete(file.id)


def test_faults_of_a_file_are_told_by_line(client):
    file = client.files.create(file=("a.jsonl", b"{}\nnonsense\n"), purpose="batch")
    batch = until_over(client, start(client, file))
    assert batch.status == "failed"
    assert [fault.line for fault in batch.errors.data] == [1, 2]


def test_what_there_is_not_is_not_found(client):
    for ask in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            ask("file-unknown")
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve("batch_unknown")


def test_files_for_anything_else_are_refused(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.files.create(file=("a.jsonl", b"{}"), purpose="fine-tune")
    assert caught.value.param == "purpose"


def test_the_async_client_and_large_files(server):
    import asyncio

    async def check() -> None:
        async with openai.AsyncOpenAI(base_url=server.base_url, api_key=server.key) as client:
            content = b'{"a": "' + b"x" * 3_000_000 + b'"}\n'
            file = await client.files.create(file=("big.jsonl", content * 2), purpose="batch")
            assert file.bytes == 2 * len(content)
            back = await client.files.content(file.id)
            assert back.content == content * 2
            await client.files.delete(file.id)

    asyncio.run(check())
