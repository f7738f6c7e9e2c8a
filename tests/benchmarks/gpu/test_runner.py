"""Parts in processes of their own: what ends one leaves the next alone."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import pytest

from benchmarks.gpu.parts import Part
from benchmarks.gpu.runner import Outcome, Status, run_parts
from tests.watching import is_running

if TYPE_CHECKING:
    from pathlib import Path

SAVE = "open(sys.argv[1], 'w').write(json.dumps({'rows': [1]}))"


def run_scripts(
    *scripts: str, budget_s: float = 60.0, limit_s: float = 30.0, least_s: float = 0.0
) -> tuple[list[Outcome], list[str]]:
    """Run each script as a part; return outcomes and all that was said."""
    by_name = {str(number): script for number, script in enumerate(scripts)}
    parts = [Part(name, "", "", limit_s=limit_s, least_s=least_s) for name in by_name]
    said: list[str] = []

    def command_of(part: Part, file: Path) -> list[str]:
        script = f"import json, os, sys, time\n{by_name[part.name]}"
        return [sys.executable, "-c", script, str(file)]

    outcomes = run_parts(
        parts,
        budget_s=budget_s,
        command_of=command_of,
        on_line=lambda name, line: said.append(f"{name} {line}"),
    )
    return list(outcomes), said


def test_a_part_that_ends_well_passes_with_its_findings():
    (outcome,), said = run_scripts(f"{SAVE}; print('hello')")
    assert outcome.status is Status.PASSED
    assert outcome.findings == {"rows": [1]}
    assert (outcome.reason, outcome.last_lines) == (None, ())
    assert said == ["0 hello"]


def test_a_part_that_raises_fails_for_the_reason_it_gives():
    outcomes, _ = run_scripts(f"{SAVE}; raise ValueError('two is not three')", SAVE)
    assert [outcome.status for outcome in outcomes] == [Status.FAILED, Status.PASSED]
    assert outcomes[0].reason == "ValueError: two is not three"
    assert outcomes[0].findings == {"rows": [1]}
    assert "Traceback" in outcomes[0].last_lines[0]


def test_a_part_that_crashes_is_told_by_its_signal():
    outcomes, _ = run_scripts("os.abort()", SAVE)
    assert [outcome.status for outcome in outcomes] == [Status.CRASHED, Status.PASSED]
    assert outcomes[0].reason == "ended by SIGABRT"


def test_a_part_that_hangs_is_ended_and_what_it_found_is_kept():
    outcomes, _ = run_scripts(f"{SAVE}; print('on', flush=True); time.sleep(60)", limit_s=4.0)
    assert outcomes[0].status is Status.TIMED_OUT
    assert outcomes[0].reason == "not done after 4 s"
    assert outcomes[0].findings == {"rows": [1]}
    assert outcomes[0].last_lines == ("on",)
    assert outcomes[0].seconds < 20


def test_a_part_that_does_not_listen_is_ended_too(monkeypatch):
    monkeypatch.setattr("benchmarks.gpu.runner.GRACE_S", 0.2)
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    (outcome,), _ = run_scripts(deaf, limit_s=1.0)
    assert outcome.status is Status.TIMED_OUT
    assert outcome.seconds < 20


def test_what_a_part_started_ends_with_it():
    start = "import subprocess; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True)"
    (outcome,), said = run_scripts(start)
    assert outcome.status is Status.PASSED
    child = int(said[0].split()[1])
    for _ in range(100):
        if not is_running(child):
            return
        time.sleep(0.05)
    pytest.fail("it runs still")


def test_a_part_has_no_more_time_than_is_left_of_all():
    outcomes, _ = run_scripts("time.sleep(60)", SAVE, budget_s=1.0)
    assert [outcome.status for outcome in outcomes] == [Status.TIMED_OUT, Status.SKIPPED]
    assert outcomes[1].reason == "no time"


def test_a_part_is_not_begun_when_too_little_is_left():
    outcomes, _ = run_scripts(SAVE, budget_s=5.0, least_s=6.0)
    assert outcomes == [Outcome("0", Status.SKIPPED, reason="no time")]


def test_half_a_file_of_findings_is_none(tmp_path):
    (outcome,), _ = run_scripts("open(sys.argv[1], 'w').write('{'); os._exit(0)")
    assert (outcome.status, outcome.findings) == (Status.PASSED, {})
