"""Replays steps without graphs, by running them anew: for tests, and for a GPU's path on a CPU.

What a graph would do is kept to: results lie in the tensors of the first run, and each replay
overwrites them. So a step whose input is not read from tensors that are filled before a replay, or
whose results are read too late, gives wrong answers here as it would there.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

Result = TypeVar("Result")


class ReplayedStep(Generic[Result]):
    """One step, and the result that it leaves each time."""

    def __init__(self, run: Callable[[], Result], result: Result) -> None:
        self._run = run
        self._result = result

    @property
    def result(self) -> Result:
        return self._result

    def replay(self) -> None:
        """Run the step on what its input holds now."""
        for kept, fresh in zip(_tensors_of(self._result), _tensors_of(self._run()), strict=True):
            kept.copy_(fresh)


class ReplayedRecorder:
    """Records steps as what they are: functions."""

    def __init__(self) -> None:
        self.num_recorded = 0

    def record(self, run: Callable[[], Result]) -> ReplayedStep[Result]:
        """Run the step once and keep its result's tensors."""
        result = run()
        self.num_recorded += 1
        return ReplayedStep(run, result)


def _tensors_of(result: Any) -> Iterator[Tensor]:
    """Find the tensors of a result of dataclasses and sequences, always in the same order."""
    if isinstance(result, torch.Tensor):
        yield result
    elif is_dataclass(result):
        for field in fields(result):
            yield from _tensors_of(getattr(result, field.name))
    elif isinstance(result, (tuple, list)):
        for part in result:
            yield from _tensors_of(part)
