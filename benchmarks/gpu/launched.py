"""Which kernels steps launch, by name, beside those that the production path should.

A replayed graph launches nothing that is counted, so what a graph holds is told by the same steps
run as they come; that they are replayed, by there being no launches.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from benchmarks.gpu.streams import each_step, greedy
from engine.kernels import launches as engine_launches
from loaders.model.kernels import launches as loader_launches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.core import Engine

# A second kernel where a row's tokens are split, which follows from the device.
_MAY_BE = frozenset({"paged_decode_merge"})


def expected_launches(num_layers: int) -> Counter[str]:
    """Return what a decode step launches: the head is not packed, and the last norm is its."""
    return Counter(
        add_norm=2 * num_layers + 1,
        rotate_and_store=num_layers,
        paged_decode=num_layers,
        silu_mul=num_layers,
        linear_few_rows=4 * num_layers,
    )


def launches_by_step(
    engine: Engine, prompt: Sequence[int], num_tokens: int
) -> tuple[Counter[str], Counter[str]]:
    """Return what the step that read a prompt launched, and what the last decode step did."""
    steps: list[Counter[str]] = []
    for step in each_step(engine, [prompt], greedy(num_tokens)):
        with engine_launches.counted() as own, loader_launches.counted() as linear:
            step()
        steps.append(own + linear)
    # Where steps overlap, the last call only collects.
    launching = [found for found in steps if found]
    return (launching[0], launching[-1]) if launching else (Counter(), Counter())


def differences(found: Counter[str], expected: Counter[str]) -> list[str]:
    """Say where launches are other than they should be."""
    names = sorted((found.keys() | expected.keys()) - _MAY_BE)
    return [
        f"{name} {found[name]} times, expected {expected[name]}"
        for name in names
        if found[name] != expected[name]
    ]
