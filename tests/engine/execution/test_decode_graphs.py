from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from structlog.testing import capture_logs

from engine.execution import decode_graphs
from engine.execution.decode_graphs import COMMON_PLANS, DecodeGraphs
from engine.execution.host_ring import DirectMemory
from engine.execution.replayed import ReplayedRecorder
from engine.sampling.row_plan import PlanKey
from engine.sampling.sampler import SampledRows
from engine.sampling.state import Need, SamplingState
from engine.scheduling.batch import Decodes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

GREEDY, DRAWN = COMMON_PLANS
PENALISED = PlanKey(Need.PENALTIES, None)


class FakeStep:
    """A step whose tokens are its rows' slots."""

    def __init__(self, num_rows: int, runs: list[tuple[int, tuple[int, ...], PlanKey]]) -> None:
        self.num_rows = num_rows
        self._runs = runs
        self._slots: tuple[int, ...] = ()

    def fill(self, slots: Sequence[int], positions: Sequence[int]) -> None:
        self._slots = tuple(slots)

    def run(self, key: PlanKey) -> SampledRows:
        self._runs.append((self.num_rows, self._slots, key))
        missing = self.num_rows - len(self._slots)
        tokens = torch.tensor([*self._slots, *[99] * missing])
        fine = torch.ones(self.num_rows, dtype=torch.bool)
        return SampledRows(tokens, fine, fine.clone(), None)


class Graphs(DecodeGraphs):
    """Graphs of fake steps, and every run of them."""

    def __init__(self, recorder: Any, max_num_seqs: int = 5) -> None:
        self.runs: list[tuple[int, tuple[int, ...], PlanKey]] = []
        self.sampling = SamplingState(
            max_num_seqs=max_num_seqs, vocab_size=8, device=torch.device("cpu")
        )
        super().__init__(
            lambda size: FakeStep(size, self.runs),  # type: ignore[arg-type,return-value]
            recorder,
            self.sampling,
            DirectMemory(),
            max_num_seqs=max_num_seqs,
        )

    def tokens(self, slots: tuple[int, ...], key: PlanKey) -> list[int] | None:
        rows = self.run(Decodes(slots, slots, (3,) * len(slots)), key)
        return None if rows is None else rows.tokens.tolist()


def common(max_num_seqs: int = 5) -> Graphs:
    graphs = Graphs(ReplayedRecorder(), max_num_seqs)
    graphs.record_common()
    return graphs


def test_common_plans_are_recorded_for_every_size_the_largest_first():
    with capture_logs() as logs:
        graphs = common()
    assert [(size, key) for size, _, key in graphs.runs] == [
        (size, key) for size in (6, 4, 3, 2, 1) for key in COMMON_PLANS
    ]
    assert {slots for _, slots, _ in graphs.runs} == {()}  # nobody's rows
    done = logs[-1]
    assert done["event"] == "steps_recorded"
    assert done["num_graphs"] == 10
    assert done["took_s"] >= 0


def test_no_size_goes_beyond_the_largest_however_many_sequences_there_may_be():
    assert max(Graphs(ReplayedRecorder(), 1000).sizes) == 256


def test_a_batch_is_replayed_in_the_smallest_size_that_holds_it():
    graphs = common()
    assert graphs.tokens((4, 2, 1, 0, 3), GREEDY) == [4, 2, 1, 0, 3, 99]
    assert graphs.tokens((3,), GREEDY) == [3]
    assert dict(graphs.num_replays) == {(6, GREEDY): 1, (1, GREEDY): 1}


def test_a_graph_that_does_more_than_is_needed_will_do():
    graphs = common()
    assert graphs.tokens((1, 2), PlanKey(Need.SAMPLE, None)) == [1, 2]
    assert dict(graphs.num_replays) == {(2, DRAWN): 1}


def test_of_several_graphs_the_one_that_does_least_is_taken(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(decode_graphs, "MIN_USES", 1)
    graphs = common()
    graphs.tokens((1,), PlanKey(Need.SAMPLE | Need.TOP_K | Need.TOP_P | Need.MIN_P, None))
    graphs.num_replays.clear()
    graphs.tokens((1,), PlanKey(Need.SAMPLE | Need.TOP_K, None))
    assert set(graphs.num_replays) == {(1, DRAWN)}


def test_a_rare_plan_is_recorded_once_it_has_been_wanted_often_enough(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(decode_graphs, "MIN_USES", 3)
    graphs = common()
    answers = [graphs.tokens((2,), PENALISED) for _ in range(4)]
    assert answers == [None, None, [2], [2]]
    assert graphs.sampling.counts is not None  # which the graph reads and writes
    assert graphs.num_recorded == 11


def test_few_graphs_do_for_all_numbers_of_leading_tokens(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(decode_graphs, "MIN_USES", 1)
    graphs = common()
    for num_top in range(21):
        assert graphs.tokens((2,), PlanKey(Need(0), num_top)) == [2]
    assert {key.num_top for _, key in graphs.num_replays} == {0, 1, 5, 20}


def test_rare_graphs_are_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(decode_graphs, "MIN_USES", 1)
    monkeypatch.setattr(decode_graphs, "MAX_RARE_GRAPHS", 1)
    graphs = common()
    assert graphs.tokens((2,), PENALISED) == [2]
    assert graphs.tokens((2,), PlanKey(Need.LOGIT_OFFSETS, None)) is None
    assert graphs.tokens((2,), PENALISED) == [2]


def test_more_rows_than_the_largest_size_holds_are_not_replayed():
    graphs = common(max_num_seqs=300)
    assert graphs.tokens(tuple(range(257)), GREEDY) is None


class FailingRecorder(ReplayedRecorder):
    """Cannot record steps of some sizes."""

    def __init__(self, error: Exception, bad: int) -> None:
        super().__init__()
        self._error, self._bad = error, bad

    def record(self, run: Callable[[], Any]) -> Any:
        recorded = super().record(run)
        if len(recorded.result.tokens) == self._bad:
            raise self._error
        return recorded


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: operation not permitted when stream is capturing"),
    ],
)
def test_a_step_that_cannot_be_recorded_runs_without_a_graph_and_that_is_said_once(
    error: Exception,
):
    graphs = Graphs(FailingRecorder(error, bad=6))
    with capture_logs() as logs:
        graphs.record_common()
        assert [graphs.tokens((4, 2, 1, 0, 3), GREEDY) for _ in range(40)] == [None] * 40
    dropped = [line for line in logs if line["event"] == "graph_dropped"]
    assert [(line["rows"], line["reason"]) for line in dropped] == [(6, str(error))] * 2
    assert "steps of 6 rows are not recorded" in str(graphs.describe().lacking)
    assert graphs.tokens((4, 2), GREEDY) == [4, 2]  # other sizes go on


def test_any_other_error_of_a_recording_is_not_hidden():
    graphs = Graphs(FailingRecorder(RuntimeError("CUDA error: misaligned address"), bad=6))
    with pytest.raises(RuntimeError, match="misaligned"):
        graphs.record_common()
