"""Replayed steps beside the same steps as they come, right and wrong on purpose."""

from __future__ import annotations

import pytest

from engine.config import EngineConfig
from engine.core import Engine
from engine.execution.replayed import ReplayedRecorder, ReplayedStep, _tensors_of
from engine.step_test.graphs import check_graphs
from engine.step_test.step_check import Part
from tests.engine.tiny_models import FUSED, make_model

UNIT = 2**-24


def make_engine(max_num_seqs: int = 6) -> Engine:
    config = EngineConfig(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=128,
        max_model_len=96,
        num_blocks=48,
        enforce_eager=False,
    )
    return Engine(make_model(FUSED["llama"]), config)


def checks(engine: Engine, max_num_seqs: int = 6):
    return list(check_graphs(engine, max_num_seqs, UNIT))


def test_right_replays_pass_alone_and_with_rows_that_are_nobodys():
    engine = make_engine()
    found = checks(engine)
    assert [check.name for check in found] == ["graph of 1 rows", "graph of 5 rows"]
    assert all(check.passed and check.part is Part.GRAPHS for check in found)
    replays = engine._runner._graphs.num_replays
    # Both the graphs that tell tokens alone and those that tell logprobs, of 1 row and of 5 in 6.
    assert {(rows, key.num_top is None) for rows, key in replays} == {
        (1, True),
        (1, False),
        (6, True),
        (6, False),
    }


def test_an_engine_that_replays_nothing_passes_no_test_of_graphs():
    config = EngineConfig(
        max_num_seqs=2,
        max_num_batched_tokens=64,
        max_model_len=96,
        num_blocks=16,
        enforce_eager=True,
        step_kernels="torch",
    )
    found = checks(Engine(make_model(FUSED["llama"]), config), max_num_seqs=2)
    assert [(check.passed, check.detail) for check in found] == [(None, "nothing is recorded")] * 2


def test_no_more_rows_are_tried_than_sequences_may_run():
    found = checks(make_engine(max_num_seqs=1), max_num_seqs=1)
    assert [check.name for check in found] == ["graph of 1 rows"]


class StuckInput:
    """Records what a step was given then, and replays that: as with a host's number inside."""

    def __init__(self, replay):
        self._replay = replay

    def record(self, run):
        recorded = ReplayedRecorder().record(run)
        recorded.replay = self._replay.__get__(recorded)
        return recorded


def stale(_):
    """Leaves the results of the recording."""


def once(recorded):
    """Leaves the results of the first replay for good."""
    if not vars(recorded).get("is_done"):
        recorded.is_done = True
        ReplayedStep.replay(recorded)


def one_row_too_far(recorded):
    ReplayedStep.replay(recorded)
    for tensor in _tensors_of(recorded.result):
        tensor.copy_(tensor.roll(1, dims=0))


@pytest.mark.parametrize(("wrong", "found_by"), [(stale, 0), (once, 0), (one_row_too_far, 1)])
def test_what_a_replay_gets_wrong_is_found(monkeypatch, wrong, found_by):
    monkeypatch.setattr("engine.execution.path.ReplayedRecorder", lambda: StuckInput(wrong))
    found = checks(make_engine())[found_by]
    assert found.passed is False
    assert found.worst > 3
    assert "token" in found.detail or "logprobs" in found.detail


def test_afterwards_steps_are_recorded_no_sooner_than_before():
    engine = make_engine()
    graphs = engine._runner._graphs
    before = graphs._min_uses
    checks(engine)
    assert graphs._min_uses == before
    assert not graphs._is_direct
