"""The seam through which structured output enters: what may come next, told token by token.

The engine knows no grammar. Whoever composes the engine's process hands it a `ConstraintFactory`;
what a request carries is text that only the factory understands.
"""

from __future__ import annotations

from typing import Protocol, TypeAlias

# One bit a token id, 32 to a number, the lowest id lowest; 1 may be picked. Little-endian int32
# words, vocab / 32 of them rounded up, as bytes: what grammar libraries fill and sockets carry.
TokenMask: TypeAlias = bytes


class Constraint(Protocol):
    """What one sequence may still say."""

    def next_mask(self) -> TokenMask | None:
        """Return the tokens that may come next; None allows all."""

    def advance(self, token_id: int) -> None:
        """Take in the token that was picked; it was allowed by `next_mask`."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing may follow; the sequence then ends."""


class ConstraintFactory(Protocol):
    """Makes constraints out of what requests carry."""

    def compile(self, grammar: str) -> Constraint:
        """Raise `InvalidConstraintError` where the text is no grammar.

        May take long; the engine calls it off the step's thread, once a sequence.
        """
