"""What is told of the engines' processes: as the system has it, of those that there are."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from service.observation.engine_processes import engine_pids, engine_process_families

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAM = "held = bytes(range(256)) * 200_000; print('held', flush=True); input()"  # 51 MB


@pytest.fixture
def pid() -> Iterator[int]:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.kill()


def variant(name: str, pid: int | None) -> Any:
    return SimpleNamespace(name=name, status=SimpleNamespace(pid=pid))


def told(*variants: Any) -> dict[str, dict[str, float]]:
    """Values by metric and model."""
    pids = engine_pids(SimpleNamespace(variants=list(variants)))
    found: dict[str, dict[str, float]] = {}
    for family in engine_process_families(pids):
        for sample in family.samples:
            found.setdefault(sample.name, {})[sample.labels["model_name"]] = sample.value
    return found


def test_memory_processor_time_and_age_of_an_engines_process_are_told(pid):
    values = told(variant("m", pid), variant("unloaded", None))
    assert {name: list(models) for name, models in values.items()} == {
        "tetrad_engine_resident_bytes": ["m"],
        "tetrad_engine_cpu_seconds_total": ["m"],
        "tetrad_engine_start_time_seconds": ["m"],
    }
    assert 51e6 < values["tetrad_engine_resident_bytes"]["m"] < 150e6
    assert 0 < values["tetrad_engine_cpu_seconds_total"]["m"] < 60
    assert abs(time.time() - values["tetrad_engine_start_time_seconds"]["m"]) < 60


def test_during_a_swap_the_memory_is_that_of_both(pid):
    alone = told(variant("m", pid))["tetrad_engine_resident_bytes"]["m"]
    both = told(variant("m", pid), variant("m", pid))["tetrad_engine_resident_bytes"]["m"]
    assert both == 2 * alone


def test_a_process_that_has_ended_and_the_servers_own_are_left_out():
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert told(variant("ended", ended.pid), variant("in_process", os.getpid())) == {}
