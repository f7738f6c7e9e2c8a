"""Lets sequences of the background run beside others without slowing these down.

While nothing else is there they run as if they were anything else. Beside others they take part in
every n-th step only, and with few tokens of their prompts; in all other steps they are left out,
and keep slot, blocks and place. What others wait for, a slot or blocks, is theirs at once.

So most steps of the others are as long as without them, and none is longer by more than one small
prompt. The few that are longer come on top of those that are slow by themselves: one in 64 makes
the 95th percentile of the time between two tokens the 96th or 97th of what it was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.scheduling.sequence import SequenceState, turn_of

if TYPE_CHECKING:
    from engine.scheduling.block_manager import BlockManager
    from engine.scheduling.queues import Queues
    from engine.scheduling.residency import Residency

# Of the background's prompts beside others; a step with more of them is a long one on any device.
MAX_PREFILL_TOKENS = 128


class Background:
    """Whether the background takes part in a step, and how it makes way."""

    def __init__(
        self, residency: Residency, blocks: BlockManager, queues: Queues, every_steps: int
    ) -> None:
        """every_steps: of steps beside others, it takes part in one of so many."""
        self._residency = residency
        self._blocks = blocks
        self._queues = queues
        self._every_steps = every_steps
        self._num_steps_without = 0

    @property
    def is_alone(self) -> bool:
        """Whether no other sequence is in the engine, be it running or waiting."""
        return not self._queues.foreground.num_busy_callers

    @property
    def is_due(self) -> bool:
        """Whether it takes part in the next step."""
        return self.is_alone or self._num_steps_without >= self._every_steps - 1

    def note_step(self, *, has_taken_part: bool) -> None:
        """Count a step that is about to be launched."""
        self._num_steps_without = 0 if has_taken_part else self._num_steps_without + 1

    def prefill_budget(self, budget: int) -> int:
        """Return how many tokens of its prompts a step may read that has room for so many."""
        return budget if self.is_alone else min(budget, MAX_PREFILL_TOKENS)

    def make_way(self) -> bool:
        """Take slots from it that others wait for, and let it give back the blocks they lack.

        Whoever is paused here is in no step that will be launched, so its blocks can be had one
        step later at the latest. Returns whether anybody was.
        """
        head = self._queues.foreground.peek()
        if head is None:
            return False
        residency = self._residency
        running = [each for each in residency.running.values() if each.is_background]
        missing_slots = len(self._queues.foreground) - len(residency.free_slots)
        missing_blocks = self._num_missing_blocks() if running else 0
        num_paused = 0
        for sequence in sorted(running, key=turn_of, reverse=True):
            if missing_slots < 1 and missing_blocks < 1:
                break
            residency.pause(sequence)
            num_paused += 1
            missing_slots -= 1
            missing_blocks -= len(self._blocks.block_table(sequence.sequence_id))
        return num_paused > 0

    def _num_missing_blocks(self) -> int:
        """How many blocks those lack who wait, beyond what is free or can be had at once."""
        blocks, residency = self._blocks, self._residency
        wanted = len(residency.running)  # those who run will want one each before long
        for sequence in self._queues.foreground:
            held = (
                len(blocks.block_table(sequence.sequence_id))
                if sequence.state is SequenceState.PAUSED
                else 0
            )
            wanted += blocks.num_blocks_for(sequence.num_known_tokens) - held
        idle = sum(
            len(blocks.block_table(sequence.sequence_id))
            for sequence in residency.paused.values()
            if sequence.is_background
        )
        return wanted - blocks.num_free_blocks - idle
