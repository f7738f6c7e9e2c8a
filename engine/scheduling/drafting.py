"""Guesses a sequence's next tokens from what it has said before.

Text repeats itself, most of all where code is edited. The last few tokens are looked up among the
earlier ones, and what followed them there is drafted. The model verifies a draft in one step; a
wrong guess costs time and changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

NGRAM_SIZE = 3  # tokens that must agree before anything is drafted
# Judged after so many drafted tokens; if fewer than this share were right, drafting rests.
MIN_JUDGED = 24
MIN_ACCEPTED_SHARE = 0.4
REST_TOKENS = 128


class NgramDrafter:
    """Drafts for one sequence; constant work a token."""

    def __init__(self, token_ids: Iterable[int]) -> None:
        self._token_ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # where the last of each n-gram ended
        self._match: int | None = None  # where the n-gram at the end had ended before
        self._num_drafted = 0
        self._num_accepted = 0
        self._rests_until = 0  # tokens
        self.extend(token_ids)

    @property
    def is_active(self) -> bool:
        """Whether it drafts at all now: its guesses were not too often wrong."""
        return len(self._token_ids) >= self._rests_until

    def extend(self, token_ids: Iterable[int]) -> None:
        """Take in tokens that the sequence has got."""
        for token_id in token_ids:
            self._token_ids.append(token_id)
            end = len(self._token_ids)
            ngram = tuple(self._token_ids[-NGRAM_SIZE:])
            self._match = self._after.get(ngram)
            self._after[ngram] = end

    def propose(self, max_tokens: int) -> tuple[int, ...]:
        """Return a guess at the next tokens; empty where nothing like it was said before."""
        if self._match is None or not self.is_active or max_tokens < 1:
            return ()
        return tuple(self._token_ids[self._match : self._match + max_tokens])

    def judge(self, num_drafted: int, num_accepted: int) -> None:
        """Note how a draft fared; rest for a while where too few were right."""
        self._num_drafted += num_drafted
        self._num_accepted += num_accepted
        if self._num_drafted < MIN_JUDGED:
            return
        if self._num_accepted < MIN_ACCEPTED_SHARE * self._num_drafted:
            self._rests_until = len(self._token_ids) + REST_TOKENS
        self._num_drafted = self._num_accepted = 0


def num_accepted(drafts: Sequence[int], sampled: Sequence[int]) -> int:
    """Count the drafts that equal what was sampled in their place."""
    for index, draft in enumerate(drafts):
        if sampled[index] != draft:
            return index
    return len(drafts)
