"""Runs parts one after the other, each in a process of its own, within a time for all of them.

A part that fails, crashes or hangs is an outcome like any other, and the next one runs. What a
part finds, it leaves in a file as it goes on, so even a hung one tells what it had found.
"""

from __future__ import annotations

import collections
import enum
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from benchmarks.gpu.parts import Part

    CommandOf: TypeAlias = Callable[[Part, Path], Sequence[str]]  # by the file for its findings
    OnLine: TypeAlias = Callable[[str, str], None]  # a part's name and what it says

GRACE_S = 3.0  # between asking a part to end and ending it
KILL_S = 5.0  # a process that waits for its driver cannot be ended; it is not waited for either
KEPT_LINES = 40  # of what a part that went wrong said last


class Status(enum.Enum):
    """How a part ended."""

    PASSED = "passed"
    FAILED = "failed"  # it says itself that something is wrong
    CRASHED = "crashed"  # a signal ended it
    TIMED_OUT = "timed out"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one part."""

    name: str
    status: Status
    seconds: float = 0.0
    reason: str | None = None  # None where it passed
    findings: dict[str, Any] = field(default_factory=dict)
    last_lines: tuple[str, ...] = ()  # of its output, unless it passed

    def as_json(self) -> dict[str, Any]:
        """Describe it in JSON's types."""
        return asdict(self) | {"status": self.status.value, "last_lines": list(self.last_lines)}


def run_parts(
    parts: Sequence[Part], *, budget_s: float, command_of: CommandOf, on_line: OnLine
) -> Iterator[Outcome]:
    """Run the parts in turn; give each one's outcome as it ends."""
    end = time.monotonic() + budget_s
    with tempfile.TemporaryDirectory(prefix="gpu-parts-") as folder:
        for part in parts:
            left = end - time.monotonic()
            if left <= 0 or left < part.least_s:
                yield Outcome(part.name, Status.SKIPPED, reason="no time")
                continue
            file = Path(folder, f"{part.name}.json")
            command = command_of(part, file)
            yield run_part(part, command, file, min(part.limit_s, left), on_line)


def run_part(
    part: Part, command: Sequence[str], file: Path, limit_s: float, on_line: OnLine
) -> Outcome:
    """Run one part's command for so long at most; file: where it leaves its findings."""
    began = time.monotonic()
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # so that what it starts ends with it
    )
    last_lines: collections.deque[str] = collections.deque(maxlen=KEPT_LINES)
    reader = threading.Thread(target=_read, args=(process, part.name, last_lines, on_line))
    reader.daemon = True
    reader.start()
    is_late = False
    try:
        process.wait(limit_s)
    except subprocess.TimeoutExpired:
        is_late = True
    finally:
        _end(process)
    reader.join(KILL_S)
    lines = tuple(last_lines)
    status, reason = _judge(process.returncode, lines, limit_s if is_late else None)
    return Outcome(
        name=part.name,
        status=status,
        seconds=round(time.monotonic() - began, 1),
        reason=reason,
        findings=_read_findings(file),
        last_lines=() if status is Status.PASSED else lines,
    )


def _read(
    process: subprocess.Popen[str], name: str, last_lines: collections.deque[str], on_line: OnLine
) -> None:
    assert process.stdout is not None
    with process.stdout as lines:
        for line in lines:
            last_lines.append(line.rstrip())
            on_line(name, line.rstrip())


def _end(process: subprocess.Popen[str]) -> None:
    """End the process and all that it started."""
    for number, wait_s in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, KILL_S)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:  # all are gone
            return
        try:
            process.wait(wait_s)
        except subprocess.TimeoutExpired:
            continue


def _judge(
    returncode: int | None, lines: Sequence[str], passed_limit_s: float | None
) -> tuple[Status, str | None]:
    """Say how a process ended, and why. passed_limit_s: None where it was in time."""
    if passed_limit_s is not None:
        still = "" if returncode is not None else "; it could not be ended"
        return Status.TIMED_OUT, f"not done after {passed_limit_s:.0f} s{still}"
    if returncode == 0:
        return Status.PASSED, None
    if returncode is not None and returncode < 0:
        return Status.CRASHED, f"ended by {signal.Signals(-returncode).name}"
    last = next((line for line in reversed(lines) if line.strip()), "it said nothing")
    return Status.FAILED, last


def _read_findings(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        findings: dict[str, Any] = json.loads(file.read_text())
    except ValueError:
        return {}
    return findings
