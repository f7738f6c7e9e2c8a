"""A client that sends bytes as they are, and reads answers by the letter."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass
from typing import IO

LIMIT_S = 15


@dataclass
class Answer:
    """One answer as it came."""

    status: int
    version: str
    headers: list[tuple[str, str]]
    body: bytes = b""
    is_whole: bool = True

    def header(self, name: str) -> str | None:
        return next((value for own, value in self.headers if own == name), None)


class RawConnection:
    """One connection."""

    def __init__(self, address: tuple[str, int], limit_s: float = LIMIT_S) -> None:
        self.socket = socket.create_connection(address, timeout=limit_s)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file: IO[bytes] = self.socket.makefile("rb")

    def send(self, *pieces: bytes) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before its end
            for piece in pieces:
                self.socket.sendall(piece)

    def read(self, method: str = "GET") -> Answer | None:
        """Read one answer; None where the server has closed the connection instead."""
        line = self._read_line()
        if not line:
            return None
        version, status, _ = line.split(" ", 2)
        answer = Answer(int(status), version, [])
        while header := self._read_line():
            name, _, value = header.partition(":")
            answer.headers.append((name.lower(), value.strip()))
        if method != "HEAD" and answer.status >= 200 and answer.status not in (204, 304):
            self._read_body(answer)
        return answer

    def is_at_end(self) -> bool:
        """Wait for the server to close; return whether nothing came before that."""
        try:
            return self._file.read(1) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self._file.close()
        self.socket.close()

    def _read_line(self) -> str:
        with contextlib.suppress(ConnectionResetError):
            return self._file.readline().decode("latin-1").rstrip("\r\n")
        return ""

    def _read_body(self, answer: Answer) -> None:
        if answer.header("transfer-encoding") == "chunked":
            while True:
                size = int(self._read_line() or "0", 16)
                answer.body += self._file.read(size)
                self._read_line()
                if not size:
                    return
        length = answer.header("content-length")
        answer.body = self._file.read() if length is None else self._file.read(int(length))
        answer.is_whole = length is None or len(answer.body) == int(length)
