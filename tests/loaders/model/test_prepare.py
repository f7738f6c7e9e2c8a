"""What is held while layers are prepared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from loaders.memory.layers import scratch_bytes
from loaders.memory.release import MappedFiles
from loaders.model.kernels import resolve
from loaders.model.kernels.output_slice import OutputSlice
from loaders.model.kernels.triton import pack
from loaders.model.kernels.triton_linear import TritonBackend
from loaders.model.packed_linear import packed_layers
from loaders.model.prepare import prepare_layers
from loaders.quantization.kernel_rules import PackedSize
from tests.grouped_backends import PlainBackend, PlainKernel, use_plain_backend
from tests.live_bytes import LiveBytes
from tests.packed_models import FORMATS, answer_for_values, model_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from loaders.quantization.packed_tensors import GroupedWeight

formats = pytest.mark.parametrize("format_", FORMATS.values(), ids=FORMATS)


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


def assert_within_bound(model: Any, backend: Any, *, shared: int = 0) -> None:
    """At most the weights, as stored or as kept, and the largest set unpacked to float16.

    shared: what all kernels share, which is made with the first of them and stays.
    """
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
    assert mode.held <= weights + shared
    assert mode.peak <= weights + shared + 2 * largest


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
    answer_for_values(monkeypatch, format_)
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


class NotedTriton(TritonBackend):
    """Prepares as the real one does, and notes what it was given."""

    def __init__(self) -> None:
        self.kernels: list[Any] = []

    def prepare_grouped(
        self, weight: GroupedWeight, bias: Tensor | None, dtype: torch.dtype
    ) -> Any:
        kernel: Any = super().prepare_grouped(weight, bias, dtype)
        kernel.out_features, kernel.in_features = weight.out_features, weight.in_features
        self.kernels.append(kernel)
        return kernel


@pytest.mark.parametrize(
    ("format_name", "kv_heads"),
    [("gptq-order", 32), ("gptq-32g-order", 8), ("Q6_K", 8), ("awq", 32)],
)
def test_a_7b_models_triton_kernels_are_made_within_the_bound(format_name, kv_heads, monkeypatch):
    """On the meta device; the room that all layers share is as large as is counted."""
    format_ = FORMATS[format_name]
    answer_for_values(monkeypatch, format_)
    looked_at = pack._narrowed, pack._kind_of

    def narrowed(values: Tensor) -> Tensor:
        looked_at[0](values)
        return values.half()

    def kind_of(zeros: Tensor) -> str:
        looked_at[1](zeros)
        return "float" if format_.packed.quant_method == "gguf" else "whole"

    monkeypatch.setattr(pack, "_narrowed", narrowed)
    monkeypatch.setattr(pack, "_kind_of", kind_of)
    backend = NotedTriton()
    monkeypatch.setattr(resolve, "BACKENDS", (backend,))
    model = model_of(
        format_, "meta", hidden_size=4096, intermediate_size=11008, num_key_value_heads=kv_heads
    )
    bits, group_size = format_.packed.bits, format_.packed.group_size
    counted = max(
        scratch_bytes(PackedSize(bits, group_size, layer.in_features, layer.out_features), "triton")
        for layer in packed_layers(model).values()
    )
    assert_within_bound(model, backend, shared=counted)
    (made,) = {kernel.shared_bytes for kernel in backend.kernels}
    assert 0.95 * counted < made <= counted
