"""What /v1/files answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from service.api.answer_model import AnswerModel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.batches.records import FileRecord


class FileObject(AnswerModel):
    """One file."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int | None = Field(description="When it is deleted by itself.")
    filename: str = Field(description="As its sender calls it; nothing is found by it.")
    purpose: str = Field(description="`batch`, or `batch_output`.")
    status: Literal["processed"]


class FileList(AnswerModel):
    """Some files, the newest first."""

    object: Literal["list"]
    data: list[FileObject]
    has_more: bool
    first_id: str | None
    last_id: str | None


class FileDeleted(AnswerModel):
    """A file that is no more."""

    id: str
    object: Literal["file"]
    deleted: Literal[True]


def file_object(record: FileRecord) -> FileObject:
    """Describe a file."""
    return FileObject(
        id=record.id,
        object="file",
        bytes=record.num_bytes,
        created_at=record.created_at,
        expires_at=record.expires_at,
        filename=record.filename,
        purpose=record.purpose.value,
        status="processed",
    )


def file_list(records: Sequence[FileRecord], limit: int) -> FileList:
    """Return a page; records: one more than its size where there are more."""
    shown = [file_object(record) for record in records[:limit]]
    return FileList(
        object="list",
        data=shown,
        has_more=len(records) > limit,
        first_id=shown[0].id if shown else None,
        last_id=shown[-1].id if shown else None,
    )
