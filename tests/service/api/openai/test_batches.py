"""/v1/batches, from the file to the results."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.service.fakes import ByteTokenizer, FakeEngine, says
from tests.service.kept_batches import batching, jsonl, line


def test_requests_are_answered_and_their_results_are_lines(tmp_path):
    async def check() -> None:
        async with batching(tmp_path) as client:
            content = jsonl(
                line("good"), line("bad", temperature=9), {**line("odd", made_up=1), "priority": 3}
            )
            batch = await client.run(content, metadata={"job": "nightly"})
            assert (batch["object"], batch["status"]) == ("batch", "completed")
            assert batch["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
            assert batch["metadata"] == {"job": "nightly"}
            assert batch["errors"] is None
            good, odd = await client.results(batch["output_file_id"])
            assert (good["custom_id"], good["response"]["status_code"]) == ("good", 200)
            assert good["response"]["body"]["choices"][0]["text"] == "yes"
            assert odd["response"]["ignored_params"] == "made_up, line.priority"
            (bad,) = await client.results(batch["error_file_id"])
            assert bad["response"]["status_code"] == 400
            assert bad["response"]["body"]["error"]["param"] == "temperature"
            listed = (await client.http.get("/v1/batches")).json()
            assert [each["id"] for each in listed["data"]] == [batch["id"]]

    asyncio.run(check())


def test_requests_of_a_batch_run_in_the_background(tmp_path):
    async def check() -> None:
        async with batching(tmp_path) as client:
            await client.run(jsonl(line("a")))
            await client.http.post("/v1/completions", json={"prompt": "hi", "max_tokens": 2})
            assert [terms.is_background for terms in client.engine.terms] == [True, False]

    asyncio.run(check())


def test_a_file_with_faults_fails_its_batch_and_names_the_lines(tmp_path):
    async def check() -> None:
        async with batching(tmp_path) as client:
            batch = await client.run(jsonl(line("a"), line("a"), line("b", url="/v1/files")))
            assert batch["status"] == "failed"
            faults = batch["errors"]["data"]
            assert [(fault["line"], fault["code"]) for fault in faults] == [
                (2, "duplicate_custom_id"),
                (3, "mismatched_url"),
            ]
            assert batch["output_file_id"] is batch["error_file_id"] is None
            assert client.engine.submitted == []

    asyncio.run(check())


def test_a_batch_is_cancelled_and_keeps_what_was_answered(tmp_path):
    async def check() -> None:
        slow = FakeEngine(says(ByteTokenizer(), "yes"), delay_s=0.05)
        async with batching(tmp_path, engine=slow, max_at_once=1) as client:
            content = jsonl(*(line(str(number)) for number in range(50)))
            batch = (await client.create(await client.upload_id(content))).json()
            while not (now := (await client.http.get(f"/v1/batches/{batch['id']}")).json())[
                "request_counts"
            ]["completed"]:
                await asyncio.sleep(0.01)
            assert now["status"] == "in_progress"
            cancelled = await client.cancel(batch["id"])
            assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelling")
            done = await client.until_over(batch["id"])
            assert done["status"] == "cancelled"
            output = await client.results(done["output_file_id"])
            errors = await client.results(done["error_file_id"])
            assert output
            assert {each["error"]["code"] for each in errors} == {"batch_cancelled"}
            told = sorted(int(each["custom_id"]) for each in output + errors)
            assert told == list(range(50))
            assert slow.running == set()
            again = await client.cancel(batch["id"])
            assert (again.status_code, again.json()["error"]["code"]) == (409, "conflict")

    asyncio.run(check())


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"input_file_id": "file-0"}, 404, "input_file_id"),
        ({"input_file_id": "../x"}, 404, "input_file_id"),
        ({"input_file_id": ""}, 400, "input_file_id"),
        ({"input_file_id": 5}, 400, "input_file_id"),
        ({"endpoint": "/v1/embeddings"}, 400, "endpoint"),
        ({"endpoint": "/admin/models"}, 400, "endpoint"),
        ({"endpoint": "/v1/files"}, 400, "endpoint"),
        ({"completion_window": "0h"}, 400, "completion_window"),
        ({"completion_window": "15d"}, 400, "completion_window"),
        ({"completion_window": "soon"}, 400, "completion_window"),
        ({"completion_window": "²4h"}, 400, "completion_window"),
        ({"completion_window": "24 hours"}, 400, "completion_window"),
        ({"completion_window": "24h\n"}, 400, "completion_window"),
        ({"completion_window": "9" * 5000 + "h"}, 400, "completion_window"),
        ({"completion_window": 24}, 400, "completion_window"),
        ({"metadata": {str(number): "x" for number in range(17)}}, 400, "metadata"),
        ({"metadata": {"a": "x" * 513}}, 400, "metadata.a"),
        ({"metadata": {"a": 5}}, 400, "metadata.a"),
        ({"output_expires_after": {"anchor": "now", "seconds": 3600}}, 400, None),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, 400, None),
    ],
)
def test_what_is_wrong_with_a_batch_is_named(tmp_path, fields, status, param):
    async def check() -> None:
        async with batching(tmp_path) as client:
            file_id = await client.upload_id(jsonl(line("a")))
            answer = await client.create(file_id, **fields)
            assert answer.status_code == status, answer.text
            if param is not None:
                assert answer.json()["error"]["param"].startswith(param.partition(".")[0])
            assert (await client.http.get("/v1/batches")).json()["data"] == []

    asyncio.run(check())


def test_a_window_is_asked_for_in_words(tmp_path):
    async def check() -> None:
        async with batching(tmp_path) as client:
            answer = await client.create("file-0", completion_window="24 hours")
            assert "give a time as 24h or 7d" in answer.json()["error"]["message"]

    asyncio.run(check())


@pytest.mark.parametrize("policy", ["strict", "ignore"])
def test_what_means_nothing_in_a_line_is_dealt_with_by_the_policy(tmp_path, policy):
    async def check() -> None:
        async with batching(tmp_path, unknown_fields=policy) as client:
            batch = await client.run(jsonl({**line("a"), "priority": 3}))
            if policy == "strict":
                (fault,) = batch["errors"]["data"]
                assert (fault["code"], fault["line"]) == ("unknown_parameter", 1)
            else:
                (result,) = await client.results(batch["output_file_id"])
                assert "ignored_params" not in result["response"]

    asyncio.run(check())


def test_fields_without_effect_are_named(tmp_path):
    async def check() -> None:
        async with batching(tmp_path) as client:
            answer = await client.create(await client.upload_id(jsonl(line("a"))), made_up=1)
            assert (answer.status_code, answer.headers["x-ignored-params"]) == (200, "made_up")

    asyncio.run(check())


def test_a_batchs_output_is_no_batchs_input(tmp_path):
    async def check() -> None:
        async with batching(tmp_path) as client:
            batch = await client.run(jsonl(line("a")))
            answer = await client.create(batch["output_file_id"])
            assert answer.status_code == 409

    asyncio.run(check())


def test_batches_that_there_are_not_are_not_found(tmp_path):
    async def check() -> None:
        async with batching(tmp_path) as client:
            for method, path in (("GET", "batch_0"), ("POST", "batch_0/cancel"), ("GET", "..%2fx")):
                answer = await client.http.request(
                    method, f"/v1/batches/{path}", headers={"content-type": "application/json"}
                )
                assert answer.status_code == 404, answer.text
            page = await client.http.get("/v1/batches?after=batch_0")
            assert (page.status_code, page.json()["error"]["param"]) == (404, "after")

    asyncio.run(check())


@pytest.mark.parametrize(("body", "status"), [(b"", 404), (b"{}", 404), (b'{"a": 1}', 400)])
def test_a_body_where_none_is_of_use_is_refused(tmp_path, body, status):
    async def check() -> None:
        async with batching(tmp_path) as client:
            answer = await client.http.post(
                "/v1/batches/batch_0/cancel",
                content=body,
                headers={"content-type": "application/json"},
            )
            assert answer.status_code == status, answer.text

    asyncio.run(check())


def test_output_survives_a_restart(tmp_path):
    async def check() -> None:
        async with batching(tmp_path) as client:
            batch = await client.run(jsonl(line("a")))
        async with batching(tmp_path) as client:
            assert (await client.http.get(f"/v1/batches/{batch['id']}")).json() == batch
            (result,) = await client.results(batch["output_file_id"])
            assert json.dumps(result["response"]["body"])

    asyncio.run(check())
