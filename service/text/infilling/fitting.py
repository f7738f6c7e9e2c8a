"""Decides how much of the text around a gap is kept where not all has room.

What is near the gap says most about it, so cuts are made at the far ends: other files first, then
the beginning of the prefix and the end of the suffix. Knows token ids and counts only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# Of the room for both parts, as llama.cpp shares its own: what code needs is mostly defined above.
_SUFFIX_SHARE = 4


@dataclass(frozen=True, slots=True)
class FileIds:
    """One other file: what names it, its text, what stands behind it."""

    head: Sequence[int]
    text: Sequence[int]
    tail: Sequence[int]

    @property
    def frame(self) -> int:
        """Count the ids that its text needs around it."""
        return len(self.head) + len(self.tail)

    @property
    def size(self) -> int:
        return self.frame + len(self.text)

    @property
    def ids(self) -> list[int]:
        return [*self.head, *self.text, *self.tail]

    def last(self, num_text: int) -> FileIds:
        """Keep the last `num_text` ids of its text."""
        return FileIds(self.head, self.text[len(self.text) - num_text :], self.tail)


def share_room(room: int, num_prefix: int, num_suffix: int) -> tuple[int, int]:
    """Say how many ids of prefix and suffix are kept in `room`.

    Three quarters are the prefix's and one the suffix's; what one does not need, the other gets.
    """
    kept_suffix = min(num_suffix, max(room // _SUFFIX_SHARE, room - num_prefix))
    return min(num_prefix, room - kept_suffix), kept_suffix


def keep_files(files: Sequence[FileIds], room: int) -> list[FileIds]:
    """Keep the last files that fit in `room`; of the one before them, the end of its text."""
    kept: list[FileIds] = []
    for file in reversed(files):
        if file.size > room:
            if file.frame < room:
                kept.append(file.last(room - file.frame))
            break
        room -= file.size
        kept.append(file)
    return kept[::-1]
