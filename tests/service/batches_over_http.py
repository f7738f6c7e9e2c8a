"""A batch as a client of a real server begins it and looks at it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.service.fakes import wait_until
from tests.service.kept_batches import COMPLETIONS

if TYPE_CHECKING:
    import httpx2 as httpx

END_LIMIT_S = 60


def begin(client: httpx.Client, content: bytes, *, filename: str = "a.jsonl") -> str:
    """Upload the lines and return the id of a batch of them."""
    form = {"file": (filename, content)}
    file = client.post("/v1/files", files=form, data={"purpose": "batch"}).json()
    asked = {"input_file_id": file["id"], "endpoint": COMPLETIONS}
    batch_id: str = client.post("/v1/batches", json=asked).json()["id"]
    return batch_id


def look(client: httpx.Client, batch_id: str) -> dict[str, Any]:
    batch: dict[str, Any] = client.get(f"/v1/batches/{batch_id}").json()
    return batch


def num_done(client: httpx.Client, batch_id: str) -> int:
    counts = look(client, batch_id)["request_counts"]
    return int(counts["completed"]) + int(counts["failed"])


def until_completed(client: httpx.Client, batch_id: str) -> dict[str, Any]:
    wait_until(lambda: look(client, batch_id)["status"] == "completed", END_LIMIT_S)
    return look(client, batch_id)


def contents(client: httpx.Client, file_id: str) -> list[bytes]:
    """Return the lines of a file."""
    return client.get(f"/v1/files/{file_id}/content").content.splitlines()
