"""/v1/files: what batches are made of, and what they were answered."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from pydantic import Field, create_model
from starlette.responses import StreamingResponse

from service.api.endpoint import FORM, Endpoint
from service.api.form_bodies import FILE, read_form
from service.api.openai.file_answers import (
    FileDeleted,
    FileList,
    FileObject,
    file_list,
    file_object,
)
from service.api.pages import read_page
from service.api.request_bodies import report_ignored
from service.api.responses import ModelResponse
from service.api.scope import caller_of
from service.batches.records import Purpose
from service.errors import InvalidFieldError, MissingFieldError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from typing import BinaryIO

    from starlette.requests import Request
    from starlette.responses import Response

    from service.api.context import ApiContext
    from service.api.form_bodies import Form
    from service.batches.keeper import BatchKeeper

MIN_LIFE_S, MAX_LIFE_S = 3600, 30 * 86_400
_ANCHOR, _SECONDS = "expires_after[anchor]", "expires_after[seconds]"
_MOST = 10_000
_PIECE = 256 * 1024


# Made so, because two of its fields have names that Python has not.
_FIELDS: dict[str, Any] = {
    "file": (
        bytes,
        Field(
            description="The content; at most `max_file_size`.",
            json_schema_extra={"format": "binary"},
        ),
    ),
    "purpose": (
        str,
        Field(description="`batch`; files for anything else have no use here."),
    ),
    _ANCHOR: (
        str | None,
        Field(None, description="`created_at`: what the seconds are counted from."),
    ),
    _SECONDS: (
        int | None,
        Field(None, description="After so many the file is deleted by itself."),
    ),
}
FileForm = create_model("FileForm", __doc__="The form of POST /v1/files.", **_FIELDS)


class FileHandlers:
    """Answer what is asked of files."""

    def __init__(self, context: ApiContext, keeper: BatchKeeper) -> None:
        self._context = context
        self._keeper = keeper

    async def create_file(self, http_request: Request) -> Response:
        """Keep a file, sent as a multipart form; its content goes to the disk as it comes."""
        async with await self._keeper.begin_upload(caller_of(http_request.scope)) as upload:
            form = await read_form(http_request, upload.write, self._keeper.limits.max_file_bytes)
            lasts_s = _check(form)
            unknown = [name for name in form.fields if name not in _KNOWN]
            report_ignored(http_request.scope, unknown, self._context.limits)
            record = await upload.finish(form.filename or FILE, Purpose.BATCH, lasts_s)
        return ModelResponse(file_object(record))

    async def list_files(self, http_request: Request) -> Response:
        """List the caller's files, the newest first."""
        page, after = read_page(http_request, default=_MOST, most=_MOST)
        purpose = http_request.query_params.get("purpose") or None
        records = await self._keeper.files(
            caller_of(http_request.scope), page, after=after, purpose=purpose
        )
        return ModelResponse(file_list(records, page.limit))

    async def get_file(self, http_request: Request) -> Response:
        """Describe a file."""
        record = await self._keeper.file(
            caller_of(http_request.scope), http_request.path_params["file_id"]
        )
        return ModelResponse(file_object(record))

    async def delete_file(self, http_request: Request) -> Response:
        """Delete a file; 409 while a batch that is not over needs it."""
        file_id = http_request.path_params["file_id"]
        await self._keeper.delete_file(caller_of(http_request.scope), file_id)
        return ModelResponse(FileDeleted(id=file_id, object="file", deleted=True))

    async def get_file_content(self, http_request: Request) -> Response:
        """Return a file's content, as it was sent, or of a batch's output a JSON object a line."""
        owner = caller_of(http_request.scope)
        record, path = await self._keeper.path_of(owner, http_request.path_params["file_id"])
        try:
            file = await asyncio.to_thread(path.open, "rb")
        except FileNotFoundError:  # it was deleted at this moment
            raise NotFoundError("the file is gone", param="file_id") from None
        headers = {
            "content-length": str(record.num_bytes),
            "content-disposition": f'attachment; filename="{record.id}.jsonl"',
            "x-content-type-options": "nosniff",
        }
        return StreamingResponse(
            _pieces(file), media_type="application/octet-stream", headers=headers
        )


def file_endpoints(context: ApiContext, keeper: BatchKeeper) -> list[Endpoint]:
    """Return the endpoints."""

    own = FileHandlers(context, keeper)
    paging = {
        "after": "The id of the last one that is known.",
        "limit": "How many.",
        "order": "`desc`, the newest first, or `asc`.",
    }
    return [
        Endpoint(
            method="POST",
            path="/v1/files",
            tag="OpenAI",
            handler=own.create_file,
            request=FileForm,
            request_type=FORM,
            response=FileObject,
            statuses=(507,),
        ),
        Endpoint(
            method="GET",
            path="/v1/files",
            tag="OpenAI",
            handler=own.list_files,
            query={**paging, "purpose": "Only those of it."},
            response=FileList,
            statuses=(400, 404, 503, 507),
        ),
        Endpoint(
            method="GET",
            path="/v1/files/{file_id}",
            tag="OpenAI",
            handler=own.get_file,
            response=FileObject,
            statuses=(503, 507),
        ),
        Endpoint(
            method="DELETE",
            path="/v1/files/{file_id}",
            tag="OpenAI",
            handler=own.delete_file,
            response=FileDeleted,
            statuses=(409, 503, 507),
        ),
        Endpoint(
            method="GET",
            path="/v1/files/{file_id}/content",
            tag="OpenAI",
            handler=own.get_file_content,
            media_type="application/octet-stream",
            statuses=(503, 507),
        ),
    ]


_KNOWN = ("purpose", _ANCHOR, _SECONDS)


def _check(form: Form) -> int | None:
    """Check a form's fields; return after how many seconds the file is deleted by itself."""
    if form.filename is None:
        raise MissingFieldError("file: required, and missing", param="file")
    purpose = form.fields.get("purpose")
    if purpose is None:
        raise MissingFieldError("purpose: required, and missing", param="purpose")
    if purpose != Purpose.BATCH.value:
        raise InvalidFieldError(
            "purpose: give batch; files for anything else have no use here", param="purpose"
        )
    anchor, seconds = form.fields.get(_ANCHOR), form.fields.get(_SECONDS)
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise InvalidFieldError(f"{_ANCHOR}: give created_at", param=_ANCHOR)
    is_number = seconds is not None and seconds.isascii() and seconds.isdecimal()
    lasts_s = int(seconds[:12]) if is_number and seconds is not None else 0
    if not MIN_LIFE_S <= lasts_s <= MAX_LIFE_S:
        raise InvalidFieldError(
            f"{_SECONDS}: give a number from {MIN_LIFE_S} to {MAX_LIFE_S}", param=_SECONDS
        )
    return lasts_s


async def _pieces(file: BinaryIO) -> AsyncIterator[bytes]:
    try:
        while piece := await asyncio.to_thread(file.read, _PIECE):
            yield piece
    finally:
        file.close()
