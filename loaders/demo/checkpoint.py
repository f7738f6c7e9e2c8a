"""Writes one branch of the demo: packed weights, settings and tokenizer, as published ones lie.

How weights are rounded is `quantize`'s, how words are packed `loaders.quantization.packing`'s, and
the model card `model_card`'s business.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from transformers import GenerationConfig

from loaders.demo.quantize import RoundedLinear, falling_norm_order, round_linear
from loaders.quantization.packing import pack_awq, pack_gptq_codes, pack_gptq_zeros

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

    from loaders.demo.branches import DemoBranch
    from loaders.demo.source import SourceModel

WEIGHTS_FILE = "model.safetensors"
# What the model's makers recommend for sampling, in their model card of SmolLM2-135M-Instruct.
RECOMMENDED_TEMPERATURE = 0.2
RECOMMENDED_TOP_P = 0.9

# Layers that read the same input share its order, as they do where real activations decide it.
_SHARED_INPUTS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)


def write_branch(folder: Path, source: SourceModel, branch: DemoBranch) -> None:
    """Write all files of a branch but its model card into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(_packed_tensors(source, branch), folder / WEIGHTS_FILE, metadata={"format": "pt"})
    settings = _settings(branch)
    config = source.config.to_diff_dict() | {
        "torch_dtype": "float16",
        "quantization_config": settings,
    }
    _write_json(folder / "config.json", config)
    if branch.quant_method == "gptq":
        own = {key: value for key, value in settings.items() if key != "quant_method"}
        _write_json(folder / "quantize_config.json", own)
    source.tokenizer.save_pretrained(folder)
    _generation_config(source).save_pretrained(folder)


def _packed_tensors(source: SourceModel, branch: DemoBranch) -> dict[str, Tensor]:
    layers = range(source.config.num_hidden_layers)
    jobs = [
        {f"model.layers.{layer}.{name}": None for name in names}
        for layer in layers
        for names in _SHARED_INPUTS
    ]
    packed: dict[str, Tensor] = {}
    with _workers() as pool:
        for part in pool.map(lambda names: _round_together(source.weights, names, branch), jobs):
            packed |= part
    linear = {f"{name}.weight" for names in jobs for name in names}
    plain = {
        name: weight.to(torch.float16)
        for name, weight in source.weights.items()
        if name not in linear
    }
    return plain | packed


@contextmanager
def _workers() -> Iterator[ThreadPoolExecutor]:
    """Threads of one core each: the pieces of work are too small to be split any further."""
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(
            min(8, os.cpu_count() or 1), initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


def _round_together(
    weights: Mapping[str, Tensor], names: Mapping[str, None], branch: DemoBranch
) -> dict[str, Tensor]:
    """Round and pack the layers that share one input."""
    matrices = {name: weights[f"{name}.weight"].t().contiguous() for name in names}
    order = falling_norm_order(list(matrices.values())) if branch.act_order else None
    packed: dict[str, Tensor] = {}
    for name, matrix in matrices.items():
        rounded = round_linear(matrix, bits=branch.bits, group_size=branch.group_size, order=order)
        packed |= {f"{name}.{part}": tensor for part, tensor in _pack(rounded, branch).items()}
    return packed


def _pack(rounded: RoundedLinear, branch: DemoBranch) -> dict[str, Tensor]:
    if branch.quant_method == "awq":
        return {
            "qweight": pack_awq(rounded.codes),
            "qzeros": pack_awq(rounded.zeros),
            "scales": rounded.scales,
        }
    return {
        "qweight": pack_gptq_codes(rounded.codes, branch.bits),
        "qzeros": pack_gptq_zeros(rounded.zeros, branch.bits, checkpoint_format="gptq"),
        "scales": rounded.scales,
        "g_idx": rounded.g_idx,
    }


def _settings(branch: DemoBranch) -> dict[str, Any]:
    if branch.quant_method == "awq":
        return {
            "bits": branch.bits,
            "group_size": branch.group_size,
            "modules_to_not_convert": None,
            "quant_method": "awq",
            "version": "gemm",
            "zero_point": True,
        }
    return {
        "bits": branch.bits,
        "group_size": branch.group_size,
        "damp_percent": None,  # nothing was calibrated
        "desc_act": branch.act_order,
        "static_groups": False,
        "sym": False,
        "true_sequential": False,
        "model_name_or_path": None,
        "model_file_base_name": "model",
        "quant_method": "gptq",
    }


def _generation_config(source: SourceModel) -> GenerationConfig:
    return GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=source.config.bos_token_id,
        # A turn's end, and `<|endoftext|>`, which ends a document and stands for unknown text too.
        eos_token_id=[source.config.eos_token_id, source.tokenizer.unk_token_id],
        pad_token_id=source.config.pad_token_id,
        do_sample=True,
        temperature=RECOMMENDED_TEMPERATURE,
        top_p=RECOMMENDED_TOP_P,
    )


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
