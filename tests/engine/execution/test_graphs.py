from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import torch

from engine.execution.graphs import CudaGraphRecorder

if TYPE_CHECKING:
    from collections.abc import Iterator

DEVICE = torch.device("cuda", 0)
INVALID = "CUDA error: operation failed due to a previous error during capture"


class FakeStream:
    """A stream that only knows what it waited for."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.waited_for: list[str] = []

    def wait_stream(self, other: FakeStream) -> None:
        self.waited_for.append(other.name)


class FakeGraph:
    """A graph that counts its replays."""

    def __init__(self) -> None:
        self.num_replays = 0

    def replay(self) -> None:
        self.num_replays += 1


class FakeCuda:
    """What of `torch.cuda` recording takes; its captures end as PyTorch's do."""

    def __init__(self) -> None:
        self.main = FakeStream("main")
        self.current = self.main
        self.num_streams = 0
        self.num_pools = 0
        self.captures: list[dict[str, Any]] = []
        self.is_invalid = False

    def make_stream(self, device: torch.device) -> FakeStream:
        assert device == DEVICE
        self.num_streams += 1
        return FakeStream("side")

    def make_pool(self) -> tuple[int, int]:
        self.num_pools += 1
        return 0, self.num_pools

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, graph: FakeGraph, **how: Any) -> Iterator[None]:
        self.captures.append(how)
        self.current = how["stream"]
        yield
        if self.is_invalid:
            raise RuntimeError(INVALID)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    for name, stand_in in {
        "Stream": fake.make_stream,
        "CUDAGraph": FakeGraph,
        "graph_pool_handle": fake.make_pool,
        "current_stream": lambda device: fake.current,
        "stream": fake.stream,
        "graph": fake.graph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return fake


def test_a_step_is_warmed_up_and_captured_on_one_stream_that_all_recordings_share(cuda: FakeCuda):
    recorder = CudaGraphRecorder(DEVICE)
    ran_on: list[str] = []
    for _ in range(3):
        recorder.record(lambda: ran_on.append(cuda.current.name))
    assert ran_on == ["side"] * 9
    assert cuda.num_streams == 1
    assert cuda.main.waited_for == ["side"] * 3
    assert cuda.current is cuda.main


def test_all_graphs_share_a_pool_and_other_threads_may_use_the_device_meanwhile(cuda: FakeCuda):
    recorder = CudaGraphRecorder(DEVICE)
    for _ in range(2):
        recorder.record(lambda: None)
    assert [how["pool"] for how in cuda.captures] == [(0, 1), (0, 1)]
    assert {how["capture_error_mode"] for how in cuda.captures} == {"thread_local"}


def test_after_an_invalid_capture_steps_run_on_their_stream_and_another_is_captured_elsewhere(
    cuda: FakeCuda,
):
    recorder = CudaGraphRecorder(DEVICE)
    cuda.is_invalid = True
    with pytest.raises(RuntimeError, match="during capture"):
        recorder.record(lambda: None)
    assert cuda.current is cuda.main
    cuda.is_invalid = False
    recorder.record(lambda: None)
    assert [how["pool"] for how in cuda.captures] == [(0, 1), (0, 2)]


def test_what_was_recorded_gives_its_result_and_is_replayed(cuda: FakeCuda):
    recorded = CudaGraphRecorder(DEVICE).record(lambda: "result")
    recorded.replay()
    assert recorded.result == "result"
