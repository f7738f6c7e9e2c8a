"""Has masks worked out while the device computes the step whose tokens they decide between.

A mask is needed when a step's logits are there, and can be begun when the tokens before it are
known. In between lies the model's whole pass; so a thread of its own works meanwhile. Grammar
libraries let go of Python's lock for it.

Some grammars take longer over a mask than a step takes. Steps go on without whoever follows one,
until its mask is there: it is asked for before the step, in a thread for such alone.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import structlog

from engine.constraint import ALLOWS_NOTHING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.constraint import Constraint, TokenMask

log = structlog.get_logger(__name__)

# Of processor time, for one mask. Usual ones take 5 to 400 µs, a step of eight streams on two cores
# 35 ms (2026-11).
SLOW_MASK_S = 0.005


@dataclass(frozen=True, slots=True, eq=False)
class PendingMasks:
    """The masks of one sequence in one step: one for each place that is sampled."""

    _future: Future[Sequence[TokenMask]]

    @property
    def is_done(self) -> bool:
        """Whether nobody would wait for them."""
        return self._future.done()

    def result(self) -> Sequence[TokenMask]:
        """Wait for them."""
        return self._future.result()


class Masked(Protocol):
    """A sequence, as far as its masks are concerned."""

    constraint: Constraint | None
    are_masks_slow: bool  # the last one was; written by the threads that ask
    is_forcing_slow: bool  # asking what it demands once took long
    masks_ahead: PendingMasks | None  # of its next step, which waits for them


class MaskReader:
    """Asks constraints for their masks; each in the order in which it is told to."""

    def __init__(self) -> None:
        # Start with the first constraint, and end when nobody holds the reader.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="masks")
        self._slow_thread = ThreadPoolExecutor(1, thread_name_prefix="slow-masks")

    def is_ready(self, sequence: Masked) -> bool:
        """Whether a step would not wait long for a sequence's masks; else begin to ask for them."""
        if sequence.constraint is None or not (sequence.are_masks_slow or sequence.masks_ahead):
            return True
        if sequence.masks_ahead is None:
            asked = self._slow_thread.submit(_masks, sequence, sequence.constraint, ())
            sequence.masks_ahead = PendingMasks(asked)
        return sequence.masks_ahead.is_done

    @staticmethod
    def forced(sequence: Masked, constraint: Constraint, most: int) -> Sequence[int]:
        """Ask for tokens that leave no choice; never again where everybody waited long for it."""
        if sequence.is_forcing_slow:
            return ()
        began = time.thread_time()
        forced = constraint.forced(most)
        sequence.is_forcing_slow = time.thread_time() - began > SLOW_MASK_S
        return forced

    def begin_for(self, sequence: Masked, draft: tuple[int, ...]) -> PendingMasks | None:
        """Begin to ask what a sequence follows; None where it follows nothing.

        draft: none where masks were asked for ahead. Until the result is there nobody else may ask
        the constraint anything.
        """
        if sequence.constraint is None:
            return None
        ahead, sequence.masks_ahead = sequence.masks_ahead, None
        if ahead is not None:
            return ahead
        return PendingMasks(self._thread.submit(_masks, sequence, sequence.constraint, draft))


def _masks(sequence: Masked, constraint: Constraint, draft: Sequence[int]) -> Sequence[TokenMask]:
    began = time.thread_time()
    try:
        return constraint.next_masks(draft)
    except Exception:
        # A fault of whatever follows grammars is that sequence's end, not the engine's.
        log.exception("constraint_failed")
        return [ALLOWS_NOTHING] * (1 + len(draft))
    finally:
        sequence.are_masks_slow = time.thread_time() - began > SLOW_MASK_S * (1 + len(draft))
