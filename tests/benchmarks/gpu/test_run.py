"""The program, as it is called."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu.__main__ import choose, parse
from benchmarks.gpu.parts import PARTS

ROOT = Path(__file__).parents[3]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        [ROOT / "benchmarks" / "gpu" / "run", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path},
        cwd="/",
        check=False,
    )


def test_all_parts_run_unless_some_are_named():
    assert choose(parse([]).part) == list(PARTS)


def test_the_machine_is_told_whichever_part_runs():
    names = [part.name for part in choose(parse(["--part", "speed", "--part", "ceilings"]).part)]
    assert names == ["machine", "ceilings", "speed"]


def test_every_part_has_the_time_it_needs_when_it_begins():
    assert all(0 < part.least_s < part.limit_s for part in PARTS)


def test_help_names_the_parts():
    shown = run("--help")
    assert shown.returncode == 0
    assert all(part.name in shown.stdout for part in PARTS)


@pytest.mark.slow
def test_a_dry_run_passes_every_part(tmp_path):
    done = run("--dry", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = tmp_path.iterdir()
    record = json.loads(file.read_text())
    assert {name: part["status"] for name, part in record["parts"].items()} == {
        part.name: "passed" for part in PARTS
    }
    assert record["is_dry"]
    assert [row["what"] for row in record["speed"]] == ["decode", "decode", "prefill"]
    assert all(row["percent_of_limit"] > 0 for row in record["speed"])
    assert "decode, 1 together" in done.stdout
    assert "Dry" in done.stdout
    assert "tokens: whole start" in done.stderr


@pytest.mark.slow
def test_a_run_without_its_device_fails_and_is_recorded(tmp_path):
    done = run("--part", "machine", "--out", str(tmp_path))
    record = json.loads(next(tmp_path.iterdir()).read_text())
    machine = record["parts"]["machine"]
    assert machine["findings"]["packages"]["torch"]
    if machine["findings"]["hardware"]["gpus"]:
        assert done.returncode == 0
    else:
        assert (done.returncode, machine["status"]) == (1, "failed")
