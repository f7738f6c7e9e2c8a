"""What decides how sums round, in words: another word for each thing that may round otherwise."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from engine.config import EngineConfig, KVDtype
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


def test_threads_and_the_processor_are_told(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 37)
    assert "37 threads" in arithmetic_of(CPU, CONFIG)
    has = {"cpu_name": "Some CPU", "amx_bf16": True, "l2_cache_size": 2 << 20}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    told = arithmetic_of(CPU, CONFIG).split(", ")
    assert {"Some CPU", "amx_bf16", "L2 cache of 2048 KiB"} <= set(told)


def test_it_is_told_that_the_number_of_threads_adapts():
    assert "up to " in arithmetic_of(CPU, CONFIG, do_threads_adapt=True)
    assert "up to " not in arithmetic_of(CPU, CONFIG)
