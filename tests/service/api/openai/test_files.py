"""/v1/files: what is taken, what is refused, and that nothing is found by a name."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import update
from sqlalchemy.exc import OperationalError

from service.batches.tables import files
from tests.service.kept_batches import batching, jsonl, line

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.types import Message

CONTENT = jsonl(line("a"))


def names_in(folder: Path) -> list[str]:
    return [path.name for path in (folder / "files").iterdir()]


def test_a_file_is_kept_described_listed_given_back_and_deleted(tmp_path):
    async def check() -> None:
        async with batching(tmp_path) as client:
            answer = await client.upload(CONTENT, name="../../etc/passwd")
            file = answer.json()
            assert answer.status_code == 200
            assert (file["object"], file["filename"], file["purpose"]) == (
                "file",
                "passwd",
                "batch",
            )
            assert file["bytes"] == len(CONTENT)
            assert abs(file["created_at"] - time.time()) < 60
            assert names_in(tmp_path) == [file["id"]]

            assert (await client.http.get(f"/v1/files/{file['id']}")).json() == file
            listed = (await client.http.get("/v1/files")).json()
            assert (listed["data"], listed["has_more"]) == ([file], False)
            content = await client.http.get(f"/v1/files/{file['id']}/content")
            assert content.content == CONTENT
            assert content.headers["x-content-type-options"] == "nosniff"

            deleted = await client.http.delete(f"/v1/files/{file['id']}")
            assert deleted.json() == {"id": file["id"], "object": "file", "deleted": True}
            assert names_in(tmp_path) == []
            for ask in ("", "/content"):
                gone = await client.http.get(f"/v1/files/{file['id']}{ask}")
                assert (gone.status_code, gone.json()["error"]["code"]) == (404, "not_found")

    asyncio.run(check())


def test_paths_work_without_v1(tmp_path):
    async def check() -> None:
        async with batching(tmp_path) as client:
            answer = await client.http.post(
                "/files", files={"file": ("a", CONTENT)}, data={"purpose": "batch"}
            )
            assert (await client.http.get(f"/files/{answer.json()['id']}")).status_code == 200

    asyncio.run(check())


def test_a_list_is_read_page_by_page(tmp_path):
    async def check() -> None:
        async with batching(tmp_path) as client:
            ids = [await client.upload_id(CONTENT) for _ in range(5)]
            seen: list[str] = []
            after = ""
            while True:
                query = f"/v1/files?limit=2{after}"
                page = (await client.http.get(query)).json()
                seen += [file["id"] for file in page["data"]]
                assert (page["first_id"], page["last_id"]) == (
                    seen[len(seen) - len(page["data"])],
                    seen[-1],
                )
                if not page["has_more"]:
                    break
                after = f"&after={page['last_id']}"
            assert seen == ids[::-1]
            unknown = await client.http.get("/v1/files?after=file-0")
            assert (unknown.status_code, unknown.json()["error"]["param"]) == (404, "after")

    asyncio.run(check())


@pytest.mark.parametrize(
    "name",
    ["..", "%2e%2e%2fbatches.sqlite", "batches.sqlite", "a.jsonl", "x" * 3000, "%00", "file-"],
)
def test_nothing_is_found_by_a_name(tmp_path, name):
    async def check() -> None:
        async with batching(tmp_path) as client:
            await client.upload(CONTENT, name="a.jsonl")
            for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
                answer = await client.http.request(method, f"/v1/files/{name}{path}")
                assert answer.status_code in (404, 405), answer.text
            assert len(names_in(tmp_path)) == 1

    asyncio.run(check())


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"purpose": "fine-tune"}, "purpose"),
        ({"purpose": ""}, "purpose"),
        ({"expires_after[anchor]": "created_at"}, "expires_after[seconds]"),
        ({"expires_after[seconds]": "3600"}, "expires_after[anchor]"),
        (
            {"expires_after[anchor]": "created_at", "expires_after[seconds]": "1"},
            "expires_after[seconds]",
        ),
        (
            {"expires_after[anchor]": "created_at", "expires_after[seconds]": "9" * 4000},
            "expires_after[seconds]",
        ),
    ],
)
def test_fields_that_are_wrong_are_named_and_nothing_is_kept(tmp_path, fields, param):
    async def check() -> None:
        async with batching(tmp_path) as client:
            answer = await client.upload(CONTENT, **fields)
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
            assert names_in(tmp_path) == []

    asyncio.run(check())


def test_a_form_without_a_file_or_a_purpose_is_refused(tmp_path):
    async def check() -> None:
        async with batching(tmp_path) as client:
            without_purpose = await client.http.post("/v1/files", files={"file": ("a", CONTENT)})
            without_file = await client.http.post(
                "/v1/files", files={"other": ("a", b"x")}, data={"purpose": "batch"}
            )
            for answer, param in ((without_purpose, "purpose"), (without_file, "file")):
                assert answer.status_code == 400
                assert answer.json()["error"]["param"] == param
            assert names_in(tmp_path) == []

    asyncio.run(check())


def test_fields_without_effect_are_named(tmp_path):
    async def check() -> None:
        async with batching(tmp_path) as client:
            answer = await client.upload(CONTENT, made_up="1")
            assert answer.status_code == 200
            assert answer.headers["x-ignored-params"] == "made_up"

    asyncio.run(check())


def test_a_file_may_expire(tmp_path):
    async def check() -> None:
        async with batching(tmp_path) as client:
            lasts = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
            file = (await client.upload(CONTENT, **lasts)).json()
            assert file["expires_at"] == file["created_at"] + 3600

    asyncio.run(check())


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("application/json", b"{}", 415),
        ("text/plain", b"x", 415),
        ("multipart/form-data", b"x", 400),
        ("multipart/form-data; boundary=" + "x" * 500, b"x", 400),
        ("multipart/form-data; boundary=abc", b"", 400),
        ("multipart/form-data; boundary=abc", b"nonsense", 400),
        ("multipart/form-data; boundary=abc", b"--abc\r\nContent-Disp", 400),
        ("multipart/form-data; boundary=abc", b"--abc\r\n" + b"x: " + b"y" * 50_000, 400),
    ],
)
def test_what_is_no_form_is_refused_in_words(tmp_path, content_type, body, status):
    async def check() -> None:
        async with batching(tmp_path, key="sk-key") as client:
            answer = await client.http.post(
                "/v1/files", content=body, headers={"content-type": content_type}
            )
            assert answer.status_code == status, answer.text
            assert answer.json()["error"]["message"]
            assert names_in(tmp_path) == []

    asyncio.run(check())


def test_a_file_that_is_too_large_is_refused_and_leaves_nothing(tmp_path):
    async def check() -> None:
        async with batching(tmp_path, max_file_bytes=1000) as client:
            assert (await client.upload(b"x" * 1000)).status_code == 200
            for size in (1001, 200_000):
                answer = await client.upload(b"x" * size)
                assert answer.status_code == 413
                assert answer.json()["error"]["code"] == "body_too_large"
            assert len(names_in(tmp_path)) == 1

    asyncio.run(check())


def test_an_upload_that_is_broken_off_leaves_nothing(tmp_path):
    head = b'--abc\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    messages = [
        {"type": "http.request", "body": head + b"x" * 5000, "more_body": True},
        {"type": "http.disconnect"},
    ]
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": "/v1/files",
        "query_string": b"",
        "headers": [
            (b"host", b"localhost"),
            (b"content-type", b"multipart/form-data; boundary=abc"),
        ],
        "state": {},
    }
    sent: list[Message] = []

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    async def check() -> None:
        async with batching(tmp_path) as client:
            await client.app(scope, receive, send)
            assert sent == []  # nobody is there to be told
            assert (await client.upload(CONTENT)).status_code == 200
            assert len(names_in(tmp_path)) == 1

    asyncio.run(check())


def test_methods_that_a_path_takes_are_all_named(tmp_path):
    async def check() -> None:
        async with batching(tmp_path) as client:
            answer = await client.http.put("/v1/files")
            assert answer.status_code == 405
            assert answer.headers["allow"] == "GET, HEAD, POST"

    asyncio.run(check())


def test_an_expired_file_is_gone_at_once(tmp_path):
    async def check() -> None:
        async with batching(tmp_path) as client:
            lasts = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
            file = (await client.upload(CONTENT, **lasts)).json()
            path = f"/v1/files/{file['id']}"
            assert (await client.http.get(path)).status_code == 200
            assert client.keeper._opened is not None
            with client.keeper._opened.database.begin() as connection:
                connection.execute(update(files).values(expires_at=int(time.time())))
            for method, each in (("GET", path), ("GET", f"{path}/content"), ("DELETE", path)):
                answer = await client.http.request(method, each)
                assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
            assert (await client.http.get("/v1/files")).json()["data"] == []

    asyncio.run(check())


def test_whose_files_take_all_of_a_callers_room_is_told_what_to_do(tmp_path):
    async def check() -> None:
        async with batching(tmp_path, max_files_bytes_per_caller=len(CONTENT)) as client:
            await client.upload_id(CONTENT)
            error = (await client.upload(CONTENT)).json()["error"]
            assert "max_files_size_per_caller" in error["message"]
            assert "delete some" in error["message"]

    asyncio.run(check())


def test_a_fault_of_the_disk_is_told_as_such(tmp_path):
    async def check() -> None:
        async with batching(tmp_path) as client:
            file_id = await client.upload_id(CONTENT)
            assert client.keeper._opened is not None
            client.keeper._opened.files.find = full  # type: ignore[method-assign]
            for each in ("", "/content"):
                answer = await client.http.get(f"/v1/files/{file_id}{each}")
                error = answer.json()["error"]
                assert (answer.status_code, error["code"]) == (507, "storage_failed")
                assert "disk I/O error" in error["message"]
                assert "SELECT" not in error["message"]

    asyncio.run(check())


def full(*_: object) -> None:
    raise OperationalError("SELECT secret", {}, Exception("disk I/O error"))
