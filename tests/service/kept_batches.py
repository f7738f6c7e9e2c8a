"""A server in this process that keeps files and batches, asked without a socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

import httpx2 as httpx
from sqlalchemy import text

from service.api.application import create_app
from service.api.inner_calls import InnerCalls
from service.batches.keeper import BatchKeeper, KeeperLimits
from service.batches.runner import RunLimits
from service.server.lifecycle import Lifecycle
from service.team.keys import ApiKeys
from tests.service.fakes import (
    ByteTokenizer,
    FakeEngine,
    FakeModels,
    api_context,
    says,
    served_model,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sqlalchemy import Engine
    from starlette.types import ASGIApp

COMPLETIONS = "/v1/completions"


def limits(**changes: Any) -> KeeperLimits:
    own = {"max_at_once": 4, "max_lines": 100, "max_body_bytes": 10_000, "unknown_fields": "warn"}
    own |= {name: changes.pop(name) for name in list(changes) if name in own}
    sizes = {
        "max_file_bytes": 100_000,
        "max_files_bytes": 1_000_000,
        "max_files_bytes_per_caller": 1_000_000,
        "max_open_batches": 4,
        "max_open_batches_per_caller": 4,
    }
    return KeeperLimits(**(sizes | changes), run=RunLimits(**own))


def line(custom_id: str, url: str = COMPLETIONS, **body: Any) -> dict[str, Any]:
    body = {"prompt": "hi", "max_tokens": 3, **body}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def jsonl(*lines: object) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in lines)


def fill(database: Engine) -> None:
    """Have a database find no more room on its disk."""
    with database.connect() as connection:
        connection.execute(text("PRAGMA max_page_count = 1"))  # no less than it has already


def empty(database: Engine) -> None:
    """Have it find room again."""
    with database.connect() as connection:
        connection.execute(text("PRAGMA max_page_count = 1000000"))


class BatchClient:
    """Asks the server as a client would."""

    def __init__(
        self, http: httpx.AsyncClient, app: ASGIApp, keeper: BatchKeeper, engine: FakeEngine
    ) -> None:
        self.http = http
        self.app = app
        self.keeper = keeper
        self.engine = engine

    async def upload(self, content: bytes, name: str = "a.jsonl", **fields: Any) -> httpx.Response:
        form = {"purpose": "batch", **fields}
        return await self.http.post("/v1/files", files={"file": (name, content)}, data=form)

    async def upload_id(self, content: bytes) -> str:
        answer = await self.upload(content)
        assert answer.status_code == 200, answer.text
        file_id: str = answer.json()["id"]
        return file_id

    async def create(self, file_id: str, **fields: Any) -> httpx.Response:
        body = {"input_file_id": file_id, "endpoint": COMPLETIONS, **fields}
        return await self.http.post("/v1/batches", json=body)

    async def cancel(self, batch_id: str) -> httpx.Response:
        headers = {"content-type": "application/json"}  # as the official client sends it
        return await self.http.post(f"/v1/batches/{batch_id}/cancel", headers=headers)

    async def run(self, content: bytes, **fields: Any) -> dict[str, Any]:
        """Run a batch to its end; return how it ended."""
        created = await self.create(await self.upload_id(content), **fields)
        assert created.status_code == 200, created.text
        return await self.until_over(created.json()["id"])

    async def until_over(self, batch_id: str) -> dict[str, Any]:
        assert self.keeper._runner is not None
        await asyncio.wait_for(self.keeper._runner.until_over(batch_id), 20)
        batch: dict[str, Any] = (await self.http.get(f"/v1/batches/{batch_id}")).json()
        return batch

    async def results(self, file_id: str | None) -> list[dict[str, Any]]:
        """What a file of a batch's results holds; nothing where there is none."""
        if file_id is None:
            return []
        content = await self.http.get(f"/v1/files/{file_id}/content")
        assert content.status_code == 200
        return [json.loads(each) for each in content.content.splitlines()]


@contextlib.asynccontextmanager
async def batching(
    folder: Path,
    *,
    engine: FakeEngine | None = None,
    key: str | None = None,
    keeper: BatchKeeper | None = None,
    **changes: Any,
) -> AsyncIterator[BatchClient]:
    """Run the server; changes: of `limits`."""
    tokenizer = ByteTokenizer()
    engine = engine or FakeEngine(says(tokenizer, "yes"))
    models = FakeModels(served_model(engine, tokenizer))
    keeper = keeper or BatchKeeper(folder, limits(**changes))
    context = api_context(Lifecycle(models), models, batches=keeper)
    app = create_app(context, None if key is None else ApiKeys(key))
    await keeper.start(InnerCalls(app))
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://localhost", headers=headers
    ) as http:
        try:
            yield BatchClient(http, app, keeper, engine)
        finally:
            await keeper.close()
