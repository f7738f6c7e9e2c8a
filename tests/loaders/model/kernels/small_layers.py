"""Small layers with random weights, and what float32 arithmetic gives with them."""

import torch

from loaders.quantization.packed_format import PackedFormat
from loaders.quantization.packed_tensors import PackedTensors
from loaders.quantization.packing import pack_gptq_codes, pack_gptq_zeros

# Measured 2026-11 over the cases below: 0.0031 (int4pack), 0.0021 (int8pack), 0.0032 (int4planes),
# 0.0003 (fp16pack).
MAX_RELATIVE_ERROR = 2**-7


def packed(bits, group_size, *, in_features=256, out_features=192, act_order=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size = in_features if group_size == -1 else group_size
    groups = -(-in_features // size)

    def random(shape):
        return torch.randint(0, 2**bits, shape, dtype=torch.uint8, generator=generator)

    g_idx = torch.arange(in_features) // size
    if act_order:
        g_idx = g_idx[torch.randperm(in_features, generator=generator)]
    return PackedTensors(
        name="layer",
        format=PackedFormat("gptq", "gptq", bits, group_size),
        in_features=in_features,
        out_features=out_features,
        stored={
            "qweight": pack_gptq_codes(random((in_features, out_features)), bits),
            "qzeros": pack_gptq_zeros(
                random((groups, out_features)), bits, checkpoint_format="gptq"
            ),
            "scales": (torch.rand(groups, out_features, generator=generator) * 0.02 + 0.001).half(),
            **({"g_idx": g_idx.to(torch.int32)} if act_order else {}),
        },
    )


def rows(count, in_features=256):
    return torch.randn(count, in_features, generator=torch.Generator().manual_seed(1))


def relative_error(found, expected):
    return float((found - expected).norm() / expected.norm())


def product(kernel, x):
    permuted = x if kernel.input_permutation is None else x[:, kernel.input_permutation]
    return kernel(permuted)


def expected_product(kernel, x):
    """What float32 arithmetic gives with the weight that the kernel holds."""
    permuted = x if kernel.input_permutation is None else x[:, kernel.input_permutation]
    return permuted @ kernel.dequantize().t()
