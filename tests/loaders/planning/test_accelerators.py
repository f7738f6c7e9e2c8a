"""Devices that a plan can be asked for."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loaders.errors import InvalidDeviceError
from loaders.planning.accelerators import (
    GIB,
    GPU_MODELS,
    MIB,
    find_gpu_model,
    parse_gpus,
    this_machine,
)
from loaders.planning.driver import FoundDevice


@pytest.mark.parametrize(
    ("text", "name", "count", "memory"),
    [
        ("A10G", "A10G", 1, 23028 * MIB),
        ("A10G:24GB", "A10G", 1, 23028 * MIB),  # as it is sold: what the driver reports of it
        ("2xA10G:24GB", "A10G", 2, 23028 * MIB),
        ("2 x a10g", "A10G", 2, 23028 * MIB),
        ("A10G:20GB", "A10G", 1, 20 * GIB),  # another size counts as it is given
        ("MYCARD:20GB", "MYCARD", 1, 20 * GIB),
        ("MYCARD:20480MiB", "MYCARD", 1, 20 * GIB),
        ("8xMYCARD:1.5g", "MYCARD", 8, GIB * 3 // 2),
        ("4090", "RTX 4090", 1, 24564 * MIB),
        ("rtx-4090", "RTX 4090", 1, 24564 * MIB),
        ("A100:80GB", "A100-80", 1, 80 * GIB),
        ("A100:40GB", "A100-40", 1, 40 * GIB),
        ("A100-80", "A100-80", 1, 80 * GIB),
        ("H100 NVL", "H100 NVL", 1, 95830 * MIB),
    ],
)
def test_cards_are_found_as_people_write_them(text, name, count, memory):
    devices = parse_gpus(text)
    assert (devices.kind, devices.name, devices.count) == ("cuda", name, count)
    assert devices.memory_bytes == memory


def test_cpu_takes_a_size_or_what_is_free():
    assert parse_gpus("cpu:16GB").memory_bytes == 16 * GIB
    assert 0 < parse_gpus("cpu").memory_bytes < 1024**5
    assert parse_gpus("cpu").kind == "cpu"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no device"),
        ("A10H", "like it: A10, A10G"),
        ("UNHEARDOF", "UNHEARDOF:24GB"),
        ("0xA10", "0 devices"),
        ("65xA10", "65 devices"),
        ("A10:much", "no size"),
        ("A10:", "no size"),
        ("A10:0GB", "no GPU's memory"),
        ("A10:999999999TB", "no GPU's memory"),
        ("A10:24GB:1", "no size"),
        ("2xcpu", "one memory"),
        ("auto:24GB", "says more"),
        ("2xauto", "says more"),
        ("x" * 1000, "names no device"),
    ],
)
def test_nonsense_is_refused_with_what_to_write_instead(text, said):
    with pytest.raises(InvalidDeviceError, match=re.escape(said)):
        parse_gpus(text, probe=list)


@given(st.text(max_size=60))
def test_any_text_is_a_device_or_refused(text):
    try:
        devices = parse_gpus(text, probe=list)
    except InvalidDeviceError:
        return
    assert devices.count >= 1
    assert devices.memory_bytes >= 1


@pytest.mark.parametrize(
    ("told", "mib", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", 81920, "A100-80"),
        ("NVIDIA A100-PCIE-40GB", 40960, "A100-40"),
        ("NVIDIA H100 80GB HBM3", 81559, "H100"),
        ("NVIDIA H100 NVL", 95830, "H100 NVL"),
        ("NVIDIA GeForce RTX 4060 Ti", 16380, "RTX 4060 Ti-16"),
        ("NVIDIA RTX 6000 Ada Generation", 49140, "RTX 6000 Ada"),
        ("Tesla V100-SXM2-32GB", 32768, "V100-32"),
        ("Tesla T4", 15360, "T4"),
    ],
)
def test_a_drivers_own_names_are_known(told, mib, name):
    known = find_gpu_model(told, mib * MIB)
    assert known is not None
    assert known.name == name


def test_every_card_of_the_table_is_found_by_its_own_name():
    for known in GPU_MODELS:
        assert find_gpu_model(known.name) == known
        assert known.memory_mib <= known.sold_gib * 1024 + 1024


def gpu(name="Tesla T4", uuid="GPU-a", total=15360, free=15360):
    return FoundDevice(name, uuid, total * MIB, free * MIB)


def test_auto_is_the_gpu_with_the_most_memory_free_as_for_an_engine():
    found = [gpu(free=9000), gpu(uuid="GPU-b", free=12000), gpu(uuid="GPU-c", free=100)]
    chosen = parse_gpus("auto", probe=lambda: found)
    assert (chosen.kind, chosen.count, chosen.memory_bytes) == ("cuda", 1, 12000 * MIB)
    assert (chosen.total_bytes, chosen.bandwidth) == (15360 * MIB, 320)
    assert parse_gpus("auto", probe=list).kind == "cpu"


def test_auto_follows_the_device_that_the_settings_name():
    found = [gpu(free=9000), gpu(uuid="GPU-b", free=12000)]
    assert this_machine("cuda:0", lambda: found).memory_bytes == 9000 * MIB
    assert this_machine("cuda", lambda: found).memory_bytes == 9000 * MIB
    assert this_machine("cpu", lambda: found).kind == "cpu"


@pytest.mark.parametrize(("asked", "said"), [("cuda:2", "tells of 1"), ("tpu", "not supported")])
def test_a_device_that_is_not_there_is_refused(asked, said):
    with pytest.raises(InvalidDeviceError, match=said):
        this_machine(asked, lambda: [gpu()])


def test_what_others_hold_of_a_card_counts_as_used():
    half_free = this_machine("auto", lambda: [gpu(total=10_000, free=5_000)])
    assert half_free.lasting_share(0.9) == pytest.approx(0.8)  # 4 000 of 5 000
    assert half_free.lasting_share(0.4) == 0.0
    assert this_machine("auto", lambda: [gpu(free=0)]).lasting_share(0.9) == 0.0
    assert parse_gpus("A10G").lasting_share(0.7) == 0.7
    assert parse_gpus("cpu:4GB").lasting_share(0.7) == 1.0


def test_one_of_several_is_as_large_as_each():
    several = parse_gpus("4xA10G")
    assert (several.one.count, several.one.memory_bytes) == (1, several.memory_bytes)
