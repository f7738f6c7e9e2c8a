import errno

import pytest
import torch

from loaders.errors import NotEnoughMemoryError
from loaders.memory.free import check_fits, is_refused_allocation


@pytest.mark.parametrize(
    ("device", "helps"), [("cpu", "a smaller variant, free memory"), ("cuda:1", "--cpu-offload")]
)
def test_weights_that_do_not_fit_are_told_with_the_arithmetic(monkeypatch, device, helps):
    monkeypatch.setattr("loaders.memory.free.free_device_bytes", lambda device: 11_400_000_000)
    numbers = rf"need 13\.25 GB on {device}, 11\.40 GB are free, 1\.85 GB are missing.*{helps}"
    with pytest.raises(NotEnoughMemoryError, match=numbers):
        check_fits(13_250_000_000, torch.device(device))
    check_fits(11_400_000_000, torch.device(device))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("unable to mmap 40 bytes from file <x>: Cannot allocate memory (12)"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("could not create a primitive"),
    ],
)
def test_memory_that_was_refused_is_known_by_every_name_it_has(error):
    assert is_refused_allocation(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("no kernel image"),
        RuntimeError("could not create a primitive descriptor for the matmul primitive"),
        OSError(errno.ENOSPC, "no room"),
        ValueError(),
    ],
)
def test_other_errors_are_no_want_of_memory(error):
    assert not is_refused_allocation(error)


def test_memory_that_the_cpu_does_not_give_is_known():
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_refused_allocation(refused.value)
