"""Reads server-sent events: bytes as they come in, the `data` of each event out.

Lines end in LF or CRLF, as every server sends them. Comments, ids and names of events are left out.
"""

from __future__ import annotations

from service.client.errors import BrokenAnswerError

MAX_EVENT_BYTES = 16 * 1024 * 1024


class EventReader:
    """Holds what has come of a line and of an event."""

    def __init__(self) -> None:
        self._line = b""  # what has come of the line that is not whole
        self._data: list[bytes] = []  # the event's lines so far
        self._num_bytes = 0  # in them

    def push(self, piece: bytes) -> list[str]:
        """Return the data of the events that this piece ends. Raises BrokenAnswerError."""
        *lines, self._line = (self._line + piece).split(b"\n")
        events = [event for line in lines if (event := self._read_line(line)) is not None]
        if self._num_bytes + len(self._line) > MAX_EVENT_BYTES:
            raise BrokenAnswerError(
                "the server sends no end of an event; is it an OpenAI-style API?"
            )
        return events

    def flush(self) -> list[str]:
        """Return what the end of the stream ends."""
        last = [self._read_line(self._line), self._read_line(b"")]
        self._line = b""
        return [event for event in last if event is not None]

    def _read_line(self, line: bytes) -> str | None:
        line = line.removesuffix(b"\r")
        if not line:
            return self._end_event()
        if line.startswith(b"data:"):
            self._data.append(line[5:].removeprefix(b" "))
            self._num_bytes += len(line)
        return None

    def _end_event(self) -> str | None:
        data, self._data, self._num_bytes = self._data, [], 0
        return b"\n".join(data).decode("utf-8", "replace") if data else None
