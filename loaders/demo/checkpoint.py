"""Writes one branch of the demo: packed weights, settings and tokenizer, as published ones lie.

How weights are rounded is `quantize`'s, how words are packed `loaders.quantization.packing`'s, and
the model card `model_card`'s business.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from transformers import GenerationConfig

from loaders.demo.branches import RECOMMENDED_TEMPERATURE, RECOMMENDED_TOP_P, WEIGHTS_FILE
from loaders.demo.quantize import RoundedLinear, falling_norm_order, round_linear
from loaders.demo.settings_files import settings_files
from loaders.quantization.packing import pack_awq, pack_gptq_codes, pack_gptq_zeros

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

    from loaders.demo.branches import DemoBranch
    from loaders.demo.source import SourceModel

# Layers that read the same input share its order, as they do where real activations decide it.
_SHARED_INPUTS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)


def write_branch(
    folder: Path,
    source: SourceModel,
    branch: DemoBranch,
    *,
    on_percent_done: Callable[[float], None] = lambda _: None,
) -> None:
    """Write all files of a branch but its model card into a folder.

    on_percent_done: called with how much of the rounding is done.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        _packed_tensors(source, branch, on_percent_done),
        folder / WEIGHTS_FILE,
        metadata={"format": "pt"},
    )
    for name, text in settings_files(source.config.to_diff_dict(), branch).items():
        (folder / name).write_text(text)
    source.tokenizer.save_pretrained(folder)
    _generation_config(source).save_pretrained(folder)


def _packed_tensors(
    source: SourceModel, branch: DemoBranch, on_percent_done: Callable[[float], None]
) -> dict[str, Tensor]:
    layers = range(source.config.num_hidden_layers)
    jobs = [
        {f"model.layers.{layer}.{name}": None for name in names}
        for layer in layers
        for names in _SHARED_INPUTS
    ]
    packed: dict[str, Tensor] = {}
    with _workers() as pool:
        rounded = pool.map(lambda names: _round_together(source.weights, names, branch), jobs)
        for number, part in enumerate(rounded, start=1):
            packed |= part
            on_percent_done(100 * number / len(jobs))
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
        rounded = round_linear(
            matrix,
            bits=branch.bits,
            group_size=branch.group_size,
            order=order,
            symmetric=branch.symmetric,
        )
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
