from __future__ import annotations

import subprocess
import sys

import pytest

# Two megabytes, made and let go a hundred times: half a thousand pages each, if they come afresh.
FAULTS_OF_TEMPORARIES = """
import resource
from engine.execution.host_memory import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

{}
for size in (64 * 2**20, 2 * 2**20):
    bytearray(size)
before = faults()
for _ in range(100):
    bytearray(2 * 2**20)
print(faults() - before)
"""


def count_faults(call: str) -> int:
    # The allocator learns from large blocks that are freed; here it shall not.
    fixed = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
    program = FAULTS_OF_TEMPORARIES.format(call)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=fixed
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="the settings are glibc's")
def test_freed_memory_is_used_again_without_going_back_to_the_system():
    assert count_faults("") > 50_000 * 0.9
    assert count_faults("keep_freed_memory()") < 1000
