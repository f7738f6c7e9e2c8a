"""How a step is recorded once and replayed, and who does it.

A recorded step reads its input from tensors that are filled before each replay, and leaves its
results in tensors that the next replay overwrites. Here: what the runner needs of it, and CUDA's
graphs. Tests replay on the CPU by running the step anew into the same tensors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

Result = TypeVar("Result")
Given = TypeVar("Given", covariant=True)
# PyTorch asks for runs before a capture, so that whatever is made at the first one is made. So are
# Triton's binaries, which nothing may load while a graph is captured: they are told apart by the
# tile of rows, the sizes of layers and how attention is split, all of which follow from the step's
# number of rows, and each number of rows warms up for itself.
_WARM_UP_RUNS = 2


class Recorded(Protocol[Given]):
    """One step, recorded."""

    @property
    def result(self) -> Given:
        """What the step gave; its tensors hold what the last replay left in them."""

    def replay(self) -> None:
        """Run the step on what its input tensors hold now, without waiting for it."""


class GraphRecorder(Protocol):
    """Records steps; those recorded share the memory of their temporaries."""

    def record(self, run: Callable[[], Result]) -> Recorded[Result]:
        """Record a step.

        `run` does what a graph can hold and nothing else. It may be run several times, so what it
        changes must be told by its input alone; it has not run on the present input afterwards.
        """


class CudaGraph(Generic[Result]):
    """One captured step."""

    def __init__(self, graph: torch.cuda.CUDAGraph, result: Result) -> None:
        self._graph = graph
        self._result = result

    @property
    def result(self) -> Result:
        return self._result

    def replay(self) -> None:
        self._graph.replay()


class CudaGraphRecorder:
    """Captures CUDA graphs into one pool of memory; the largest should be captured first."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        # One for all: cuBLAS keeps a workspace of up to 32 MiB for every stream that it ever ran
        # on, and the allocator what was freed there.
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def record(self, run: Callable[[], Result]) -> CudaGraph[Result]:
        """Warm up on a stream of its own, then capture there; waits for the device."""
        try:
            return self._record(run)
        except BaseException:
            # Where a capture was invalidated the allocator may take the pool to be in use for good,
            # and refuse every later capture into it. Graphs that there are keep theirs.
            self._pool = torch.cuda.graph_pool_handle()
            raise

    def _record(self, run: Callable[[], Result]) -> CudaGraph[Result]:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        # Left whatever happens: ending an invalid capture raises before `torch.cuda.graph` has left
        # its stream, and all later steps would run on it.
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UP_RUNS):
                run()
            graph = torch.cuda.CUDAGraph()
            # Of this thread's calls only: others copy meanwhile, as the live check's reader does,
            # and either would fail by default.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                result = run()
        current.wait_stream(self._stream)
        return CudaGraph(graph, result)
