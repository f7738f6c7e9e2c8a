"""The decode steps of an engine that are recorded, and which of them a batch takes.

A recorded step has a number of rows and a sampling plan; nothing else of it is fixed. The common
plans are recorded for every size before the first request, the largest size first, because all
share one pool of memory. A rare plan is recorded once it has been wanted a few times. What is not
recorded, or could not be, is run as it comes by whoever asks here.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import structlog

from engine.execution.device_faults import is_failed_capture, is_out_of_memory
from engine.execution.static_decode import ROW_BUCKETS, row_bucket
from engine.sampling.row_plan import PlanKey
from engine.sampling.state import Need

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from engine.execution.graphs import GraphRecorder, Recorded
    from engine.execution.host_ring import ToDevice
    from engine.execution.static_decode import StaticDecode
    from engine.sampling.sampler import SampledRows
    from engine.sampling.state import SamplingState
    from engine.scheduling.batch import Decodes

log = structlog.get_logger(__name__)

COMMON_PLANS = (
    PlanKey(Need(0), None),  # all rows greedy
    PlanKey(Need.SAMPLE | Need.TOP_K | Need.TOP_P, None),
)
# A recording holds up every request for some tenths of a second, so it must come to be worth it.
MIN_USES = 16
# Beyond these, rare plans run as they come: each graph keeps some memory for good.
MAX_RARE_GRAPHS = 64
# How many leading tokens a recorded step tells of: one graph does for all that ask for fewer.
_TOLD = (0, 1, 5, 20)


@dataclass(frozen=True, slots=True)
class Recordings:
    """What an engine records and replays."""

    num_replays: int  # since it was made
    lacking: str | None = None  # what of it should be recorded and is not, in words


class DecodeGraphs:
    """Records decode steps and replays them."""

    def __init__(
        self,
        make_step: Callable[[int], StaticDecode],
        recorder: GraphRecorder,
        sampling: SamplingState,
        to_device: ToDevice,
        *,
        max_num_seqs: int,
    ) -> None:
        """make_step: gives the step of so many rows."""
        self._make_step = make_step
        self._recorder = recorder
        self._sampling = sampling
        self._to_device = to_device
        most = min(row_bucket(max_num_seqs), ROW_BUCKETS[-1])
        self.sizes = tuple(size for size in ROW_BUCKETS if size <= most)
        self._steps: dict[int, StaticDecode] = {}  # by rows
        self._recorded: dict[int, dict[PlanKey, Recorded[SampledRows]]] = {}
        self._uses: Counter[tuple[int, PlanKey]] = Counter()  # of what is not recorded
        self.dropped: set[tuple[int, PlanKey]] = set()  # could not be recorded
        self.num_replays: Counter[tuple[int, PlanKey]] = Counter()
        self._is_direct = False
        self._min_uses = MIN_USES

    @property
    def num_recorded(self) -> int:
        """How many steps there are."""
        return sum(map(len, self._recorded.values()))

    def describe(self) -> Recordings:
        """Count replays, and say what could not be recorded."""
        lacking = None
        if self.dropped:
            rows = ", ".join(map(str, sorted({size for size, _ in self.dropped})))
            lacking = f"steps of {rows} rows are not recorded: recording them failed (see the log)"
        return Recordings(self.num_replays.total(), lacking)

    def record_common(self) -> None:
        """Record what most requests need, in every size; takes seconds, before the first one."""
        started = time.monotonic()
        plans = [(size, key) for size in reversed(self.sizes) for key in COMMON_PLANS]
        log.info("recording_steps", num_graphs=len(plans), largest=max(self.sizes))
        self._to_device.begin_step()
        for size, key in plans:
            self._record(size, key)
        self._to_device.end_step()
        log.info(
            "steps_recorded",
            num_graphs=self.num_recorded,
            num_dropped=len(self.dropped),
            took_s=round(time.monotonic() - started, 2),
        )

    @contextmanager
    def directly(self) -> Iterator[None]:
        """Run the same steps as they come, recording and replaying nothing: for a test."""
        self._is_direct = True
        try:
            yield
        finally:
            self._is_direct = False

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Record a rare plan when it is first wanted: for a test."""
        self._min_uses = 1
        try:
            yield
        finally:
            self._min_uses = MIN_USES

    def run(self, decodes: Decodes, key: PlanKey) -> SampledRows | None:
        """Run a step, a row for each sequence and some behind them that are nobody's.

        key: what sampling takes. Its tensors are overwritten by the next step of the same graph.
        Returns None where the step must be run as it comes; nothing is done then.
        """
        size = row_bucket(len(decodes))
        if size > self.sizes[-1]:
            return None
        if self._is_direct:
            self._sampling.reserve(key.needs)
            step = self._step_of(size)
            step.fill(decodes.slots, decodes.positions)
            return step.run(key)
        found = self._find(size, key) or self._record_if_worth_it(size, key)
        if found is None:
            return None
        kind, recorded = found
        self._steps[size].fill(decodes.slots, decodes.positions)
        recorded.replay()
        self.num_replays[size, kind] += 1
        return recorded.result

    def _find(self, size: int, key: PlanKey) -> tuple[PlanKey, Recorded[SampledRows]] | None:
        """Find the graph that does least beyond what is needed."""
        those = self._recorded.get(size, {})
        best = min((kind for kind in those if kind.covers(key)), key=_work_of, default=None)
        return None if best is None else (best, those[best])

    def _record_if_worth_it(
        self, size: int, key: PlanKey
    ) -> tuple[PlanKey, Recorded[SampledRows]] | None:
        rare = _widened(key)
        if (size, rare) in self.dropped:
            return None
        self._uses[size, rare] += 1
        is_full = self.num_recorded >= len(self.sizes) * len(COMMON_PLANS) + MAX_RARE_GRAPHS
        if is_full or self._uses[size, rare] < self._min_uses:
            return None
        recorded = self._record(size, rare)
        return None if recorded is None else (rare, recorded)

    def _step_of(self, size: int) -> StaticDecode:
        if size not in self._steps:
            self._steps[size] = self._make_step(size)
        return self._steps[size]

    def _record(self, size: int, key: PlanKey) -> Recorded[SampledRows] | None:
        """Record a step; None where that cannot be, which is said once."""
        step = self._step_of(size)
        # Runs while recording write last tokens and counts, so no row may be anybody's.
        step.fill((), ())
        # A graph holds on to the tables that it reads.
        self._sampling.reserve(key.needs)
        try:
            recorded = self._recorder.record(partial(step.run, key))
        except RuntimeError as error:
            if not (is_out_of_memory(error) or is_failed_capture(error)):
                raise
            self.dropped.add((size, key))
            log.warning(
                "graph_dropped",
                rows=size,
                plan=str(key.needs),
                reason=str(error),
                consequence="such steps run without a graph, slower",
            )
            return None
        self._recorded.setdefault(size, {})[key] = recorded
        return recorded


def _widened(key: PlanKey) -> PlanKey:
    """Round up what a rare graph tells, so that few graphs do for all."""
    if key.num_top is None:
        return key
    return replace(key, num_top=next((told for told in _TOLD if told >= key.num_top), key.num_top))


def _work_of(key: PlanKey) -> tuple[int, int]:
    """Order plans by how much they do."""
    return key.needs.value.bit_count(), -1 if key.num_top is None else key.num_top
