"""Measures how well a model predicts the demo's text, and remembers what was measured.

A build gives the same bits everywhere (see `quantize`), and measuring eight models takes a minute
of two cores, so the figures are recorded with the package (`figures`) with the sha256 of the
weights they belong to. Weights or a text that no record knows are measured.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import LlamaForCausalLM

from loaders.demo.branches import WEIGHTS_FILE
from loaders.demo.figures import read_figures
from loaders.quantization.packed_format import PackedFormat
from loaders.quantization.packed_tensors import PackedTensors
from loaders.repository.manifest import sha256_of_file

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

    from loaders.demo.branches import DemoBranch
    from loaders.demo.source import SourceModel

EVALUATION_TEXT = Path(__file__).with_name("evaluation_text.txt")

# Logits of this many positions exist at once; each takes 200 kB.
_POSITIONS_AT_ONCE = 256


def measure_checkpoint(folder: Path, source: SourceModel, branch: DemoBranch) -> float:
    """Return the perplexity of a branch's files, dequantised and multiplied in fp32."""
    weights = _dequantised(load_file(folder / WEIGHTS_FILE), branch)
    return measure_source(replace(source, weights=weights))


def _dequantised(stored: dict[str, Tensor], branch: DemoBranch) -> dict[str, Tensor]:
    """Return plain weights under Transformers' names; takes what is stored apart."""
    form = "gptq" if branch.quant_method == "gptq" else "gemm"
    format_ = PackedFormat(branch.quant_method, form, branch.bits, branch.group_size)
    packed: dict[str, dict[str, Tensor]] = defaultdict(dict)
    weights = {}
    for name, tensor in stored.items():
        layer, _, part = name.rpartition(".")
        if part == "weight":
            weights[name] = tensor.float()
        else:
            packed[layer][part] = tensor
    for layer, parts in packed.items():
        groups, outputs = parts["scales"].shape
        size = len(parts["g_idx"]) if "g_idx" in parts else groups * branch.group_size
        tensors = PackedTensors(layer, format_, size, outputs, parts)
        weights[f"{layer}.weight"] = tensors.dequantize().contiguous()
    return weights


def measure_source(source: SourceModel) -> float:
    """Return the perplexity of what the demo is rounded from, in fp32."""
    model = LlamaForCausalLM(source.config)
    model.load_state_dict(dict(source.weights), strict=False)  # the head is tied, so not among them
    model.tie_weights()
    return _measure(model, source.tokenizer)


def _measure(model: Any, tokenizer: PreTrainedTokenizerFast) -> float:
    """Read the whole text in one piece and exponentiate the mean loss of each next token."""
    text = EVALUATION_TEXT.read_text(encoding="utf-8")
    token_ids = torch.tensor([tokenizer(text)["input_ids"]])
    targets = token_ids[0, 1:]
    loss = 0.0
    with torch.inference_mode():
        hidden = model.model(token_ids, use_cache=False).last_hidden_state[0, :-1]
        for start in range(0, len(targets), _POSITIONS_AT_ONCE):
            part = slice(start, start + _POSITIONS_AT_ONCE)
            logits = model.lm_head(hidden[part])
            loss += float(functional.cross_entropy(logits, targets[part], reduction="sum"))
    return math.exp(loss / len(targets))


def recorded_perplexity(weights: Path) -> float | None:
    """Return what was measured for exactly these weights and this text, None if nothing was."""
    figures = read_figures()
    if figures.text_sha256 != sha256_of_file(EVALUATION_TEXT):
        return None
    return figures.perplexity_of_weights(sha256_of_file(weights))
