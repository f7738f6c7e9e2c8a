from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from engine.execution.replayed import ReplayedRecorder

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Outer:
    parts: tuple[Tensor, ...]
    inner: Inner
    nothing: Tensor | None = None


@dataclass(frozen=True)
class Inner:
    total: Tensor


def test_a_replay_leaves_its_result_in_the_tensors_of_the_first_run():
    given = torch.tensor([1.0, 2.0])
    recorded = ReplayedRecorder().record(lambda: Outer((given * 2,), Inner(given.sum())))
    first = recorded.result
    given.copy_(torch.tensor([5.0, 6.0]))
    assert first.parts[0].tolist() == [2.0, 4.0]  # until it is replayed
    recorded.replay()
    assert recorded.result is first
    assert first.parts[0].tolist() == [10.0, 12.0]
    assert first.inner.total.item() == 11.0


def test_input_that_is_not_given_through_its_tensors_is_not_seen():
    """As with a graph: it reads the memory that it was recorded with."""
    given = {"now": torch.tensor([1.0])}
    static = given["now"]
    recorded = ReplayedRecorder().record(lambda: static * 3)
    given["now"] = torch.tensor([2.0])
    recorded.replay()
    assert recorded.result.tolist() == [3.0]
