"""Where a model goes: what "auto" means here, and what is refused before anything is read."""

import pytest
import torch
from transformers import LlamaConfig

from loaders.errors import BackendError
from loaders.model.placement import (
    resolve_device_map,
    resolve_dtype,
    resolve_is_spread,
    resolve_placement,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("num_gpus", "expected"),
    [(0, {"": CPU}), (1, {"": CUDA}), (2, "auto")],
)
def test_auto_takes_every_cuda_device_there_is_else_the_cpu(monkeypatch, num_gpus, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    assert resolve_device_map("auto") == expected


def test_devices_are_checked_against_what_the_machine_has():
    assert resolve_device_map("cpu") == {"": CPU}
    with pytest.raises(BackendError, match="cuda:99"):
        resolve_device_map("cuda:99")
    with pytest.raises(BackendError, match="no device"):
        resolve_device_map("gpu-one")
    with pytest.raises(BackendError, match="meta is not supported"):
        resolve_device_map("meta")


def test_dtypes_are_resolved_once():
    config = LlamaConfig()
    on_cpu, on_cuda = {"": CPU}, {"": CUDA}
    assert resolve_dtype("auto", config, on_cpu) == torch.float32
    assert resolve_dtype("auto", config, on_cuda) == torch.float16
    config.dtype = torch.bfloat16
    assert resolve_dtype("auto", config, on_cuda) == torch.bfloat16
    assert resolve_dtype("float16", config, on_cuda) == torch.float16
    with pytest.raises(BackendError, match="float32"):
        resolve_dtype("float16", config, on_cpu)
    with pytest.raises(BackendError, match="use auto, float32, float16, bfloat16"):
        resolve_dtype("int8", config, on_cuda)


def test_offloading_is_for_one_device_beside_the_cpu():
    assert not resolve_is_spread(False, {"": CUDA})
    assert resolve_is_spread(True, {"": CUDA})
    assert not resolve_is_spread(True, {"": CPU})
    with pytest.raises(BackendError, match="one CUDA device"):
        resolve_is_spread(True, "auto")
    with pytest.raises(BackendError, match="stock"):
        resolve_is_spread(True, {"": CUDA}, is_stock=True)


def test_a_placement_tells_where_and_how_in_plain_words():
    placement = resolve_placement(
        LlamaConfig(), device="cpu", dtype="auto", backend="stock", cpu_offload=False
    )
    assert (placement.device_text, placement.dtype_text) == ("cpu", "float32")
    assert placement.is_stock
    assert not placement.is_spread
