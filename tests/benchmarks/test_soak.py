"""The soak: half an hour of everything at once, and what its verdict takes for good and bad.

The half hour is run by `scripts/check -m soak`, and by nothing else.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from benchmarks import record
from benchmarks.soak import MINUTES, Leftovers, Sample, columns, judge, run, with_least_memory
from benchmarks.soak_requests import KINDS, OK, Tally

BEFORE = Sample(
    at_s=180.0,
    requests=1000,
    api_mb=200.0,
    engine_mb=900.0,
    engine_mapped_mb=190.0,
    api_descriptors=40,
    engine_descriptors=20,
    api_threads=12,
    engine_threads=8,
)
AFTER = replace(BEFORE, at_s=1800.0, requests=11_000)
NOTHING = Leftovers(model="demo", is_idle=True, problem=None, running=0, waiting=0, blocks_in_use=0)


@pytest.mark.soak
@pytest.mark.timeout(60 * (MINUTES + 15))
def test_half_an_hour_of_everything_leaves_the_server_as_it_was():
    seen = run(MINUTES)
    shown = {**seen, "series": None}
    assert seen["verdict"]["passed"], json.dumps(shown, indent=1, ensure_ascii=False)


def test_a_server_that_is_as_before_passes():
    assert judge(BEFORE, AFTER, [NOTHING], Tally())["passed"]


@pytest.mark.parametrize(
    ("after", "left"),
    [
        (replace(AFTER, api_mb=210.0), NOTHING),  # 10 MB in 10 000 requests
        (replace(AFTER, engine_mb=910.0), NOTHING),
        (replace(AFTER, api_descriptors=44), NOTHING),
        (replace(AFTER, engine_descriptors=24), NOTHING),
        (replace(AFTER, api_threads=15), NOTHING),
        (AFTER, replace(NOTHING, blocks_in_use=1)),
        (AFTER, replace(NOTHING, running=1)),
        (AFTER, replace(NOTHING, is_idle=False)),
        (AFTER, replace(NOTHING, problem="a block is lost")),
    ],
)
def test_a_server_that_keeps_something_fails(after, left):
    assert not judge(BEFORE, after, [NOTHING, left], Tally())["passed"]


def test_less_than_a_megabyte_in_a_thousand_requests_is_allowed():
    verdict = judge(BEFORE, replace(AFTER, api_mb=209.0), [NOTHING], Tally())
    assert verdict["MB more in 1000 requests"] == {"api": 0.9, "engine": 0.0}
    assert verdict["passed"]


@pytest.mark.parametrize("status", [500, 503, 599])
def test_an_answer_that_must_not_be_fails(status):
    tally = Tally()
    tally.count("chat", 200, OK, "")
    tally.count("leaves", None, OK, "")
    assert judge(BEFORE, AFTER, [NOTHING], tally)["passed"]
    tally.count("chat", status, OK, "an error")
    assert not judge(BEFORE, AFTER, [NOTHING], tally)["passed"]
    assert tally.wrong == [f"chat: {status} an error"]


def test_of_several_looks_the_least_memory_counts_and_the_last_of_all_else():
    looks = [
        replace(BEFORE, api_mb=201.0, engine_mb=899.0, api_threads=11),
        replace(BEFORE, api_mb=199.0, engine_mb=901.0, api_threads=12),
        replace(AFTER, api_mb=200.0, engine_mb=900.0, api_threads=13),
    ]
    assert with_least_memory(looks) == replace(AFTER, api_mb=199.0, engine_mb=899.0, api_threads=13)


def test_kinds_have_names_of_their_own():
    assert len({kind.name for kind in KINDS}) == len(KINDS) > 20


def test_a_result_has_a_line_for_each_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    series = columns([BEFORE, AFTER])
    text = record.write("soak", {}, [{"series": series}]).read_text()
    assert '"api_mb": [200.0, 200.0]' in text
    assert json.loads(text)["rows"] == [{"series": series}]
