"""What is known of a file, a batch and a line of one; moments are seconds since 1970."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Purpose(enum.Enum):
    """What a file is for; the values are what clients see."""

    BATCH = "batch"  # the requests of one, which a caller brought
    BATCH_OUTPUT = "batch_output"  # what they were answered


class BatchStatus(enum.Enum):
    """Where a batch stands; the values are what clients see."""

    VALIDATING = "validating"
    FAILED = "failed"  # its file has faults, so that nothing of it was run
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"  # its time was over before all of it was run
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"

    @property
    def is_open(self) -> bool:
        """Whether something of it is still to be done."""
        return self in OPEN


OPEN = frozenset(
    {
        BatchStatus.VALIDATING,
        BatchStatus.IN_PROGRESS,
        BatchStatus.FINALIZING,
        BatchStatus.CANCELLING,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """One file."""

    number: int  # in the order of arrival
    id: str
    owner: str  # the name of the key that it came with
    filename: str  # as its caller calls it; nothing is found by it
    purpose: Purpose
    num_bytes: int
    created_at: int
    expires_at: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LineFault:
    """What is wrong with a line of a batch's file, or with all of it."""

    code: str
    message: str
    line: int | None = None  # from 1
    param: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRecord:
    """One batch."""

    number: int  # in the order of arrival
    id: str
    owner: str
    input_file_id: str
    endpoint: str
    completion_window: str
    status: BatchStatus
    created_at: int
    expires_at: int
    metadata: Mapping[str, str] | None = None
    output_expires_after_s: int | None = None
    faults: Sequence[LineFault] = ()
    output_file_id: str | None = None
    error_file_id: str | None = None
    num_lines: int = 0
    num_completed: int = 0
    num_failed: int = 0
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LineRecord:
    """One line that has not been answered, and where its text lies in the batch's file."""

    number: int  # from 1
    custom_id: str
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LineResult:
    """What a line was answered, as a line of the output file or of the errors'."""

    number: int
    text: bytes  # JSON, without the newline
    has_failed: bool


@dataclass(slots=True)
class LineCounts:
    """What became of lines since the process began; and how many are under way."""

    num_running: int = 0
    num_completed: int = 0
    num_failed: int = 0
    open_lines: dict[str, int] = field(default_factory=dict)  # by open batch: not answered yet

    @property
    def num_waiting(self) -> int:
        """Lines of open batches that nobody works on."""
        return max(0, sum(self.open_lines.values()) - self.num_running)
