"""All that a step sends from the host to its device goes through here.

On a GPU: through pinned memory that was made once, in sections that steps use in turn, so that
neither making it nor copying from it keeps the host waiting. On the CPU: nothing is copied. What
comes back is `step_results`' business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch

from engine.execution.pinned import Sections

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from engine.execution.pinned import HostMemory, Section

# Two steps are in flight at most, so with three the oldest is always done.
NUM_SECTIONS = 3


class ToDevice(Protocol):
    """How a step's numbers get to where it computes."""

    @property
    def is_direct(self) -> bool:
        """Whether what is sent stays the host's own memory."""

    def begin_step(self) -> None:
        """Begin a step; nothing may be sent outside of one."""

    def send(self, array: NDArray[Any]) -> Tensor:
        """Give the device an array, in a tensor of the same shape and type.

        The array is not to be changed afterwards: on a CPU the tensor is the same memory.
        """

    def send_into(self, target: Tensor, array: NDArray[Any]) -> None:
        """Overwrite a tensor of the device with an array of its shape and type."""

    def end_step(self) -> None:
        """End the step: all of the device's work that reads what was sent has been queued."""


class DirectMemory:
    """The CPU's own way: its tensors are the arrays."""

    is_direct = True

    def begin_step(self) -> None:
        """Do nothing."""

    def send(self, array: NDArray[Any]) -> Tensor:
        """Look at the array as a tensor."""
        return torch.from_numpy(array)

    def send_into(self, target: Tensor, array: NDArray[Any]) -> None:
        """Copy the array."""
        target.copy_(torch.from_numpy(array))

    def end_step(self) -> None:
        """Do nothing."""


class HostRing:
    """Pinned memory for what goes to a GPU, a section a step."""

    is_direct = False

    def __init__(self, device: torch.device, memory: HostMemory, num_bytes: int) -> None:
        """num_bytes: of each section; a step that sends more makes its section grow."""
        self._device = device
        self._sections = Sections(memory, num_bytes, count=NUM_SECTIONS, name="steps' input")
        self._section: Section | None = None

    @property
    def num_waits(self) -> int:
        """How many steps had to wait until the device was done with their section."""
        return self._sections.num_waits

    @property
    def num_growths(self) -> int:
        """How often a section was too small."""
        return self._sections.num_growths

    def begin_step(self) -> None:
        """Take the next section; waits where its last step has not run, which none should."""
        self._section = self._sections.next()

    def send(self, array: NDArray[Any]) -> Tensor:
        """Queue a copy to a fresh tensor, without waiting for it."""
        return self._stage(array).to(self._device, non_blocking=True, copy=True)

    def send_into(self, target: Tensor, array: NDArray[Any]) -> None:
        """Queue a copy to a tensor that the device has, without waiting for it."""
        target.copy_(self._stage(array), non_blocking=True)

    def end_step(self) -> None:
        """Note behind which work the section is free again."""
        self._require().end()
        self._section = None

    def _stage(self, array: NDArray[Any]) -> Tensor:
        values = torch.from_numpy(array)
        return self._require().take(values.shape, values.dtype).copy_(values)

    def _require(self) -> Section:
        if self._section is None:
            raise RuntimeError("nothing is sent outside a step; call `begin_step` first")
        return self._section


def section_bytes(
    *, max_num_seqs: int, max_num_batched_tokens: int, max_model_len: int, block_size: int
) -> int:
    """How much a step sends that starts every slot and reads as many tokens as it may.

    Grammar masks of many rows are not foreseen, nor the ends of several prompts of full length.
    """
    per_token = 8 * 8  # ids, positions and places; rows of logits; targets, drafts and bans
    per_sequence = 8 * (2 * -(-max_model_len // block_size) + 64)  # a table, and its settings
    seen = 8 * max_model_len  # where all lies that the end of a long prompt sees
    return 2**20 + per_token * max_num_batched_tokens + per_sequence * max_num_seqs + seen
