"""Has masks worked out while the device computes the step whose tokens they decide between.

A mask is needed when a step's logits are there, and can be begun when the tokens before it are
known. In between lies the model's whole pass; so a thread of its own works meanwhile. Grammar
libraries let go of Python's lock for it.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from engine.constraint import ALLOWS_NOTHING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.constraint import Constraint, TokenMask

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class PendingMasks:
    """The masks of one sequence in one step: one for each place that is sampled."""

    _future: Future[Sequence[TokenMask]]

    def result(self) -> Sequence[TokenMask]:
        """Wait for them."""
        return self._future.result()


class MaskReader:
    """Asks constraints for their masks, one after the other."""

    def __init__(self) -> None:
        # Starts its thread with the first constraint, and ends it when nobody holds the reader.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="masks")

    def begin(self, constraint: Constraint, draft: Sequence[int]) -> PendingMasks:
        """Begin to ask; until the result is there nobody else may ask the constraint anything."""
        return PendingMasks(self._thread.submit(_masks, constraint, draft))


def _masks(constraint: Constraint, draft: Sequence[int]) -> Sequence[TokenMask]:
    try:
        return constraint.next_masks(draft)
    except Exception:
        # A fault of whatever follows grammars is that sequence's end, not the engine's.
        log.exception("constraint_failed")
        return [ALLOWS_NOTHING] * (1 + len(draft))
