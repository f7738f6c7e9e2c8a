"""Llama models whose packed layers wait to be prepared, filled with anything, on any device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from loaders.model.packed_linear import PackedLinear, TensorSpec
from loaders.quantization.layouts import layout_of
from loaders.quantization.packed_format import PackedFormat
from loaders.quantization.packed_tensors import InputOrder, PackedTensors

if TYPE_CHECKING:
    import pytest
    from torch import Tensor

_DTYPES = {"I32": torch.int32, "F16": torch.float16, "U8": torch.uint8, "I16": torch.int16}


@dataclass(frozen=True)
class Format:
    packed: PackedFormat
    has_order: bool = False


FORMATS = {
    "gptq-order": Format(PackedFormat("gptq", "gptq", 4, 128), has_order=True),
    "gptq-32g-order": Format(PackedFormat("gptq", "gptq", 4, 32), has_order=True),
    "gptq-3bit": Format(PackedFormat("gptq", "gptq", 3, 128), has_order=True),
    "awq": Format(PackedFormat("awq", "gemm", 4, 128)),
    "awq-gemv": Format(PackedFormat("awq", "gemv", 4, 128)),
    "awq-gemv-fast": Format(PackedFormat("awq", "gemv_fast", 4, 128)),
    "compressed": Format(PackedFormat("compressed-tensors", "pack-quantized, zero points", 4, 128)),
    "Q4_K": Format(PackedFormat("gguf", "Q4_K", 4, 32)),
    "Q2_K": Format(PackedFormat("gguf", "Q2_K", 2, 16)),
    "Q6_K": Format(PackedFormat("gguf", "Q6_K", 6, 16)),
}


def model_of(format_: Format, device: str, **shape: int) -> Any:
    """Make a two-layer Llama whose packed layers wait to be prepared, filled with anything."""
    config = LlamaConfig(**{"num_hidden_layers": 2, "vocab_size": 64} | shape)
    with torch.device("meta"):
        model = LlamaForCausalLM(config).half()
    generator = torch.Generator(device).manual_seed(0) if device == "cpu" else None
    for name, linear in list(model.model.named_modules()):
        if not isinstance(linear, nn.Linear):
            continue
        with torch.device(device):
            tensors = _tensors(format_, linear, generator)
        layer = PackedLinear.awaiting(
            format_.packed,
            linear.in_features,
            linear.out_features,
            name=f"model.{name}",
            tensors={key: TensorSpec(tuple(t.shape), t.dtype) for key, t in tensors.items()},
        )
        for key, tensor in tensors.items():
            setattr(layer, key, tensor)
        layer.forget_initialised()
        parent, _, child = name.rpartition(".")
        setattr(model.model.get_submodule(parent), child, layer)
    return model


def _tensors(
    format_: Format, linear: nn.Linear, generator: torch.Generator | None
) -> dict[str, Tensor]:
    packed, tensors = format_.packed, {}
    for key, rule in layout_of(packed).rules(linear.in_features, linear.out_features).items():
        dtype = _DTYPES[next(dtype for dtype in rule.dtypes if dtype in _DTYPES)]
        if key == "rows":
            tensors[key] = torch.randperm(linear.out_features, generator=generator).int()
        elif key == "weight_shape":
            continue
        elif key in ("g_idx", "weight_g_idx"):
            if format_.has_order:
                # One order for all layers with as many inputs.
                order = torch.arange(linear.in_features).flip(0).view(2, -1).t().flatten()
                tensors[key] = (order // packed.group_size).int()
        elif dtype.is_floating_point:
            tensors[key] = torch.rand(rule.shape, generator=generator).to(dtype) + 0.1
        else:
            info = torch.iinfo(dtype)
            tensors[key] = torch.randint(
                info.min, info.max, rule.shape, dtype=dtype, generator=generator
            )
    if "blocks" in tensors:  # whose scales are halves somewhere in them
        tensors["blocks"] &= 0x3F
    if packed.checkpoint_format.startswith("gemv"):  # groups beyond those that there are
        groups = packed.num_groups(linear.in_features)
        scales = tensors["scales"]
        (scales[:, groups:] if packed.checkpoint_format == "gemv" else scales[groups:]).zero_()
    return tensors


def answer_for_values(monkeypatch: pytest.MonkeyPatch, format_: Format) -> None:
    """Say of layers on the meta device what their values would: nothing is wrong with them."""
    orders: dict[int, Tensor] = {}

    def order(packed: PackedTensors) -> InputOrder:
        size, num_inputs = packed.format.group_size, packed.in_features
        if not format_.has_order:
            return InputOrder(None, size)
        index = torch.empty(num_inputs, dtype=torch.int64, device="meta")
        groups = torch.empty(num_inputs // size, dtype=torch.int64, device="meta")
        return InputOrder(orders.setdefault(num_inputs, index), size, groups)

    monkeypatch.setattr(PackedTensors, "check_values", lambda _: None)
    monkeypatch.setattr(PackedTensors, "is_constant", lambda _: False)
    monkeypatch.setattr(PackedTensors, "input_order", order)
    monkeypatch.setattr(InputOrder, "is_same", lambda *_: True)
    monkeypatch.setattr(
        "loaders.quantization.layouts.awq._without_surplus",
        lambda scales, num_groups: scales[:num_groups].float(),
    )
