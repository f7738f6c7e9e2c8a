"""Memory, the container's limits, descriptors and the clock."""

from __future__ import annotations

import datetime as dt
import os
import resource
import shutil
import time
from typing import TYPE_CHECKING

from service.doctor.finding import Finding, fix, ok, warning

if TYPE_CHECKING:
    from pathlib import Path

SMALLER_VARIANT = "tetrad serve with a smaller variant, or more memory"
MAX_SKEW_S = 300.0
# A clock that was never set shows 1970; certificates and tokens are refused by it.
SANE_YEARS = range(2024, 2100)
CLOCK_SAMPLE_S = 0.05
MIN_SHM_BYTES = 64 * 2**20  # Docker's default: enough for our own sockets, scarce for NCCL
FEW_DESCRIPTORS, NEEDED_DESCRIPTORS = 4096, 256


def gb(num_bytes: float) -> str:
    """Write a size as people read it."""
    return f"{num_bytes / 1e9:.2f} GB"


def check_memory(free: int, needed: int | None, device: str, num_variants: int = 1) -> Finding:
    """needed: by all variants for the device together; None where nothing is known of any."""
    if needed is None:
        return ok("memory", f"{gb(free)} free on {device}")
    who = "the variant takes" if num_variants == 1 else f"{num_variants} variants take"
    found = f"{gb(free)} free on {device}, {who} {gb(needed)} with KV cache and process"
    if needed > free:
        return fix("memory", found, SMALLER_VARIANT)
    if needed > 0.8 * free:
        return warning("memory", f"{found}: little is left for more context", SMALLER_VARIANT)
    return ok("memory", found)


def check_container(memory_limit: int | None, cpus: float | None) -> Finding:
    """None stands for no limit."""
    if memory_limit is None and cpus is None:
        return ok("container", "no limits of memory or processors")
    memory = "no limit of memory" if memory_limit is None else f"memory limit {gb(memory_limit)}"
    processors = "no limit of processors" if cpus is None else f"{cpus:g} processors"
    found = f"{memory}, {processors}"
    if memory_limit is not None and memory_limit < 1e9:
        return fix("container", f"{found}: too little for PyTorch", "docker run --memory 8g …")
    if cpus is not None and cpus < 1:
        return warning("container", f"{found}: less than one", "docker run --cpus 2 …")
    return ok("container", found)


def check_shared_memory(num_bytes: int | None, num_gpus: int) -> Finding:
    """num_bytes: the size of /dev/shm; None where there is none."""
    command = "docker run --shm-size 1g …"
    if num_bytes is None:
        return warning("shared memory", "there is no /dev/shm", command)
    found = f"/dev/shm has {gb(num_bytes)}"
    if num_bytes <= MIN_SHM_BYTES and num_gpus > 1:
        return fix("shared memory", f"{found}: too little for several GPUs", command)
    if num_bytes < MIN_SHM_BYTES:
        return warning("shared memory", f"{found}: less than is usual", command)
    return ok("shared memory", found)


def read_shared_memory() -> int | None:
    """Return the size of /dev/shm."""
    try:
        return shutil.disk_usage("/dev/shm").total
    except OSError:
        return None


def check_descriptors(limit: int) -> Finding:
    """limit: the soft one of open files; resource.RLIM_INFINITY for none."""
    if limit == resource.RLIM_INFINITY or limit >= FEW_DESCRIPTORS:
        return ok("descriptors", "no limit" if limit == resource.RLIM_INFINITY else f"{limit}")
    command = "ulimit -n 65536"
    if limit < NEEDED_DESCRIPTORS:
        return fix("descriptors", f"{limit}: too few to serve", command)
    return warning("descriptors", f"{limit}: as many connections at most", command)


def read_descriptor_limit() -> int:
    """Return the soft limit of open files."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def check_clock(wall: float, drift_s: float, lead_s: float | None) -> Finding:
    """Compare the clocks.

    wall: seconds since 1970. drift_s: by how much the wall clock ran apart from the monotonic one
    in a short while. lead_s: over the hub's clock; None where it was not asked.
    """
    command = "sudo timedatectl set-ntp true"
    year = dt.datetime.fromtimestamp(wall, dt.UTC).year
    if year not in SANE_YEARS:
        return fix("clock", f"it shows the year {year}: certificates are refused", command)
    if lead_s is not None and abs(lead_s) > MAX_SKEW_S:
        which = "ahead of" if lead_s > 0 else "behind"
        return warning("clock", f"{abs(lead_s) / 60:.0f} minutes {which} the hub's", command)
    if abs(drift_s) > CLOCK_SAMPLE_S:
        return warning("clock", f"it jumped by {drift_s:.1f} s just now", command)
    return ok("clock", "steady" if lead_s is None else "steady, and agrees with the hub's")


def measure_drift() -> float:
    """Return by how much the wall clock moves more than the monotonic one in a short while."""
    wall, steady = time.time(), time.monotonic()
    time.sleep(CLOCK_SAMPLE_S)
    return (time.time() - wall) - (time.monotonic() - steady)


def free_disk(folder: Path) -> int:
    """Return the bytes free where a folder lies, or will lie."""
    there = folder
    while not there.exists():
        there = there.parent
    stat = os.statvfs(there)
    return stat.f_bavail * stat.f_frsize
