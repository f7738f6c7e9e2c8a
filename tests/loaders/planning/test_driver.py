"""What the driver is asked for, and which of its GPUs programs may use."""

from __future__ import annotations

import re

import pynvml
import pytest

from loaders.errors import InvalidDeviceError
from loaders.planning import driver
from loaders.planning.accelerators import MIB, parse_gpus
from loaders.planning.driver import FoundDevice, ask_driver, found_by_driver, visible_gpus
from tests.nvml import FakeGpu, FakeNvml


@pytest.fixture
def nvml(monkeypatch):
    """Stand in for NVML; CUDA_VISIBLE_DEVICES hides nothing."""
    fake = FakeNvml()
    monkeypatch.setattr(driver, "pynvml", fake)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return fake


def test_the_drivers_answer_holds_what_a_plan_and_a_doctor_ask(nvml):
    nvml.gpus = [FakeGpu("NVIDIA L4", "GPU-1", 23034, 22500, (8, 9)), FakeGpu(free_mib=15)]
    answer = ask_driver()
    assert answer.gpus == (
        FoundDevice("NVIDIA L4", "GPU-1", 23034 * MIB, 22500 * MIB, (8, 9)),
        FoundDevice("Tesla T4", "GPU-a", 15360 * MIB, 15 * MIB, (7, 5)),
    )
    assert (answer.version, answer.cuda, answer.problem) == ("580.65.06", (13, 0), None)
    assert not nvml.is_open


@pytest.mark.parametrize(
    "error", [pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED]
)
def test_a_machine_without_a_driver_has_no_gpus_and_no_problem(nvml, error):
    nvml.starts_with = error
    assert ask_driver() == driver.DriverAnswer()
    assert found_by_driver() == []


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "driver/library version mismatch.*reboot"),
        (pynvml.NVML_ERROR_NO_PERMISSION, "no permission.*/dev/nvidia"),
        (pynvml.NVML_ERROR_UNKNOWN, "NVML error 999"),
    ],
)
def test_a_driver_that_fails_counts_as_none_and_says_why(nvml, error, said):
    nvml.gpus, nvml.starts_with = [FakeGpu()], error
    assert found_by_driver() == []
    assert re.search(said, ask_driver().problem)
    nvml.starts_with = None
    assert found_by_driver() == [FoundDevice("Tesla T4", "GPU-a", 15360 * MIB, 15360 * MIB, (7, 5))]


def test_a_lost_gpu_leaves_the_others(nvml):
    nvml.gpus = [FakeGpu(error=pynvml.NVML_ERROR_GPU_IS_LOST), FakeGpu(uuid="GPU-b")]
    answer = ask_driver()
    assert [gpu.uuid for gpu in answer.gpus] == ["GPU-b"]
    assert answer.problem.startswith("GPU 0: a GPU is lost")


def test_a_gpu_that_no_table_knows_has_the_capability_that_its_driver_tells(nvml):
    nvml.gpus = [FakeGpu("NVIDIA Z900", capability=(13, 1))]
    assert parse_gpus("auto").compute_capability == (13, 1)


@pytest.mark.parametrize(
    ("wanted", "uuids"),
    [
        (None, ["GPU-a1", "GPU-a2", "GPU-b1"]),
        ("", []),
        ("-1", []),
        ("2,0", ["GPU-b1", "GPU-a1"]),
        ("1, 7, 0", ["GPU-a2"]),
        ("0,0", ["GPU-a1"]),
        ("GPU-b,GPU-a2", ["GPU-b1", "GPU-a2"]),
        ("GPU-a", []),  # of two
    ],
)
def test_gpus_that_are_hidden_from_programs_do_not_count(nvml, monkeypatch, wanted, uuids):
    nvml.gpus = [FakeGpu(uuid=uuid) for uuid in ("GPU-a1", "GPU-a2", "GPU-b1")]
    if wanted is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", wanted)
    assert [device.uuid for device in visible_gpus()] == uuids


def slice_of(name: str, uuid: str, mib: int) -> FakeGpu:
    return FakeGpu(name, uuid, mib, mib, (8, 0))


def cut_gpu() -> FakeGpu:
    slices = [
        slice_of("NVIDIA A100 MIG 1g.5gb", "MIG-1", 4864),
        None,
        slice_of("NVIDIA A100 MIG 2g.10gb", "MIG-2", 9856),
    ]
    return FakeGpu("NVIDIA A100-SXM4-40GB", "GPU-c", 40960, 40960, (8, 0), slices)


@pytest.mark.parametrize(
    ("wanted", "uuids"),
    [
        (None, ["MIG-1", "GPU-a"]),
        ("MIG-2", ["MIG-2"]),
        ("MIG-2,MIG-1", ["MIG-2"]),
        ("0", ["MIG-1"]),
    ],
)
def test_of_a_gpu_that_is_cut_one_slice_counts_with_its_own_size(nvml, monkeypatch, wanted, uuids):
    nvml.gpus = [cut_gpu(), FakeGpu()]
    if wanted is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", wanted)
    assert [device.uuid for device in visible_gpus()] == uuids


def test_a_plan_for_a_slice_takes_its_memory_and_its_gpus_capability(nvml, monkeypatch):
    nvml.gpus = [cut_gpu()]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-2")
    found = parse_gpus("auto")
    assert (found.memory_bytes, found.compute_capability) == (9856 * MIB, (8, 0))


def test_a_slice_that_the_driver_does_not_list_must_be_given_with_its_size(nvml, monkeypatch):
    nvml.gpus = [FakeGpu()]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1234")
    with pytest.raises(InvalidDeviceError, match=r"MIG-1234.*say its size"):
        parse_gpus("auto")


def test_nvml_itself_has_every_name_that_is_asked_here():
    names = [name for name in vars(FakeNvml) if name.startswith("nvml")]
    assert [name for name in names if not hasattr(pynvml, name)] == []
