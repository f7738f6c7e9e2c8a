from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from loaders.checkpoint import GGML_BLOCKS, TensorInfo
from loaders.gguf.model import format_of
from loaders.memory import estimate_bytes
from loaders.quantization import Quantization

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


def test_blocks_are_counted_as_their_kernels_will_hold_them():
    """Codes of 4 bits, 8 or 16, each with a scale and a minimum a group and plane but the last."""

    def info(name, dtype, count):
        weights, size = GGML_BLOCKS[dtype]
        return TensorInfo(f"{name}.blocks", "U8", (1, count // weights * size), Path("m.gguf"))

    formats = {"a": format_of("Q4_K"), "b": format_of("Q5_0"), "c": format_of("Q6_K")}
    tensors = {
        tensor.name: tensor
        for tensor in (info("a", "Q4_K", 8192), info("b", "Q5_0", 8192), info("c", "Q6_K", 8192))
    }
    quantization = Quantization(formats["a"], desc_act=False, sym=False, source="", formats=formats)
    expected = 8192 * (4 + 1) // 8 + 8192 * (8 + 2) // 8 + 8192 * 16 // 8
    assert estimate_bytes(tensors, quantization, torch.device("cpu")) == expected
    stored = sum(tensor.num_bytes for tensor in tensors.values())
    assert estimate_bytes(tensors, quantization, torch.device("cuda:0")) == stored
