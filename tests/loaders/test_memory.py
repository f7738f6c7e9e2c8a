from types import SimpleNamespace

import pytest
import torch

from loaders.errors import NotEnoughMemoryError
from loaders.memory import check_fits, estimate_bytes

TENSORS = {
    "layer.qweight": SimpleNamespace(num_bytes=300),
    "layer.scales": SimpleNamespace(num_bytes=20),
    "lm_head.weight": SimpleNamespace(num_bytes=80),
}


@pytest.mark.parametrize(
    ("bits", "group_size", "device", "expected"),
    [
        (3, 64, "cpu", 500),  # packed in 4 bits there
        (2, -1, "cpu", 700),
        (4, 96, "cpu", 400),
        (8, 128, "cpu", 400),
        (4, 16, "cpu", 1300),  # packed as halves,
        (6, 64, "cpu", 900),  # no kernel for 6 bits
        (3, 64, "cuda:0", 400),
    ],
)
def test_the_estimate_counts_codes_as_they_will_be_packed(bits, group_size, device, expected):
    quantization = SimpleNamespace(base=SimpleNamespace(bits=bits, group_size=group_size))
    assert estimate_bytes(TENSORS, quantization, torch.device(device)) == expected


@pytest.mark.parametrize(
    ("device", "helps"), [("cpu", "a smaller variant, free memory"), ("cuda:1", "--cpu-offload")]
)
def test_weights_that_do_not_fit_are_told_with_the_arithmetic(monkeypatch, device, helps):
    monkeypatch.setattr("loaders.memory.free_bytes", lambda device: 11_400_000_000)
    numbers = rf"need 13\.25 GB on {device}, 11\.40 GB are free, 1\.85 GB are missing.*{helps}"
    with pytest.raises(NotEnoughMemoryError, match=numbers):
        check_fits(13_250_000_000, torch.device(device))
    check_fits(11_400_000_000, torch.device(device))
