"""Which kernel takes which layer: the rule by which plans count and kernels refuse."""

import subprocess
import sys

import pytest

from loaders.quantization.kernel_rules import (
    FASTEST_FIRST,
    DeviceFacts,
    PackedSize,
    cpu_has_bfloat16,
    fastest_kernel,
    int4_group_size,
    int4_misfit,
    refusal,
)

CPU, CUDA = DeviceFacts.of("cpu"), DeviceFacts.of("cuda")


def size(bits, group_size, in_features=4096):
    return PackedSize(bits, group_size, in_features, 64)


@pytest.mark.parametrize(
    ("layer", "kernel"),
    [
        (size(4, 128), "int4pack"),
        (size(2, -1), "int4pack"),
        (size(3, 96, 576), "int4pack"),
        (size(8, -1), "int8pack"),
        (size(8, 4096), "int8pack"),
        (size(8, 128), "int4planes"),
        (size(5, 32), "int4planes"),
        (size(6, 16), "fp16pack"),
        (size(4, 16), "fp16pack"),
        (size(8, -1, 344), "fp16pack"),
        (size(4, -1, 40), "fp16pack"),
    ],
)
def test_the_cpu_takes_the_fastest_kernel_that_fits_and_cuda_triton(layer, kernel):
    assert fastest_kernel(layer, CPU) == kernel
    assert fastest_kernel(layer, CUDA) == "triton"


@pytest.mark.parametrize(
    ("kernel", "layer", "device", "reason"),
    [
        ("int4pack", size(8, 128), CPU, "holds at most 4 bits, the layer has 8"),
        ("int4pack", size(4, 128), CUDA, "runs on CPU only"),
        ("int4pack", size(4, -1, 40), CPU, "needs inputs in multiples of 32, the layer has 40"),
        ("int4pack", size(4, 16), CPU, "needs groups in multiples of 32, the layer has 16"),
        ("int4planes", size(4, 128), CPU, "holds codes of 5 to 8 bits, the layer has 4"),
        ("int4planes", size(8, 16), CPU, "needs groups in multiples of 32, the layer has 16"),
        ("int8pack", size(8, -1), CUDA, "runs on CPU only"),
        ("int8pack", size(6, -1), CPU, "holds 8-bit codes, the layer has 6"),
        ("int8pack", size(8, 128), CPU, "takes one scale an output, the layer has groups of 128"),
        ("int8pack", size(8, -1, 40), CPU, "needs inputs in multiples of 32, the layer has 40"),
        ("fp16pack", size(4, 16), CUDA, "runs on CPU only"),
        ("triton", size(4, 128), CPU, "runs on CUDA only"),
        (
            "triton",
            size(4, 128),
            DeviceFacts("cuda", (7, 5)),
            "needs compute capability 8.0, this GPU has 7.5",
        ),
        (
            "triton",
            size(4, 128),
            DeviceFacts("cuda", (9, 0), has_triton=False),
            "needs Triton, which this environment lacks",
        ),
        ("triton", size(9, 128), CUDA, "holds codes of 2 to 8 bits, the layer has 9"),
    ],
)
def test_a_kernel_says_what_it_cannot_take(kernel, layer, device, reason):
    assert refusal(kernel, layer, device) == reason


def test_the_reference_takes_everything_everywhere():
    for device in (CPU, CUDA):
        assert refusal("reference", size(3, 7, 41), device) is None
    assert FASTEST_FIRST[-1] == "reference"


def test_an_old_gpu_or_one_without_triton_is_left_to_the_reference():
    for facts in (DeviceFacts("cuda", (7, 5)), DeviceFacts("cuda", has_triton=False)):
        assert fastest_kernel(size(4, 128), facts) == "reference"


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("group_size", [-1, 16, 24, 100, 128])
def test_triton_takes_any_bits_and_any_groups(bits, group_size):
    for capability in (None, (8, 0), (8, 9), (9, 0), (12, 0)):
        assert (
            refusal("triton", size(bits, group_size, 200), DeviceFacts("cuda", capability)) is None
        )


@pytest.mark.parametrize(
    ("layer", "misfit"),
    [
        (size(4, 128), None),
        (size(4, 16, 16 * 3), "inputs"),
        (size(4, 16), "groups"),
        (size(4, 4100), None),  # one group, whatever its size
        (size(4, -1, 100), "inputs"),
    ],
)
def test_what_int4_blocks_cannot_hold_is_named(layer, misfit):
    assert int4_misfit(layer) == misfit


@pytest.mark.parametrize(("common", "group"), [(4096, 256), (96, 32), (576, 64), (16, None)])
def test_groups_are_cut_to_the_largest_that_the_int4_kernel_takes(common, group):
    assert int4_group_size(common) == group


def test_the_rule_is_read_without_pytorch():
    code = (
        "import loaders.quantization.kernel_rules, sys\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("told", "limit", "expected"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 avx512_vbmi2\n", "", True),
        ("model name : X\nflags : fpu avx512f amx_bf16\n", "ALL", True),
        ("flags : fpu avx512_bf16\n", "AVX512_CORE", False),
        ("flags : fpu avx2 avx512f\nbugs : avx512_bf16\n", "", False),
        ("flags : fpu no_avx512_bf16x\n", "", False),
    ],
)
def test_whether_a_cpu_multiplies_bfloat16_is_read_without_pytorch(tmp_path, told, limit, expected):
    (tmp_path / "cpuinfo").write_text(told)
    assert cpu_has_bfloat16(tmp_path / "cpuinfo", {"ONEDNN_MAX_CPU_ISA": limit}) is expected


def test_a_cpu_of_which_nothing_is_told_is_taken_for_an_old_one(tmp_path):
    assert cpu_has_bfloat16(tmp_path / "none", {}) is False
