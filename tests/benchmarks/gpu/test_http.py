"""What is told of a load: figures of whole answers only."""

from __future__ import annotations

from typing import Any, cast

import pytest

from benchmarks.gpu import http
from benchmarks.gpu.http import Load, Timed
from benchmarks.http_client import StreamedAnswer

LOAD = Load(num_clients=2, prompt_tokens=16, answer_tokens=3, seconds=0.1, vocab_size=500)


class IdleServer:
    """A server whose API uses a millisecond of processor time whenever it is asked."""

    def __init__(self) -> None:
        self._cpu_s = 0.0

    def api_cpu_s(self) -> float:
        self._cpu_s += 0.001
        return self._cpu_s


def answered(*times: float, asked: float = 0.0, is_complete: bool = True) -> Timed:
    answer = StreamedAnswer(200, is_complete=is_complete, completion_tokens=3, times=list(times))
    return Timed(asked, answer)


def measured(*answers: Timed) -> dict[str, Any]:
    async def run() -> list[Timed]:
        return list(answers)

    return http.measure(cast("Any", IdleServer()), LOAD, run)


def test_the_first_token_counts_from_when_it_was_asked_for():
    found = measured(answered(2.1, 2.2, 2.3, asked=2.0), answered(5.3, 5.4, 5.5, asked=5.0))
    assert found["ttft_ms"]["p50"] == pytest.approx(200)
    assert found["between_events_ms"] == {"p50": pytest.approx(100), "p99": pytest.approx(100)}
    assert found["api_cpu_us_per_token"] == pytest.approx(1000 / 6, rel=0.01)


def test_an_answer_that_broke_off_is_counted_as_failed_and_not_timed():
    found = measured(answered(1.0, 1.1, 1.2), answered(9.0, is_complete=False))
    assert (found["num_requests"], found["num_failed"]) == (2, 1)
    assert found["ttft_ms"] == {"p50": 0.0, "p99": 0.0}  # of one alone no percentile is told


def test_no_two_prompts_begin_alike_so_that_no_prefix_is_found():
    assert LOAD.body()["prompt"] != LOAD.body()["prompt"]
    assert len(LOAD.body()["prompt"]) == 16
