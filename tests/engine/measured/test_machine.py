from __future__ import annotations

import pytest
import torch

from engine.measured import machine
from engine.measured.machine import processor_numbers, this_machine


def test_a_machine_is_the_same_when_asked_again():
    assert this_machine() == this_machine()


@pytest.mark.parametrize(
    "name", ["ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE"]
)
def test_other_masks_make_another_machine(monkeypatch, name):
    before = this_machine()
    monkeypatch.setenv(name, "avx2" if before["masks"] != f"{name}=avx2" else "default")
    assert this_machine() != before


def test_threads_the_processor_and_versions_make_another_machine(monkeypatch):
    seen = [this_machine()]
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    seen.append(this_machine())
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True, "l2": 5})
    seen.append(this_machine())
    assert (seen[-1]["abilities"], seen[-1]["sizes"]) == ("amx_bf16", "l2 5")
    monkeypatch.setattr(torch, "__version__", "99.0")
    seen.append(this_machine())
    monkeypatch.setattr(machine, "version", lambda package: f"{package} 99")
    seen.append(this_machine())
    assert all(one != other for i, one in enumerate(seen) for other in seen[:i])


def test_processors_of_one_name_are_told_apart_by_their_numbers(monkeypatch, tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    one = (
        "processor\t: {}\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\nstepping\t: 1\n"
    )
    cpuinfo.write_text(f"{one.format(0)}\n{one.format(1)}\n")
    assert processor_numbers(cpuinfo) == "cpu family 25, model 17, stepping 1"
    assert processor_numbers(tmp_path / "absent") == ""
    before = this_machine()
    monkeypatch.setattr(machine, "processor_numbers", lambda: "model 18")
    assert this_machine() != before


def test_the_kernels_in_cpp_count_with_their_sources_where_they_are_loaded(monkeypatch):
    monkeypatch.setattr(machine.library, "is_loaded", lambda: True)
    monkeypatch.setattr(machine.library, "source_hash", lambda: "0123456789abcdef")
    assert this_machine()["native"] == "0123456789abcdef"
    monkeypatch.setattr(machine.library, "is_loaded", lambda: False)
    assert this_machine()["native"] == "none"
