"""The parts of the GPU program, in the order in which they run.

Only their names and times: what a part does is its module's, which is imported in the part's own
process, so that the process that watches over them needs nothing but the standard library.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """One thing to find out, in a process of its own."""

    name: str
    about: str
    module: str  # has `run(context: Context) -> None`
    limit_s: float  # ended after so long
    least_s: float = 0.0  # not begun when less is left


PARTS = (
    # The first process to import PyTorch waits for a cold disk.
    Part("machine", "versions and device", "benchmarks.gpu.machine", limit_s=90, least_s=10),
    Part("ceilings", "copies and matrix products", "benchmarks.gpu.ceilings", 45, 15),
    Part("kernels", "each kernel beside its reference", "benchmarks.gpu.kernels", 90, 25),
    Part("tokens", "a two-layer model beside its reference", "benchmarks.gpu.tokens", 120, 25),
    Part("speed", "a model of 7B's shape, on the engine", "benchmarks.gpu.speed", 150, 60),
    Part("linears", "products in a graph, by shape and rows", "benchmarks.gpu.linears", 75, 20),
    Part("http", "load on the real server", "benchmarks.gpu.http", 110, 60),
    Part("tests", "tests that need a GPU", "benchmarks.gpu.device_tests", 120, 30),
    Part("peers", "Transformers on the same weights", "benchmarks.gpu.peers", 75, 30),
    Part("sanitizer", "wrong memory accesses", "benchmarks.gpu.sanitizer", 90, 30),
)
BY_NAME = {part.name: part for part in PARTS}
# Says on what the others ran, so it runs whichever are asked for.
ALWAYS = "machine"
