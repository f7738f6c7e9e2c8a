"""The record and the table of outcomes, complete or not."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import asdict

import pytest

from benchmarks.gpu import report
from benchmarks.gpu.limit import CODELLAMA_7B
from benchmarks.gpu.runner import Outcome, Status

MACHINE = Outcome(
    "machine", Status.PASSED, 3.0, findings={"commit": "abc", "hardware": {"gpus": ["H200"]}}
)
CEILINGS = Outcome(
    "ceilings",
    Status.PASSED,
    4.0,
    findings={"copy": {"gb_per_s": 4300.0}, "products": {"bfloat16": {"tflop_per_s": 790.0}}},
)
ROWS = [
    {"what": "decode", "batch": 1, "context": 512, "tokens_per_s": 600.0},
    {"what": "prefill", "tokens": 2048, "tokens_per_s": 30000.0},
]
SPEED = Outcome(
    "speed",
    Status.TIMED_OUT,
    210.0,
    reason="not done after 210 s",
    findings={"shape": asdict(CODELLAMA_7B), "rows": ROWS, "summary": "3.89 GB loaded"},
)
SETTINGS = {"dry": False, "commit": None}


def test_speed_is_told_beside_the_limit_of_the_measured_ceilings():
    decode, prefill = report.speed_rows([MACHINE, CEILINGS, SPEED])
    assert decode["limit"] == pytest.approx(1111, rel=1e-3)
    assert decode["percent_of_limit"] == pytest.approx(54.0, abs=0.1)
    assert prefill["percent_of_limit"] == pytest.approx(49.2, abs=0.1)


def test_speed_without_ceilings_has_no_limit():
    assert report.speed_rows([MACHINE, SPEED]) == ROWS
    assert "600.0    –      –" in report.table([MACHINE, SPEED], is_dry=False)


def test_the_record_says_on_what_and_of_what_it_is():
    record = report.make_record([MACHINE, CEILINGS, SPEED], SETTINGS)
    assert record["commit"] == "abc"
    assert record["hardware"] == {"gpus": ["H200"]}
    assert record["is_dry"] is False
    assert record["parts"]["speed"]["status"] == "timed out"
    assert record["parts"]["speed"]["findings"]["rows"] == ROWS
    assert json.loads(json.dumps(record)) == record


def test_a_commit_given_by_hand_counts_before_the_one_found():
    record = report.make_record([MACHINE], {**SETTINGS, "commit": "given"})
    assert record["commit"] == "given"


def test_a_record_of_nothing_can_be_written(tmp_path):
    crashed = Outcome("machine", Status.CRASHED, 1.0, reason="ended by SIGSEGV")
    file = report.new_file(tmp_path, is_dry=True)
    report.write(file, report.make_record([crashed], {**SETTINGS, "dry": True}))
    assert json.loads(file.read_text())["parts"]["machine"]["reason"] == "ended by SIGSEGV"


def test_the_table_says_what_each_part_found_and_why_it_ended():
    text = report.table([MACHINE, CEILINGS, SPEED], is_dry=False)
    assert "speed     timed out  210.0    3.89 GB loaded; not done after 210 s" in text
    assert "decode, 1 together, context 512" in text
    assert "Dry" not in text


def test_a_dry_table_says_so():
    assert "Dry" in report.table([MACHINE], is_dry=True)


def test_a_second_run_of_a_day_replaces_nothing(tmp_path):
    today = dt.datetime.now(dt.UTC).date().isoformat()
    first = report.new_file(tmp_path / "new", is_dry=False)
    assert first.name == f"gpu-{today}.json"
    first.touch()
    assert report.new_file(tmp_path / "new", is_dry=False).name == f"gpu-{today}-2.json"
    assert report.new_file(tmp_path / "new", is_dry=True).name == f"gpu-dry-{today}.json"


def test_all_is_well_only_where_every_part_passed():
    assert report.all_is_well([MACHINE, CEILINGS])
    assert not report.all_is_well([MACHINE, SPEED])
    assert not report.all_is_well([Outcome("speed", Status.SKIPPED, reason="no time")])


def test_what_misses_its_target_is_shown_with_the_kernels_that_take_its_time():
    kernels = [
        {"kernel": f"kernel_{number}", "launches_a_step": 65.0, "us_a_step": 900.0 - number}
        for number in range(8)
    ]
    rows = [
        {**ROWS[0], "tokens_per_s": 590.0, "profile": kernels},
        {**ROWS[1], "tokens_per_s": 1e5},
    ]
    speed = Outcome("speed", Status.PASSED, findings={**SPEED.findings, "rows": rows})
    text = report.table([MACHINE, CEILINGS, speed], is_dry=False)
    missed = text[text.index("short of its target") :]
    assert "decode, 1 together, context 512  590.0 of 600.0 tok/s" in missed
    assert "kernel_4" in missed
    assert "kernel_5" not in missed
    assert "prefill" not in missed
