"""What only a card says of recording: captures that fail, and threads that copy meanwhile."""

from __future__ import annotations

import threading

import pytest
import torch

from engine.execution.device_faults import find_fault, is_failed_capture
from engine.execution.graphs import CudaGraphRecorder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DEVICE = torch.device("cuda", 0)


@torch.inference_mode()
def test_a_capture_that_fails_harms_neither_later_steps_nor_later_captures():
    recorder = CudaGraphRecorder(DEVICE)
    given = torch.zeros(4, device=DEVICE)
    first = recorder.record(lambda: given + 1)

    def wait_in_a_capture() -> torch.Tensor:
        total = given.sum()
        if torch.cuda.is_current_stream_capturing():
            total.item()
        return total

    with pytest.raises(RuntimeError) as caught:
        recorder.record(wait_in_a_capture)
    assert is_failed_capture(caught.value)
    assert find_fault(caught.value) is None
    assert torch.cuda.current_stream(DEVICE) == torch.cuda.default_stream(DEVICE)

    second = recorder.record(lambda: given * 2)
    given.fill_(3)
    first.replay()
    second.replay()
    assert first.result.tolist() == [4.0] * 4
    assert second.result.tolist() == [6.0] * 4


@torch.inference_mode()
def test_another_thread_may_copy_while_a_step_is_captured():
    """As the live check's reader does."""
    given, numbers = torch.zeros(4, device=DEVICE), torch.arange(1000.0)
    copied: list[torch.Tensor] = []

    def run() -> torch.Tensor:
        if torch.cuda.is_current_stream_capturing():
            other = threading.Thread(target=lambda: copied.append(numbers.to(DEVICE)))
            other.start()
            other.join()
        return given + 1

    recorded = CudaGraphRecorder(DEVICE).record(run)
    recorded.replay()
    assert recorded.result.tolist() == [1.0] * 4
    assert torch.equal(copied[0].cpu(), numbers)


@torch.inference_mode()
def test_steps_that_share_a_pool_leave_each_others_results_where_they_are():
    recorder = CudaGraphRecorder(DEVICE)
    given = torch.ones(1024, 1024, device=DEVICE)
    steps = [recorder.record(lambda n=n: ((given @ given) * n).sum()) for n in (3, 2, 1)]
    for step in steps:
        step.replay()
    assert [float(step.result) for step in steps] == [n * 1024.0**3 for n in (3, 2, 1)]
