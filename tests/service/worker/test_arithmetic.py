"""What decides how sums round, in words: another word for each thing that may round otherwise."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from engine.config import EngineConfig, KVDtype
from engine.execution import cpu_kernels
from service.worker import arithmetic
from service.worker.arithmetic import arithmetic_of

CONFIG = EngineConfig(max_num_seqs=4, max_num_batched_tokens=64, max_model_len=64, num_blocks=16)
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "change",
    [
        {"kv_dtype": KVDtype.BFLOAT16},
        {"num_speculative_tokens": 4},
        {"max_num_batched_tokens": 128},
        {"block_size": 32},
    ],
    ids=str,
)
def test_another_configuration_is_told_otherwise(change):
    changed = dataclasses.replace(CONFIG, **change)
    assert arithmetic_of(CPU, changed) != arithmetic_of(CPU, CONFIG)


def test_the_kernels_compiled_from_other_sources_are_told_otherwise(monkeypatch):
    monkeypatch.setattr(cpu_kernels, "why_not", lambda: "there are none")
    without = arithmetic_of(CPU, CONFIG)
    monkeypatch.setattr(cpu_kernels, "why_not", lambda: None)
    monkeypatch.setattr(arithmetic, "source_hash", lambda: "0123456789abcdef")
    assert "native kernels 01234567" in arithmetic_of(CPU, CONFIG).split(", ")
    assert arithmetic_of(CPU, dataclasses.replace(CONFIG, cpu_kernels="torch")) == without
    assert "native" not in without


def test_threads_and_the_processor_are_told(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 37)
    assert "37 threads" in arithmetic_of(CPU, CONFIG)
    has = {"cpu_name": "Some CPU", "amx_bf16": True, "l2_cache_size": 2 << 20}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    told = arithmetic_of(CPU, CONFIG).split(", ")
    assert {"Some CPU", "amx_bf16", "L2 cache of 2048 KiB"} <= set(told)


@pytest.mark.parametrize(
    "name", ["ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS"]
)
def test_what_libraries_are_told_to_leave_out_is_told(monkeypatch, name):
    monkeypatch.setenv(name, "avx2")
    assert f"{name}=avx2" in arithmetic_of(CPU, CONFIG).split(", ")
    monkeypatch.delenv(name)
    assert name not in arithmetic_of(CPU, CONFIG)


def test_it_is_told_that_the_number_of_threads_adapts():
    assert "up to " in arithmetic_of(CPU, CONFIG, do_threads_adapt=True)
    assert "up to " not in arithmetic_of(CPU, CONFIG)


def test_which_kernels_were_chosen_is_told_where_there_was_a_choice():
    told = {arithmetic_of(CPU, CONFIG, kernel_choices=text) for text in ("", "a: b", "a: c")}
    assert len(told) == 3
    assert "kernels: a: b" in arithmetic_of(CPU, CONFIG, kernel_choices="a: b")
