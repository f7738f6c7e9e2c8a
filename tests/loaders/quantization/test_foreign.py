"""Other tools' packings: the catalogue, the plan and the loader refuse each by its own name."""

import json
import struct
from pathlib import Path

import pytest

from loaders.catalogue.variants import VariantKind, list_variants
from loaders.checkpoint.files import TensorInfo
from loaders.errors import UnsupportedQuantizationError
from loaders.load import load
from loaders.planning.accelerators import parse_gpus
from loaders.planning.plan import plan_variants
from loaders.quantization.settings import resolve_quantization
from loaders.repository.local import FolderFiles
from loaders.repository.selection import select_files
from loaders.repository.spec import parse_spec

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 2048,
}
Q = "model.layers.0.self_attn.q_proj"
NORM = {"model.norm.weight": ("F16", [64])}
WEIGHT = {f"{Q}.weight": ("F16", [64, 64])}
GPTQ = {
    f"{Q}.qweight": ("I32", [8, 64]),
    f"{Q}.qzeros": ("I32", [1, 8]),
    f"{Q}.scales": ("F16", [1, 64]),
}
MARLIN = {f"{Q}.B": ("I32", [4, 128]), f"{Q}.s": ("F16", [1, 64])}
BITS_OF = {"F4": 4, "F6_E2M3": 6, "I16": 16, "F16": 16, "BF16": 16, "C64": 64, "I64": 64}
BITS_OF |= dict.fromkeys(("I32", "U32", "F32"), 32)

# Name → (what is packed, what its own tensors tell).
BY_TENSORS = {
    "MLX": {
        f"{Q}.weight": ("U32", [64, 8]),
        f"{Q}.scales": ("BF16", [64, 1]),
        f"{Q}.biases": ("BF16", [64, 1]),
    },
    "bitsandbytes": {
        f"{Q}.weight": ("U8", [2048, 1]),
        f"{Q}.weight.absmax": ("F32", [64]),
        f"{Q}.weight.quant_map": ("F32", [16]),
        f"{Q}.weight.quant_state.bitsandbytes__nf4": ("U8", [80]),
    },
    "EXL2": {
        f"{Q}.q_weight": ("I32", [8, 64]),
        f"{Q}.q_scale": ("I32", [2, 8]),
        f"{Q}.q_groups": ("I16", [4]),
    },
    "EXL3": {
        f"{Q}.trellis": ("I16", [4, 4, 64]),
        f"{Q}.suh": ("F16", [64]),
        f"{Q}.svh": ("F16", [64]),
    },
    "QTIP": {f"{Q}.trellis": ("I16", [4, 64]), f"{Q}.tlut": ("F16", [512, 2])},
    "HQQ": {f"{Q}.W_q": ("U8", [32, 64]), f"{Q}.scale": ("F16", [1, 64])},
    "AQLM": {f"{Q}.codes": ("I16", [64, 8, 1]), f"{Q}.codebooks": ("F16", [1, 256, 1, 8])},
    "QuIP#": {f"{Q}.Qidxs": ("I64", [64, 1]), f"{Q}.SU": ("F16", [64])},
    "VPTQ": {f"{Q}.indices": ("I16", [8, 64]), f"{Q}.centroids.weight": ("F16", [1, 256])},
    "SpQR": {f"{Q}.dense_weights": ("I64", [64]), f"{Q}.row_offsets": ("I32", [65])},
    "QQQ": {f"{Q}.B": ("I32", [4, 128]), f"{Q}.s_channel": ("F32", [1, 64])},
    "sparse Marlin": {f"{Q}.B_24": ("I32", [2, 128]), f"{Q}.B_meta": ("I16", [64, 4])},
    "Marlin": MARLIN,
    "MXFP4": {
        "model.layers.0.mlp.down_proj_blocks": ("U8", [64, 4, 16]),
        "model.layers.0.mlp.down_proj_scales": ("U8", [64, 4]),
    },
    "MXFP4, compressed": {
        f"{Q}.weight_packed": ("U8", [64, 32]),
        f"{Q}.weight_scale": ("F8_E8M0", [64, 2]),
    },
    "NVFP4": {
        f"{Q}.weight": ("U8", [64, 32]),
        f"{Q}.weight_scale": ("F8_E4M3", [64, 4]),
        f"{Q}.weight_scale_2": ("F32", []),
    },
    "NVFP4, compressed": {
        f"{Q}.weight_packed": ("U8", [64, 32]),
        f"{Q}.weight_scale": ("F8_E4M3", [64, 4]),
        f"{Q}.weight_global_scale": ("F32", [1]),
    },
    "AWQ as NVIDIA ModelOpt": {
        f"{Q}.weight": ("U8", [32, 64]),
        f"{Q}.pre_quant_scale": ("F16", [64]),
    },
    "EETQ": {f"{Q}.weight": ("I8", [64, 64]), f"{Q}.weight_scales": ("F16", [64])},
    "Quanto": {f"{Q}.weight._data": ("I8", [64, 64]), f"{Q}.weight._scale": ("F16", [64, 1])},
    "torchao": {f"{Q}.weight:qdata": ("I8", [64, 64]), f"{Q}.weight:scale": ("F16", [64])},
    "torchao, flat": {f"{Q}._weight_qdata": ("F8_E4M3", [64, 64])},
    "INT8": {f"{Q}.weight": ("I8", [64, 64]), f"{Q}.weight_scale": ("F32", [64, 1])},
    "FP8, one scale": {f"{Q}.weight": ("F8_E4M3", [64, 64]), f"{Q}.weight_scale": ("F32", [])},
    "FP8, by blocks": {
        f"{Q}.weight": ("F8_E4M3", [64, 64]),
        f"{Q}.weight_scale_inv": ("F32", [1, 1]),
    },
    "FP8, no scales": {f"{Q}.weight": ("F8_E5M2", [64, 64])},
    "FP8, AMD's": {f"{Q}.weight": ("F8_E4M3FNUZ", [64, 64])},
    "FP8, one layer of GPTQ": {
        **GPTQ,
        "model.layers.0.self_attn.k_proj.weight": ("F8_E4M3", [32, 64]),
    },
    "FP8 or INT8 with scales, weights widened": {
        f"{Q}.weight": ("BF16", [64, 64]),
        f"{Q}.weight_scale_inv": ("F32", [1, 1]),
    },
    "FP8 or INT8 with scales, of inputs": {**WEIGHT, f"{Q}.input_scale": ("F32", [])},
    "FP6": {f"{Q}.weight": ("F6_E2M3", [64, 64])},
    "FP4": {f"{Q}.weight": ("F4", [64, 64])},
    "something unknown": {**WEIGHT, f"{Q}.bit_planes": ("I16", [64, 4])},
    "something unknown, complex": {f"{Q}.weight": ("C64", [64, 64])},
}


def write_checkpoint(folder: Path, tensors, **settings) -> Path:
    """Write headers as they would be, over zeros; settings: files by name without their ending."""
    folder.mkdir()
    embedded = settings.pop("config", {})
    files = {"config": CONFIG | embedded, **settings}
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    header, end = {}, 0
    for name, (dtype, shape) in (NORM | tensors).items():
        count = 1
        for size in shape:
            count *= size
        start, end = end, end + count * BITS_OF.get(dtype, 8) // 8
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    content = struct.pack("<Q", len(text)) + text + bytes(end)
    (folder / "model.safetensors").write_bytes(content)
    return folder


def refusal_of(folder: Path) -> str:
    """Return the words of the refusal, which catalogue, plan and loader must share."""
    (variant,) = list_variants(FolderFiles(folder))
    assert variant.kind is VariantKind.OTHER
    planned = plan_variants([variant], parse_gpus("CARD:24GB"))
    with pytest.raises(UnsupportedQuantizationError) as refused:
        load(str(folder), device="cpu")
    assert [r.reason for r in planned.refused] == [variant.refusal] == [str(refused.value)]
    return str(refused.value)


@pytest.mark.parametrize("case", BY_TENSORS)
def test_a_packing_is_named_where_only_its_tensors_tell_it(tmp_path, case):
    tensors = BY_TENSORS[case]
    words = refusal_of(write_checkpoint(tmp_path / "model", tensors))
    assert f"packed as {case.partition(',')[0]}" in words
    shown = [name for name in tensors if name in words]
    dtype, shape = tensors[shown[-1]]
    assert f"({dtype} {shape})" in words
    assert "GPTQ, AWQ" in words


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("bitsandbytes", "bitsandbytes"),
        ("exl2", "EXL2"),
        ("hqq", "HQQ"),
        ("aqlm", "AQLM"),
        ("fp8", "FP8"),
        ("fbgemm_fp8", "FP8"),
        ("mxfp4", "MXFP4"),
        ("MARLIN", "Marlin"),
        ("quark", "Quark"),
        ("torchao", "torchao"),
    ],
)
def test_a_method_in_the_settings_is_named_with_what_the_tensors_are(tmp_path, method, name):
    config = {"quantization_config": {"quant_method": method}}
    words = refusal_of(write_checkpoint(tmp_path / "model", WEIGHT, config=config))
    assert f"name {name}" in words
    assert f"quant_method '{method}'" in words
    assert "no tensor is packed (all are F16)" in words


@pytest.mark.parametrize(
    ("settings", "name", "where"),
    [
        ({"hf_quant_config": {"quantization": {"quant_algo": "FP8"}}}, "FP8", "hf_quant_config"),
        (
            {"hf_quant_config": {"quantization": {"quant_algo": "W4A16_AWQ"}}},
            "NVIDIA ModelOpt's W4A16_AWQ",
            "hf_quant_config",
        ),
        (
            {
                "config": {
                    "quantization_config": {"quant_algo": "NVFP4", "quant_method": "modelopt"}
                }
            },
            "NVFP4",
            "config.json",
        ),
        ({"config": {"quantization": {"group_size": 64, "bits": 4}}}, "MLX", "config.json"),
        (
            {"quantize_config": {"bits": 4, "group_size": 128, "is_marlin_format": True}},
            "Marlin",
            "quantize_config.json says is_marlin_format",
        ),
        (
            {"quantize_config": {"bits": 4, "group_size": 128, "checkpoint_format": "marlin"}},
            "Marlin",
            "checkpoint_format 'marlin'",
        ),
    ],
)
@pytest.mark.parametrize("tensors", [WEIGHT, GPTQ])
def test_settings_in_any_file_name_a_packing_that_the_tensors_do_not_show(
    tmp_path, tensors, settings, name, where
):
    words = refusal_of(write_checkpoint(tmp_path / "model", tensors, **settings))
    assert f"name {name}" in words
    assert where in words


@pytest.mark.parametrize(
    "settings",
    [
        {"is_marlin_format": True},
        {"checkpoint_format": "marlin"},
        {"quant_method": "marlin"},
        {"quant_method": "gptq"},  # says nothing of it
    ],
)
def test_marlins_tensors_are_named_whatever_the_settings_call_them(tmp_path, settings):
    settings = {"bits": 4, "group_size": 128, **settings}
    words = refusal_of(write_checkpoint(tmp_path / "model", MARLIN, quantize_config=settings))
    assert "packed as Marlin" in words
    assert f"{Q}.B (I32 [4, 128]) beside .s" in words


def test_settings_and_tensors_are_both_said_where_both_tell(tmp_path):
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    tensors = BY_TENSORS["FP8, by blocks"]
    words = refusal_of(write_checkpoint(tmp_path / "model", tensors, config=config))
    assert f"1 of 3 tensors, the first {Q}.weight (F8_E4M3 [64, 64])" in words
    assert "config.json says quant_method 'fp8'" in words


def test_a_foreign_packing_is_named_before_the_model_type_is_looked_at(tmp_path):
    config = {"model_type": "gpt_oss", "num_local_experts": 32}
    words = refusal_of(write_checkpoint(tmp_path / "model", BY_TENSORS["MXFP4"], config=config))
    assert "MXFP4" in words


def test_modelopts_own_file_is_downloaded_with_the_small_ones():
    paths = ["config.json", "hf_quant_config.json", "model.safetensors"]
    assert "hf_quant_config.json" in select_files(paths, parse_spec("a/b"), lambda _: {}).small


def infos(tensors) -> dict[str, TensorInfo]:
    path = Path("model.safetensors")
    return {n: TensorInfo(n, dtype, tuple(shape), path) for n, (dtype, shape) in tensors.items()}


@pytest.mark.parametrize(
    "extra",
    [
        {"model.layers.0.self_attn.attn.bias": ("BOOL", [1, 1, 8, 8])},
        {"model.layers.0.self_attn.k_scale": ("F32", [1])},
        {"model.layers.0.self_attn.k_proj.output_scale": ("F16", [])},
        {"model.embeddings.position_ids": ("I64", [1, 8])},
    ],
)
def test_masks_positions_and_cache_scales_are_no_packing(extra):
    assert resolve_quantization(None, {}, infos(WEIGHT | extra)) is None


def test_a_quantised_kv_cache_alone_says_nothing_of_the_weights():
    modelopt = {"quantization": {"quant_algo": None, "kv_cache_quant_algo": "FP8"}}
    assert resolve_quantization(None, {}, infos(WEIGHT), modelopt=modelopt) is None


@pytest.mark.parametrize("dtype", ["F64", "F32", "BF16"])
def test_what_is_read_here_is_not_taken_for_foreign(dtype):
    tensors = {**GPTQ, "model.layers.0.self_attn.rotary_emb.inv_freq": (dtype, [8])}
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 64, "is_marlin_format": False}
    found = resolve_quantization(None, {"quantization_config": settings}, infos(tensors))
    assert found is not None
    assert found.base.quant_method == "gptq"
