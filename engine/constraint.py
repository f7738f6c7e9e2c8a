"""The seam through which structured output enters: what may come next, told token by token.

The engine knows no grammar. Whoever composes the engine's process hands it a `ConstraintFactory`;
what a request carries is text that only the factory understands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

# One bit a token id, 32 to a number, the lowest id lowest; 1 may be picked. Little-endian int32
# words, vocab / 32 of them rounded up, as bytes: what grammar libraries fill and sockets carry.
TokenMask: TypeAlias = bytes

ALLOWS_NOTHING: TokenMask = b""


class Constraint(Protocol):
    """What one sequence may still say. Asked by one thread at a time."""

    def next_masks(self, draft: Sequence[int]) -> Sequence[TokenMask]:
        """Return the tokens that may come next, and those that may after each token of a draft.

        draft: tokens that `num_allowed` has let pass, none of them taken in; 1 mask more than it
        has tokens. Where the grammar can be followed no further, masks allow nothing, and `failure`
        says why.
        """

    def num_allowed(self, draft: Sequence[int]) -> int:
        """Count the tokens that could come next, one after the other, before one could not."""

    def forced(self, most: int) -> Sequence[int]:
        """Return up to so many tokens that the grammar leaves no choice about; often none."""

    def advance(self, token_id: int) -> None:
        """Take in the token that was picked; it was allowed by `next_masks`."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing may follow; the sequence then ends."""

    @property
    def was_cut(self) -> bool:
        """Whether it left the sequence no choice but to end, because its tokens run out."""

    @property
    def failure(self) -> str | None:
        """Why the grammar can be followed no further, in words for whoever wrote it."""


class ConstraintFactory(Protocol):
    """Makes constraints out of what requests carry."""

    def compile(
        self, grammar: str, end_token_ids: Collection[int], max_tokens: int | None
    ) -> Constraint:
        """Raise `InvalidConstraintError` where the text is no grammar.

        end_token_ids: what ends the sequence; may come wherever the grammar may end, and nothing
        else ends it. max_tokens: that the sequence may have; None where the text is not to be led
        to an end before them. May take long; the engine calls it off the step's thread, once a
        sequence.
        """
