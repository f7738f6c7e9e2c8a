from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch.nn import functional

from engine.execution.host_reads import HostReads

if TYPE_CHECKING:
    from collections.abc import Callable


def operations_of(run: Callable[[torch.Tensor], object]) -> set[str]:
    x = torch.tensor([1.0, 0.0, 3.0])
    reads = HostReads()
    with torch.inference_mode(), reads:
        run(x)
    return reads.names


READING: list[Callable[[torch.Tensor], object]] = [
    lambda x: x.sum().item(),
    lambda x: bool((x > 1).any()),
    lambda x: x.nonzero(),
    lambda x: x[x > 1],
    lambda x: x.unique(),
    lambda x: torch.equal(x, x + 1),
    lambda x: torch.tensor([1.0, 2.0, 3.0]) + x,
    lambda x: x.masked_select(x > 1),
    lambda x: x.index_put_((x > 1,), x.new_zeros(())),
    lambda x: x.to("meta"),
    lambda x: torch.where(x > 1),
    lambda x: x.repeat_interleave(torch.arange(3)),
    lambda x: functional.one_hot(x.long()),
]


@pytest.mark.parametrize("run", READING)
def test_what_waits_for_a_device_or_crosses_from_one_is_noted(
    run: Callable[[torch.Tensor], object],
):
    assert operations_of(run)


HARMLESS: list[Callable[[torch.Tensor], object]] = [
    lambda x: x + torch.arange(3),
    lambda x: x[torch.zeros_like(x, dtype=torch.int64)],
    lambda x: x.half().to(torch.float32),
    lambda x: torch.where(x > 1, x, 0.0),
    lambda x: x.repeat_interleave(2),
]


@pytest.mark.parametrize("run", HARMLESS)
def test_what_a_graph_holds_is_not(run: Callable[[torch.Tensor], object]):
    assert operations_of(run) == set()
