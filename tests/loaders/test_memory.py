from types import SimpleNamespace

import pytest
import torch

from loaders.memory import estimate_bytes

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
        (3, 64, "cuda:0", 400),
    ],
)
def test_the_estimate_counts_codes_as_they_will_be_packed(bits, group_size, device, expected):
    quantization = SimpleNamespace(base=SimpleNamespace(bits=bits, group_size=group_size))
    assert estimate_bytes(TENSORS, quantization, torch.device(device)) == expected
