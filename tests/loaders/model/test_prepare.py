"""What is held while layers are prepared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from loaders.memory.release import MappedFiles
from loaders.model.kernels.output_slice import OutputSlice
from loaders.model.kernels.triton import pack
from loaders.model.packed_linear import PackedLinear, TensorSpec, packed_layers
from loaders.model.prepare import prepare_layers
from loaders.quantization.layouts import layout_of
from loaders.quantization.packed_format import PackedFormat
from loaders.quantization.packed_tensors import InputOrder, PackedTensors
from tests.grouped_backends import PlainBackend, PlainKernel, use_plain_backend
from tests.live_bytes import LiveBytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from loaders.quantization.packed_tensors import GroupedWeight

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
formats = pytest.mark.parametrize("format_", FORMATS.values(), ids=FORMATS)


def model_of(format_: Format, device: str, **shape: int) -> Any:
    """Make a two-layer Llama whose packed layers wait to be prepared, filled with anything."""
    config = LlamaConfig(num_hidden_layers=2, vocab_size=64, **shape)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
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


def prepare(model: Any, on_progress: Callable[[str, float | None], None] = lambda *_: None) -> None:
    prepare_layers(
        model,
        MappedFiles(()),
        dtype=torch.float16,
        asked="auto",
        excluded=frozenset(),
        offloaded=frozenset(),
        device_facts=None,
        on_progress=on_progress,
    )


def num_bytes(tensors: Any) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


def assert_within_bound(model: Any, backend: Any) -> None:
    """At most the weights, as stored or as kept, and the largest set unpacked to float16."""
    layers = packed_layers(model)
    tensors = {name: list(layer.waiting.stored.values()) for name, layer in layers.items()}
    stored = {name: num_bytes(of_layer) for name, of_layer in tensors.items()}
    known = [tensor for of_layer in tensors.values() for tensor in of_layer]
    del tensors
    mode = LiveBytes(known)
    del known
    with mode:
        prepare(model)
    sets: dict[int, list[str]] = {}
    kept: dict[int, int] = {}
    for name, layer in layers.items():
        kernel: Any = layer.kernel
        if isinstance(kernel, OutputSlice):
            joined: Any = kernel._joined
            kernel, orders = joined.kernel, (joined.output_order, joined.places)
        else:
            orders = ()
        sets.setdefault(id(kernel), []).append(name)
        kept[id(kernel)] = kernel.num_bytes + num_bytes(o for o in orders if o is not None)
    assert len(sets) == len(backend.kernels) == 2 * 4
    weights = sum(
        max(sum(stored[name] for name in names), kept[key]) for key, names in sets.items()
    )
    largest = max(kernel.out_features * kernel.in_features for kernel in backend.kernels)
    assert mode.held <= weights
    assert mode.peak <= weights + 2 * largest


@formats
def test_layers_are_prepared_within_the_largest_sets_float16(format_, monkeypatch):
    model = model_of(
        format_,
        "cpu",
        hidden_size=512,
        intermediate_size=1024,
        num_attention_heads=8,
        num_key_value_heads=2,
    )
    assert_within_bound(model, use_plain_backend(monkeypatch))


@formats
def test_a_7b_models_layers_are_prepared_within_the_same_bound(format_, monkeypatch):
    """On the meta device, so what reads values is answered for."""
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
    model = model_of(format_, "meta", hidden_size=4096, intermediate_size=11008)
    assert_within_bound(model, use_plain_backend(monkeypatch))


def test_progress_is_told_as_layers_are_ready():
    model = model_of(
        FORMATS["awq"],
        "cpu",
        hidden_size=256,
        intermediate_size=512,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    told: list[float | None] = []
    prepare(model, lambda _, percent: told.append(percent))
    assert told == [0]
    assert all(layer.kernel is not None for layer in packed_layers(model).values())


class PlanesKernel(PlainKernel):
    """Keeps what the Triton kernels keep, without what multiplies by it."""

    def __init__(self, weight: GroupedWeight) -> None:
        self.out_features, self.in_features = weight.out_features, weight.in_features
        self.input_permutation = weight.input_permutation
        self.planes = pack.pack(weight)

    @property
    def num_bytes(self) -> int:
        order = self.input_permutation
        return sum(t.nbytes for t in self.planes.tensors) + (0 if order is None else order.nbytes)


@formats
def test_packing_planes_of_bytes_stays_within_the_bound(format_, monkeypatch):
    """Outputs are packed a few at a time, here as many as are small beside such layers."""

    def prepare_grouped(
        self: PlainBackend, weight: GroupedWeight, bias: Tensor | None, dtype: torch.dtype
    ) -> Any:
        self.kernels.append(PlanesKernel(weight))
        return self.kernels[-1]

    monkeypatch.setattr(PlainBackend, "prepare_grouped", prepare_grouped)
    monkeypatch.setattr(pack, "_CODES_AT_ONCE", 2**16)
    model = model_of(
        format_,
        "cpu",
        hidden_size=512,
        intermediate_size=1024,
        num_attention_heads=8,
        num_key_value_heads=2,
    )
    assert_within_bound(model, use_plain_backend(monkeypatch))
