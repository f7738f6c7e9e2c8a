"""A client of streamed answers that costs little: thousands of them fit beside the server.

Speaks as much HTTP/1.1 as a streamed answer needs: one request a connection, a chunked body.
"""

from __future__ import annotations

import asyncio
import json
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

_DATA = b"data: "
_DONE = b"[DONE]"


@dataclass(slots=True)
class StreamedAnswer:
    """What came back of one request."""

    status: int
    text: str = ""
    num_events: int = 0  # that carried text
    finish_reason: str | None = None
    completion_tokens: int | None = None  # as the server counted them
    error: str | None = None
    is_complete: bool = False  # the stream was closed as it must be
    times: list[float] = field(default_factory=list)  # when each event came
    text_times: list[float] = field(default_factory=list)  # when each came that carried text


async def stream(
    host: str,
    port: int,
    body: Mapping[str, Any],
    *,
    leave_after: int | None = None,
    pause_s: float = 0.0,
) -> StreamedAnswer:
    """Read a streamed completion.

    leave_after: how many events to read before the connection is dropped. pause_s: how long to
    wait after each event, with a receive buffer that holds little.
    """
    reader, writer = await _connect(host, port, is_slow=pause_s > 0)
    try:
        writer.write(_request(host, body))
        answer = StreamedAnswer(await _read_head(reader))
        clock = asyncio.get_running_loop().time
        async for line in _lines(reader):
            if not line.startswith(_DATA):
                if answer.status != 200:
                    answer.error = (answer.error or "") + line.decode()
                continue
            num_before = answer.num_events
            _take_in(answer, line.removeprefix(_DATA))
            answer.times.append(clock())
            if answer.num_events > num_before:
                answer.text_times.append(answer.times[-1])
            if leave_after is not None and answer.num_events >= leave_after:
                break
            if pause_s:
                await asyncio.sleep(pause_s)
        return answer
    finally:
        writer.close()


async def _connect(
    host: str, port: int, *, is_slow: bool
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    connection = socket.socket()
    if is_slow:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, (host, port))
    return await asyncio.open_connection(sock=connection, limit=65_536)


def _request(host: str, body: Mapping[str, Any]) -> bytes:
    content = json.dumps({**body, "stream": True}).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


async def _read_head(reader: asyncio.StreamReader) -> int:
    """Read the status line and the headers; return the status."""
    head = await reader.readuntil(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1])


async def _lines(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Give the lines of a body; where it is chunked each event is in one chunk."""
    while line := await reader.readline():
        if line.strip():
            yield line.strip()


def _take_in(answer: StreamedAnswer, data: bytes) -> None:
    if data == _DONE:
        answer.is_complete = answer.error is None
        return
    chunk = json.loads(data)
    if "error" in chunk:
        error = chunk["error"]  # a text alone, where Transformers serves
        answer.error = error if isinstance(error, str) else error["message"]
        return
    if chunk.get("usage"):
        answer.completion_tokens = chunk["usage"]["completion_tokens"]
    for choice in chunk["choices"]:
        if choice["text"]:
            answer.text += choice["text"]
            answer.num_events += 1
        # Transformers leaves out what is null.
        answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
