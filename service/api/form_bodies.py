"""Reads a multipart form with one file, which goes on piece by piece as it comes.

Parsing is python-multipart's. Bounds are here: so many parts, so long a field, and of a part's
headers what the parser allows. A form that does not end as it should is refused: whatever was cut
off is no file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.api.field_names import safe_name
from service.api.scope import record_of
from service.errors import BodyTooLargeError, InvalidFormError, UnsupportedBodyError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request

MAX_FIELD_BYTES = 4096
MAX_PARTS = 16
MAX_AROUND = 64 * 1024  # of a form, beside its file
MAX_FILENAME = 255  # characters
FILE = "file"


@dataclass(slots=True)
class Form:
    """What a form says, beside its file's content."""

    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None  # None where no file came


async def read_form(
    request: Request, take: Callable[[bytes], Awaitable[None]], max_file_bytes: int
) -> Form:
    """Read the form that is a request's body; take: gets the file's content in pieces.

    Raises InvalidFormError, UnsupportedBodyError or BodyTooLargeError.
    """
    reader = FormReader(boundary_of(request))
    most = max_file_bytes + MAX_AROUND
    too_large = BodyTooLargeError(
        f"the form is larger than the allowed {most} bytes; send a smaller file, or have the"
        " setting max_file_size raised"
    )
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > most:
        raise too_large
    num_bytes = 0
    async for piece in request.stream():
        num_bytes += len(piece)
        if num_bytes > most:
            raise too_large
        if content := reader.push(piece):
            await take(content)
    record_of(request.scope).note_body()
    return reader.finish()


def boundary_of(request: Request) -> bytes:
    """Return what stands between a form's parts. Raises UnsupportedBodyError, InvalidFormError."""
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise UnsupportedBodyError("the body is compressed; send it without Content-Encoding")
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind.strip() != b"multipart/form-data":
        raise UnsupportedBodyError(
            "the body is no form; send it as 'Content-Type: multipart/form-data'"
        )
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise InvalidFormError("the Content-Type names no boundary of the form's parts")
    return boundary


class FormReader:
    """Takes a form in pieces, and gives out what of them is the file's content."""

    def __init__(self, boundary: bytes) -> None:
        self._form = Form()
        self._num_parts = 0
        self._header = b""
        self._headers: dict[str, bytes] = {}
        self._header_value = b""
        self._name: str | None = None  # of the part that is coming
        self._is_file = False
        self._value = bytearray()
        self._content = bytearray()
        self._has_ended = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._on_part_begin,
                    "on_header_field": self._on_header_field,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": self._on_part_data,
                    "on_part_end": self._on_part_end,
                    "on_end": self._on_end,
                },
            )
        except FormParserError as error:
            raise InvalidFormError(f"the form cannot be read: {error}") from None

    def push(self, data: bytes) -> bytes:
        """Take the next piece; return what came of the file. Raises InvalidFormError."""
        if self._has_ended:
            return b""  # an epilogue, which means nothing
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise InvalidFormError(f"the form cannot be read: {str(error)[:200]}") from None
        content = bytes(self._content)
        self._content.clear()
        return content

    def finish(self) -> Form:
        """Return what the form said; raise InvalidFormError where it was cut off."""
        if not self._has_ended:
            raise InvalidFormError("the form ends before its last boundary")
        return self._form

    # What the parser calls

    def _on_part_begin(self) -> None:
        self._num_parts += 1
        if self._num_parts > MAX_PARTS:
            raise InvalidFormError(f"the form has more than {MAX_PARTS} parts")
        self._headers, self._header, self._header_value = {}, b"", b""
        self._name, self._is_file = None, False
        self._value.clear()

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        self._headers[self._header.decode("latin-1").lower()] = self._header_value
        self._header, self._header_value = b"", b""

    def _on_headers_finished(self) -> None:
        told = self._headers.get("content-disposition", b"").decode("latin-1")
        kind, options = parse_options_header(told)
        if kind != b"form-data" or b"name" not in options:
            raise InvalidFormError("a part of the form has no name (Content-Disposition)")
        name = _text(options[b"name"], "the name of a part")
        encoding = self._headers.get("content-transfer-encoding", b"binary").strip().lower()
        if encoding not in (b"binary", b"8bit", b"7bit"):
            raise InvalidFormError("a part of the form is encoded; send it as it is")
        if name in self._form.fields or (name == FILE and self._form.filename is not None):
            raise InvalidFormError(f"the form has {safe_name(name)} twice", param=safe_name(name))
        self._name, self._is_file = name, name == FILE
        if self._is_file:
            self._form.filename = _shown(_text(options.get(b"filename", b""), "the filename"))

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._content += data[start:end]
            return
        self._value += data[start:end]
        if len(self._value) > MAX_FIELD_BYTES:
            name = safe_name(self._name or "")
            raise InvalidFormError(
                f"the field {name} has more than {MAX_FIELD_BYTES} bytes", param=name
            )

    def _on_part_end(self) -> None:
        if not self._is_file and self._name is not None:
            self._form.fields[self._name] = _text(bytes(self._value), "a field")

    def _on_end(self) -> None:
        self._has_ended = True


def _text(raw: bytes, what: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidFormError(f"{what} is not UTF-8") from None


def _shown(filename: str) -> str:
    """Return a name as it may be shown: its last part, printable. Nothing is found by it."""
    last = filename.replace("\\", "/").rpartition("/")[2]
    return "".join(each for each in last if each.isprintable())[:MAX_FILENAME] or FILE
