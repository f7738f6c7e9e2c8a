"""What layers take once prepared: the plan's rules against the kernels themselves."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from loaders.checkpoint.files import TensorInfo
from loaders.memory.layers import (
    _PACKED_PARTS,
    GGUF_GROUPS,
    fp16pack_bytes,
    kernel_bytes,
    kernel_of,
    kernels_used,
    parts_of,
    scratch_bytes,
)
from loaders.model.kernels.fp16pack import Fp16PackKernel
from loaders.model.kernels.int4pack import _pack_weight as pack_int4
from loaders.model.kernels.int4planes import _pack_weight as pack_planes
from loaders.model.kernels.triton_linear import TritonBackend
from loaders.quantization.kernel_rules import DeviceFacts, PackedSize
from loaders.quantization.layouts import LAYOUTS
from loaders.quantization.layouts.gguf import BLOCK_TYPES
from loaders.quantization.packed_format import PackedFormat
from loaders.quantization.packed_tensors import GroupedWeight, PackedTensors
from loaders.quantization.quantization import Quantization
from tests.grouped_weights import grouped_weight
from tests.planned import fp16_34b, gguf_13b, gptq_7b

OLD_GPU = DeviceFacts("cuda", (7, 5))


@pytest.mark.parametrize(
    ("size", "device", "kernel", "reason"),
    [
        ((4, 128, 4096, 64), "cpu", "int4pack", "groups of 32 to 256"),
        ((8, -1, 4096, 64), "cpu", "int8pack", "8 bits with one scale an output"),
        ((5, 32, 4096, 64), "cpu", "int4planes", "5 bits run as two planes"),
        ((4, 16, 4096, 64), "cpu", "fp16pack", "takes groups of 16: not a multiple of 32"),
        ((4, -1, 40, 64), "cpu", "fp16pack", "takes 40 inputs: not a multiple of 32"),
        ((4, 128, 4096, 64), "cuda", "triton", "packed up to 64 rows, from 65 on dequantised"),
        ((4, 128, 4096, 64), OLD_GPU, "reference", "triton needs compute capability 8.0"),
    ],
)
def test_the_plan_names_the_kernel_and_why(size, device, kernel, reason):
    found, why = kernel_of(PackedSize(*size), device)
    assert found == kernel
    assert reason in why


@pytest.mark.parametrize(("bits", "pack"), [(4, pack_int4), (8, pack_planes)])
@pytest.mark.parametrize("group_size", [32, 64])
@pytest.mark.parametrize("out_features", [64, 100])
@pytest.mark.parametrize("has_order", [True, False])
def test_blocks_take_what_the_plan_says(bits, pack, group_size, out_features, has_order):
    weight = GroupedWeight(
        codes=torch.zeros(out_features, 128, dtype=torch.uint8),
        scales=torch.ones(128 // group_size, out_features),
        zeros=torch.zeros(128 // group_size, out_features),
        bits=bits,
        group_size=group_size,
        input_permutation=torch.arange(128) if has_order else None,
    )
    kernel = pack(weight)
    kept = [kernel._packed, kernel._scales_and_minima]
    if kernel.input_permutation is not None:
        kept.append(kernel.input_permutation)
    size = PackedSize(bits, group_size, 128, out_features, has_order)
    name = "int4pack" if bits == 4 else "int4planes"
    assert kernel_bytes(size, name) == sum(tensor.nbytes for tensor in kept)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("group_size", [-1, 24, 32, 128])
@pytest.mark.parametrize("zeros", ["common", "whole", "float"])
def test_planes_take_what_the_plan_says(bits, group_size, zeros):
    has_order = group_size != -1
    weight = grouped_weight(bits, group_size, 200, 100, zeros=zeros, has_order=has_order)
    if zeros == "whole":  # 256 would take two bytes: 8 bits reach it in GPTQ's first format, seldom
        weight.zeros.clamp_(max=255)
    kernel = TritonBackend().prepare_grouped(weight, None, torch.float16)
    zero_point_bytes = {"common": 0, "whole": 1, "float": 2}[zeros]
    size = PackedSize(bits, group_size, 200, 100, has_order, zero_point_bytes)
    assert kernel_bytes(size, "triton") == kernel.num_bytes


@pytest.mark.parametrize("in_features", [128, 1024])
@pytest.mark.parametrize("joined", [1, 3])
def test_triton_layers_share_the_scratch_that_the_plan_counts(in_features, joined):
    gc.collect()  # kernels of other tests would still hold theirs
    size = PackedSize(4, 128, in_features, 100)
    weight = grouped_weight(4, 128, in_features, joined * size.out_features)
    kernel = TritonBackend().prepare_grouped(weight, None, torch.float16)
    assert 0 < kernel.shared_bytes <= scratch_bytes(size, "triton")
    if joined == 3:
        assert kernel.shared_bytes > 0.9 * scratch_bytes(size, "triton")


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_the_plan_knows_how_ggufs_zero_points_are_kept(name):
    block = BLOCK_TYPES[name]
    outputs, inputs = 64, 2 * block.weights
    rows = torch.randint(256, (outputs, 2 * block.num_bytes), dtype=torch.uint8)
    packed = PackedFormat("gguf", name, block.bits, block.group_size)
    tensors = PackedTensors("layer", packed, inputs, outputs, {"blocks": rows})
    weight = tensors.to_grouped()
    # Random bytes are no scales: what is looked at is whether zero points differ.
    whole = bool((weight.zeros == weight.zeros.flatten()[0]).all())
    info = TensorInfo("blk.0.ffn_up.weight", name, (outputs, inputs), Path("x"))
    (part,) = parts_of({info.name: info}, None, "cuda")
    found = PackedSize(block.bits, block.group_size, inputs, outputs)
    found = replace(found, zero_point_bytes=0 if whole else 2)
    assert part.num_bytes == kernel_bytes(found, "triton")


def test_one_group_for_all_inputs_is_cut_to_256():
    assert kernel_bytes(PackedSize(4, -1, 4096, 64), "int4pack") == 64 * 2048 + 16 * 64 * 4


def test_fp16_pads_the_inputs_to_512():
    assert fp16pack_bytes(576, 49152) == 1024 * 49152 * 2
    assert fp16pack_bytes(512, 10) == 512 * 10 * 2
    assert Fp16PackKernel.from_weight(torch.zeros(8, 576)).dequantize().shape == (8, 576)


def _bytes(variant, device, kernel=None):
    parts = parts_of(variant.tensors, variant.quantization, device, kernel=kernel)
    return sum(part.num_bytes for part in parts)


def test_on_cuda_the_reference_keeps_what_the_files_hold():
    """The 7B card's sizes, in GB, within its 3 %; the Triton kernels take about as much."""
    card = (3.90, 4.28, 4.02, 3.90, 7.01, 7.16)
    for variant, gigabytes in zip(gptq_7b(), card, strict=True):
        assert _bytes(variant, "cuda", "reference") == variant.weight_bytes
        assert _bytes(variant, "cuda") == pytest.approx(gigabytes * 1e9, rel=0.03)


def test_on_cpu_an_untied_table_stays_in_the_file_and_the_head_is_packed():
    variant = gptq_7b()[0]
    roles = {p.name: p for p in parts_of(variant.tensors, variant.quantization, "cpu")}
    assert roles["model.embed_tokens.weight"].num_bytes == 0
    assert roles["lm_head.weight"].num_bytes == 32016 * 4096 * 2
    assert roles["model.norm.weight"].num_bytes == 4096 * 4
    first = roles["model.layers.0.self_attn.q_proj"]
    assert (first.kernel, first.block) == ("int4pack", 0)
    assert first.num_bytes == 4096 * 4096 // 2 + 32 * 4096 * 4


def test_a_tied_head_takes_memory_of_its_own_on_cpu():
    table = TensorInfo("model.embed_tokens.weight", "F16", (1000, 512), Path("x"))
    wide = TensorInfo("model.embed_tokens.weight", "BF16", (1000, 512), Path("x"))
    (packed,) = parts_of({table.name: table}, None, "cpu")
    assert packed.num_bytes == 1000 * 512 * 2
    (widened,) = parts_of({wide.name: wide}, None, "cpu")
    assert widened.num_bytes == 1000 * 512 * 4
    (on_card,) = parts_of({table.name: table}, None, "cuda")
    assert on_card.num_bytes == 1000 * 512 * 2


def test_dense_weights_take_two_bytes_on_cuda_and_on_cpu_by_their_type():
    (variant,) = fp16_34b()
    assert _bytes(variant, "cuda") == variant.weight_bytes
    layer = "model.layers.0.mlp.up_proj.weight"
    narrow = {layer: TensorInfo(layer, "F16", (1024, 512), Path("x"))}
    wide = {layer: TensorInfo(layer, "BF16", (1024, 512), Path("x"))}
    assert next(iter(parts_of(narrow, None, "cpu"))).num_bytes == 1024 * 512 * 2
    assert next(iter(parts_of(wide, None, "cpu"))).num_bytes == 1024 * 512 * 4


def test_the_reference_keeps_a_gguf_layer_as_its_blocks_and_the_embedding_widened():
    variant = next(v for v in gguf_13b() if v.gguf_type == "Q4_K_S")
    parts = parts_of(variant.tensors, None, "cuda", kernel="reference")
    by_name = {p.name: p for p in parts}
    layer = by_name["blk.9.attn_q.weight"]
    assert layer.num_bytes == 5120 * 5120 // 256 * 144
    assert (layer.block, layer.kernel, layer.role) == (9, "reference", "other")
    head = 32000 * 5120
    assert by_name["output.weight"].num_bytes == head // 256 * 210
    assert by_name["output.weight"].role == "head"
    assert by_name["token_embd.weight"].num_bytes == head * 2


def test_for_triton_a_gguf_layer_is_packed_into_planes():
    variant = next(v for v in gguf_13b() if v.gguf_type == "Q4_K_S")
    layer = next(p for p in parts_of(variant.tensors, None, "cuda") if "9.attn_q" in p.name)
    # Half a byte a weight, and for each 32 a scale and a zero point in half precision.
    assert layer.num_bytes == 5120 * 5120 // 2 + 5120 * 5120 // 32 * 4
    assert layer.kernel == "triton"


def test_each_kernel_in_use_is_told_with_its_layers_and_rows():
    variant = gptq_7b()[0]
    (use,) = kernels_used(list(parts_of(variant.tensors, variant.quantization, "cuda")))
    assert (use.kernel, use.num_layers, use.max_packed_rows) == ("triton", 224, 64)
    (old,) = kernels_used(list(parts_of(variant.tensors, variant.quantization, OLD_GPU)))
    assert (old.kernel, old.num_layers, old.max_packed_rows) == ("reference", 224, 0)
    assert len(use.reasons) == len(old.reasons) == 1
    (own,) = kernels_used(list(parts_of(variant.tensors, variant.quantization, "cpu")))
    assert own.max_packed_rows is None
    assert kernels_used([]) == ()


def test_on_cpu_gguf_types_go_to_the_kernels_that_take_them():
    variant = next(v for v in gguf_13b() if v.gguf_type == "Q4_K_S")
    kernels = {p.name: p.kernel for p in parts_of(variant.tensors, None, "cpu")}
    assert kernels["blk.9.attn_q.weight"] == "int4pack"
    assert kernels["blk.0.ffn_down.weight"] == "int4planes"  # Q5_K: 5 bits
    assert kernels["output.weight"] == "fp16pack"  # Q6_K: groups of 16
    eight = next(v for v in gguf_13b() if v.gguf_type == "Q8_0")
    kernels = {p.name: p.kernel for p in parts_of(eight.tensors, None, "cpu")}
    assert kernels["blk.0.ffn_down.weight"] == "int4planes"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_gguf_layer_counts_alike_by_its_own_name_and_by_the_models(device):
    """A catalogue knows the file's names, the loader those of the model."""
    own = TensorInfo("blk.3.ffn_down.weight", "Q4_K", (512, 1024), Path("x"))
    rows = TensorInfo(
        "model.layers.3.mlp.down_proj.blocks", "U8", (512, 1024 // 256 * 144), own.shard
    )
    packed = PackedFormat("gguf", "Q4_K", 4, 32)
    quantization = Quantization(packed, desc_act=False, sym=False, source="")
    (first,) = parts_of({own.name: own}, None, device)
    (second,) = parts_of({rows.name: rows}, quantization, device)
    assert (first.num_bytes, first.scratch_bytes, first.kernel, first.block) == (
        second.num_bytes,
        second.scratch_bytes,
        second.kernel,
        second.block,
    )


def test_a_tied_gguf_head_is_packed_from_the_embeddings_blocks():
    table = TensorInfo("token_embd.weight", "Q4_0", (1000, 512), Path("x"))
    embedding, head = parts_of({table.name: table}, None, "cpu")
    assert embedding.num_bytes == 1000 * 512 * 2
    assert (head.role, head.kernel) == ("head", "int4pack")


def test_rules_for_single_modules_are_followed():
    names = {
        "model.layers.0.mlp.up_proj.qweight": ("I32", (64 // 4, 64)),
        "model.layers.0.mlp.up_proj.scales": ("F16", (2, 64)),
    }
    tensors = {n: TensorInfo(n, d, s, Path("x")) for n, (d, s) in names.items()}
    quantization = Quantization(
        PackedFormat("gptq", "gptq", 4, 32),
        desc_act=False,
        sym=True,
        source="",
        rules={r".*up_proj": {"bits": 8}},
    )
    (part,) = parts_of(tensors, quantization, "cpu")
    assert part.kernel == "int4planes"
    assert part.num_bytes == kernel_bytes(PackedSize(8, 32, 64, 64), "int4planes")


def test_a_backend_asked_for_by_name_is_the_one_counted():
    variant = gptq_7b()[0]
    parts = parts_of(variant.tensors, variant.quantization, "cpu", kernel="fp16pack")
    layer = next(part for part in parts if part.kernel)
    assert layer.num_bytes == 4096 * 4096 * 2


def test_tensors_of_no_known_layout_count_as_stored():
    name = "model.layers.0.mlp.up_proj.weight_packed"
    tensors = {name: TensorInfo(name, "I32", (64, 8), Path("x"))}
    assert [p.num_bytes for p in parts_of(tensors, None, "cuda")] == [64 * 8 * 4]
    odd = TensorInfo("a.strange", "U8", (), Path("x"))
    assert [p.num_bytes for p in parts_of({odd.name: odd}, None, "cpu")] == [1]


@pytest.mark.parametrize(
    ("layout", "qweight", "scales"),
    [
        ("gemm", ("I32", (512, 128 // 8)), (4, 128)),
        ("gemv", ("I32", (128, 512 // 8)), (128, 8)),  # scales by output, padded
        ("gemv_fast", ("I16", (128 // 4, 512)), (8, 128)),
    ],
)
def test_every_layout_of_awq_counts_alike(layout, qweight, scales):
    module = "model.layers.0.mlp.up_proj"
    tensors = {
        f"{module}.qweight": TensorInfo("", *qweight, Path("x")),
        f"{module}.scales": TensorInfo("", "F16", scales, Path("x")),
    }
    quantization = Quantization(
        PackedFormat("awq", layout, 4, 128), desc_act=False, sym=False, source=""
    )
    (part,) = parts_of(tensors, quantization, "cpu")
    assert part.num_bytes == kernel_bytes(PackedSize(4, 128, 512, 128), "int4pack")


def test_compressed_tensors_of_the_same_layout_count_as_gptq_does():
    module = "model.layers.0.mlp.up_proj"
    tensors = {
        f"{module}.weight_packed": TensorInfo("", "I32", (128, 64 // 8), Path("x")),
        f"{module}.weight_scale": TensorInfo("", "F16", (128, 2), Path("x")),
        f"{module}.weight_shape": TensorInfo("", "I64", (2,), Path("x")),
    }
    quantization = Quantization(
        PackedFormat("gptq", "gptq", 4, 32), desc_act=False, sym=True, source=""
    )
    (part,) = parts_of(tensors, quantization, "cpu")
    assert part.num_bytes == kernel_bytes(PackedSize(4, 32, 64, 128), "int4pack")


@pytest.mark.parametrize("checkpoint_format", LAYOUTS)
def test_a_plan_knows_which_tensors_belong_to_a_layer_of_every_layout(checkpoint_format):
    """Plans run without PyTorch, so they have a list of their own; a layer that it lacks would be
    counted as dense tensors."""
    bits, group_size = GGUF_GROUPS.get(checkpoint_format, (4, 128))
    method = "gguf" if checkpoint_format in BLOCK_TYPES else "gptq"
    layout = LAYOUTS[checkpoint_format](PackedFormat(method, checkpoint_format, bits, group_size))
    assert set(layout.rules(512, 512)) <= set(_PACKED_PARTS[layout.marker])


@pytest.mark.parametrize(
    ("bits", "group_size", "kernel", "usual", "in_float32"),
    [(4, 64, "int4pack", 5, 7), (8, 64, "int4planes", 5, 7), (8, -1, "int8pack", 2, 4)],
)
def test_where_products_are_in_float32_a_weight_is_unpacked_to_two_bytes_more(
    bits, group_size, kernel, usual, in_float32
):
    module = "model.layers.0.mlp.up_proj"
    num_groups = 1 if group_size == -1 else 512 // group_size
    tensors = {
        f"{module}.qweight": TensorInfo("", "I32", (512 * bits // 32, 256), Path("x")),
        f"{module}.scales": TensorInfo("", "F16", (num_groups, 256), Path("x")),
    }
    packed = PackedFormat("gptq", "gptq", bits, group_size)
    quantization = Quantization(packed, desc_act=False, sym=True, source="")
    for has_bfloat16, each in ((True, usual), (False, in_float32)):
        facts = DeviceFacts("cpu", has_bfloat16=has_bfloat16)
        (part,) = parts_of(tensors, quantization, facts)
        assert (part.kernel, part.scratch_bytes) == (kernel, 512 * 256 * each)
