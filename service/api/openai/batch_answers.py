"""What /v1/batches answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from service.api.answer_model import AnswerModel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.batches.records import BatchRecord


class BatchFault(AnswerModel):
    """What is wrong with a line of a batch's file."""

    code: str
    message: str
    line: int | None = Field(description="From 1; null where it is about the whole file.")
    param: str | None


class BatchFaults(AnswerModel):
    """What is wrong with a batch's file, of which nothing was run then."""

    object: Literal["list"]
    data: list[BatchFault]


class RequestCounts(AnswerModel):
    """How many requests a batch has, and what became of them."""

    total: int
    completed: int
    failed: int = Field(description="Answered with an error, or not run before the batch ended.")


class BatchObject(AnswerModel):
    """One batch; moments are seconds since 1970."""

    id: str
    object: Literal["batch"]
    endpoint: str
    errors: BatchFaults | None
    input_file_id: str
    completion_window: str
    status: Literal[
        "validating",
        "failed",
        "in_progress",
        "finalizing",
        "completed",
        "expired",
        "cancelling",
        "cancelled",
    ]
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    metadata: dict[str, str] | None


class BatchList(AnswerModel):
    """Some batches, the newest first."""

    object: Literal["list"]
    data: list[BatchObject]
    has_more: bool
    first_id: str | None
    last_id: str | None


def batch_object(record: BatchRecord) -> BatchObject:
    """Describe a batch."""
    faults = [
        BatchFault(code=each.code, message=each.message, line=each.line, param=each.param)
        for each in record.faults
    ]
    return BatchObject(
        id=record.id,
        object="batch",
        endpoint=record.endpoint,
        errors=BatchFaults(object="list", data=faults) if faults else None,
        input_file_id=record.input_file_id,
        completion_window=record.completion_window,
        status=record.status.value,
        output_file_id=record.output_file_id,
        error_file_id=record.error_file_id,
        created_at=record.created_at,
        in_progress_at=record.in_progress_at,
        expires_at=record.expires_at,
        finalizing_at=record.finalizing_at,
        completed_at=record.completed_at,
        failed_at=record.failed_at,
        expired_at=record.expired_at,
        cancelling_at=record.cancelling_at,
        cancelled_at=record.cancelled_at,
        request_counts=RequestCounts(
            total=record.num_lines, completed=record.num_completed, failed=record.num_failed
        ),
        metadata=None if record.metadata is None else dict(record.metadata),
    )


def batch_list(records: Sequence[BatchRecord], limit: int) -> BatchList:
    """Return a page; records: one more than its size where there are more."""
    shown = [batch_object(record) for record in records[:limit]]
    return BatchList(
        object="list",
        data=shown,
        has_more=len(records) > limit,
        first_id=shown[0].id if shown else None,
        last_id=shown[-1].id if shown else None,
    )
