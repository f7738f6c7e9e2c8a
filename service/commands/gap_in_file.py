"""`--fim FILE:LINE:COL`: the place in a file at which something is to be filled in.

Lines and columns begin at 1, as editors count them; a column counts characters and means the place
before one, and the one behind the last is the line's end. Line ends stay as they are, and those of
what is filled in become the file's.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from loaders.checkpoint.regular_files import open_regular
from loaders.errors import CheckpointError
from service.client.errors import UnwrittenAnswerError, WrongQuestionError

MAX_FILE_BYTES = 16 * 1024 * 1024
_BOM = "\ufeff"


@dataclass(frozen=True, slots=True)
class Gap:
    """A place in a file, and the texts on both sides of it."""

    path: Path
    place: str  # as it was given, for people
    prefix: str
    suffix: str

    def fill(self, middle: str) -> int:
        """Put the middle into the file, with the file's line ends; return how many characters.

        Raises UnwrittenAnswerError where the file has changed, or cannot be written.
        """
        path = self.path.resolve()  # a link stays one
        middle = middle.replace("\r\n", "\n").replace("\n", self._line_end())
        whole = (self.prefix + middle + self.suffix).encode("utf-8", "replace")
        try:
            if _read(path) != self.prefix + self.suffix:
                raise UnwrittenAnswerError(
                    f"{self.path} has changed meanwhile; it is left as it is"
                )
            _replace(path, whole)
        except WrongQuestionError as error:  # it is gone, or no text any more
            raise UnwrittenAnswerError(f"{error}; nothing was written") from error
        except OSError as error:
            raise UnwrittenAnswerError(f"{self.path} cannot be written: {error}") from error
        return len(middle)

    def _line_end(self) -> str:
        """Return how the gap's own line ends or, if it is the last, the one before it."""
        line, end, _ = self.suffix.partition("\n")
        if not end:
            line = self.prefix.rpartition("\n")[0]
        return "\r\n" if line.endswith("\r") else "\n"


def find_gap(place: str) -> Gap:
    """Find a place, given as FILE:LINE:COL. Raises WrongQuestionError."""
    name, *numbers = place.rsplit(":", 2)
    if not name or len(numbers) != 2 or not all(n.isascii() and n.isdigit() for n in numbers):
        raise WrongQuestionError(f"{place!r} is no place; give FILE:LINE:COL, as in main.py:12:5")
    line, column = (int(number[:12]) for number in numbers)
    path = Path(name).expanduser()
    text = _read(path)
    lines = text.split("\n")
    if not 1 <= line <= len(lines):
        raise WrongQuestionError(f"{name} has lines 1 to {len(lines)}, and no line {line}")
    start = sum(len(before) + 1 for before in lines[: line - 1])
    shown = lines[line - 1].removesuffix("\r")
    if line == 1 and shown.startswith(_BOM):  # no editor shows it
        start, shown = start + 1, shown[1:]
    if not 1 <= column <= len(shown) + 1:
        raise WrongQuestionError(
            f"line {line} of {name} has columns 1 to {len(shown) + 1}, and no column {column}"
        )
    at = start + column - 1
    return Gap(path, place, prefix=text[:at], suffix=text[at:])


def _read(path: Path) -> str:
    try:
        with open_regular(path) as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise WrongQuestionError(f"{path} has more than {MAX_FILE_BYTES} bytes")
        return data.decode("utf-8")
    except CheckpointError as error:
        raise WrongQuestionError(str(error)) from error
    except UnicodeDecodeError as error:
        raise WrongQuestionError(f"{path} is no UTF-8 text: {error}") from error


def _replace(path: Path, data: bytes) -> None:
    """Put a file in another's place, whole or not at all, with the rights that it had."""
    mode = path.stat().st_mode & 0o7777
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
