"""A container's limits, as its control group's files say them."""

import pytest

from loaders.memory import free
from loaders.memory.cgroup import read_cpu_limit, read_free_memory, read_memory_limit


@pytest.fixture
def cgroup(monkeypatch, tmp_path):
    monkeypatch.setattr("loaders.memory.cgroup.CGROUP", tmp_path)
    return tmp_path


def write(folder, **files):
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(f"{text}\n")


def test_without_files_there_is_no_limit(cgroup):
    assert read_memory_limit() is None
    assert read_free_memory() is None
    assert read_cpu_limit() is None


@pytest.mark.parametrize(
    ("memory", "cpu", "limits"),
    [
        ("max", "max 100000", (None, None)),
        ("1000", "150000 100000", (1000, 1.5)),
        ("x", "x", (None, None)),
        ("-1", "100000 0", (None, None)),
    ],
)
def test_limits_are_read_as_numbers_or_none(cgroup, memory, cpu, limits):
    write(cgroup, memory_max=memory, cpu_max=cpu, memory_current=0, memory_stat="anon 0")
    assert (read_memory_limit(), read_cpu_limit()) == limits
    assert read_free_memory() == limits[0]


def test_the_page_cache_counts_as_free(cgroup):
    write(cgroup, memory_max=1000, memory_current=700, memory_stat="anon 400\ninactive_file 250")
    assert read_free_memory() == 550


def test_a_limit_whose_use_is_not_known_leaves_what_is_free_unknown(cgroup):
    write(cgroup, memory_max=1000)
    assert read_free_memory() is None
    write(cgroup, memory_current=700, memory_stat="three words here")
    assert read_free_memory() is None


def test_the_cpu_has_free_what_the_container_leaves(cgroup):
    write(cgroup, memory_max=1000, memory_current=700, memory_stat="anon 400")
    assert free.cpu_free_bytes() == 300
    write(cgroup, memory_max=10**18)
    assert 300 < free.cpu_free_bytes() < 10**17
