"""The blocks that nobody holds and that have a name, in the order in which they will be evicted.

Those that only the background had a use for go first: hundreds of prompts that nobody will send
again must not push out the beginnings that people's dialogues go on from.
"""

from __future__ import annotations

from itertools import chain, islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class CachedBlocks:
    """Of each class, those unused for longest come first."""

    def __init__(self) -> None:
        self._background: dict[int, None] = {}
        self._foreground: dict[int, None] = {}
        self._wanted: set[int] = set()  # named blocks that the foreground has had a use for

    def __len__(self) -> int:
        """Count them."""
        return len(self._background) + len(self._foreground)

    def __contains__(self, block: int) -> bool:
        """Whether a block is one of them."""
        return block in self._foreground or block in self._background

    def want(self, block: int) -> None:
        """Know that the foreground uses a block, so that it is kept longer."""
        self._wanted.add(block)

    def add(self, block: int) -> None:
        """Keep a block that nobody holds any more."""
        kept = self._foreground if block in self._wanted else self._background
        kept[block] = None

    def discard(self, block: int) -> None:
        """Take a block out, as somebody holds it again."""
        self._foreground.pop(block, None)
        self._background.pop(block, None)

    def forget(self, block: int) -> None:
        """Know that a block has lost its name."""
        self._wanted.discard(block)

    def take_first(self, num_blocks: int) -> list[int]:
        """Take out so many, or all there are: who are to go first."""
        # Listed first: every new iterator passes again over all that was deleted from a dict's
        # front, 8 µs a block where 300 were evicted at once.
        first = list(islice(self, num_blocks))
        for block in first:
            self.discard(block)
        return first

    def __iter__(self) -> Iterator[int]:
        """Iterate over them, those first that will be evicted first."""
        return chain(self._background, self._foreground)
