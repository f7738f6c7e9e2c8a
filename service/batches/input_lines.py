"""Reads the file of a batch: one request a line, every line checked before any is run.

A request's body is kept as it was written, so that whoever runs it finds in it what it would find
in a request over the wire.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from service.batches.records import LineFault, LineRecord

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

MAX_FAULTS = 50  # told of one file
MAX_CUSTOM_ID = 512  # characters
MAX_MESSAGE = 200
MAX_NAMED = 10  # names without effect, of one line
MAX_NAME = 64  # characters of one
BOM = b"\xef\xbb\xbf"  # which some editors put before a file that is UTF-8


class RequestLine(msgspec.Struct):
    """One line; whatever else it says has no effect."""

    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


class _Body(msgspec.Struct):
    """What must be known of a body before it is run."""

    stream: object = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InputRules:
    """What a file may hold."""

    endpoint: str  # that all its requests go to
    max_lines: int
    max_body_bytes: int
    refuses_unknown: bool = False  # what has no effect in a line, beside its body

    @property
    def max_line_bytes(self) -> int:
        """Return how long a line may be: a body, and what stands around it."""
        return self.max_body_bytes + 12 * MAX_CUSTOM_ID + 1024


def read_lines(path: Path, rules: InputRules) -> tuple[list[LineRecord], list[LineFault]]:
    """Return all requests of a file, and what is wrong with it; at most some of that."""
    found: list[LineRecord] = []
    faults: list[LineFault] = []
    known: dict[str, int] = {}  # the line that has it, by custom_id
    with path.open("rb") as file:
        for number, offset, text in _lines(file, rules):
            if number > rules.max_lines:
                faults.append(_fault("too_many_lines", f"more than {rules.max_lines}", number))
                break
            checked = _check(number, text, rules, known)
            if isinstance(checked, LineFault):
                faults.append(checked)
                if len(faults) == MAX_FAULTS:
                    break
                continue
            found.append(
                LineRecord(number=number, custom_id=checked, offset=offset, num_bytes=len(text))
            )
    if not found and not faults:
        faults.append(LineFault(code="empty_file", message="the file holds no request"))
    return found, faults


def read_request(path: Path, line: LineRecord) -> tuple[bytes, list[str]]:
    """Return the body of a line that was checked, as it was written, and what has no effect.

    That is told as `line.NAME`, for it stands beside the body.
    """
    with path.open("rb") as file:
        file.seek(line.offset)
        text = file.read(line.num_bytes)
    body = bytes(msgspec.json.decode(text, type=RequestLine).body)
    return body, _unknown_in(text)


def _unknown_in(text: bytes) -> list[str]:
    """Return the names in a line that mean nothing here; null says nothing."""
    found = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    names = [
        "line." + name[:MAX_NAME].encode(errors="replace").decode()
        for name, value in found.items()
        if name not in RequestLine.__struct_fields__ and bytes(value) != b"null"
    ]
    more = [f"and {len(names) - MAX_NAMED} more"] if len(names) > MAX_NAMED else []
    return names[:MAX_NAMED] + more


def _lines(file: BinaryIO, rules: InputRules) -> Iterator[tuple[int, int, bytes]]:
    """Give each line that is not blank: its number, where it begins, and its text.

    Of one that is too long no more is read than shows it; nothing behind it is.
    """
    longest = rules.max_line_bytes
    number = offset = 0
    while text := file.readline(longest + 1):
        number += 1
        if offset == 0 and text.startswith(BOM):
            text, offset = text[len(BOM) :], len(BOM)
        if text.strip():
            yield number, offset, text
        if len(text) > longest:
            return
        offset += len(text)


def _check(number: int, text: bytes, rules: InputRules, known: dict[str, int]) -> str | LineFault:
    """Return a line's custom_id, or what is wrong with it."""
    if len(text) > rules.max_line_bytes:
        return _fault("line_too_long", f"more than {rules.max_line_bytes} bytes", number)
    try:
        text.decode("utf-8")  # all of it: the body is not looked into here
    except UnicodeDecodeError as error:
        return _fault(
            "invalid_json_line",
            f"not UTF-8 (byte {error.start} of the line); save the file as UTF-8",
            number,
        )
    try:
        line = msgspec.json.decode(text, type=RequestLine)
        custom_id = line.custom_id.encode("utf-8").decode()
        if len(bytes(line.body)) > rules.max_body_bytes:
            return _fault(
                "body_too_large", f"more than {rules.max_body_bytes} bytes", number, "body"
            )
        body = msgspec.json.decode(line.body, type=_Body)
        unknown = _unknown_in(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        return _fault("invalid_json_line", str(error) or "nested too deeply", number)
    if not custom_id or len(custom_id) > MAX_CUSTOM_ID:
        return _fault(
            "invalid_custom_id", f"give 1 to {MAX_CUSTOM_ID} characters", number, "custom_id"
        )
    if custom_id in known:
        return _fault(
            "duplicate_custom_id", f"line {known[custom_id]} has it, too", number, "custom_id"
        )
    known[custom_id] = number
    if unknown and rules.refuses_unknown:
        names = ", ".join(unknown)
        return _fault("unknown_parameter", f"{names}: no effect here; leave it out", number)
    if line.method != "POST":
        return _fault("invalid_method", "the only method is POST", number, "method")
    if line.url != rules.endpoint:
        return _fault("mismatched_url", f"this batch's endpoint is {rules.endpoint}", number, "url")
    if body.stream:
        return _fault(
            "stream_not_supported", "leave it out: nobody reads it", number, "body.stream"
        )
    return custom_id


def _fault(code: str, message: str, line: int, param: str | None = None) -> LineFault:
    return LineFault(code=code, message=message[:MAX_MESSAGE], line=line, param=param)
