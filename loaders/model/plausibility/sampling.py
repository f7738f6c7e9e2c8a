"""A few outputs of every packed layer, from all over its width, read anew from the files.

Formats that fix their own groups and zero points by definition, GGUF's, are not sampled: there is
no setting that their tensors could contradict.
"""

from __future__ import annotations

import math
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open

from loaders.model.packed_linear import packed_layers
from loaders.quantization.layouts import layout_of
from loaders.quantization.packed_tensors import PackedTensors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import TypeAlias

    from torch import Tensor, nn

    from loaders.checkpoint.files import TensorInfo
    from loaders.model.opened import OpenedCheckpoint
    from loaders.model.packed_linear import PackedLinear
    from loaders.quantization.packed_format import PackedFormat

    # One of the checkpoint's tensors by its name, None where there is none by that name.
    ReadTensor: TypeAlias = Callable[[str], Tensor | None]

# Outputs a layer, in runs that begin at the first one and end at the last; one head alone may be
# unlike the others. A run is whole words of the packing, so that of 3 bits they are longer.
NUM_OUTPUTS = 32
FEWEST_RUNS = 2
SHORTEST_RUN = 8
MAX_LAYERS = 256


@dataclass(frozen=True, slots=True)
class LayerSample:
    """Some outputs of one layer, as its files hold them."""

    name: str
    format: PackedFormat
    codes: Tensor  # [in, outputs] float32, in the checkpoint's input order
    scales: Tensor  # [groups, outputs] float32
    zeros: Tensor  # [groups, outputs] float32
    groups: Tensor  # [in] int64, the group of each input


@contextmanager
def open_tensors(tensors: Mapping[str, TensorInfo]) -> Iterator[ReadTensor]:
    """Give what reads tensors by name; each file is opened once."""
    with ExitStack() as stack:
        files: dict[Path, Any] = {}

        def read(name: str) -> Tensor | None:
            info = tensors.get(name)
            if info is None:
                return None
            if info.shard not in files:
                files[info.shard] = stack.enter_context(safe_open(info.shard, framework="pt"))
            tensor: Tensor = files[info.shard].get_tensor(name)
            return tensor

        yield read


def sample_layers(
    opened: OpenedCheckpoint, model: nn.Module, read: ReadTensor
) -> list[LayerSample]:
    """Sample the packed layers, in the model's order; at most `MAX_LAYERS`, evenly chosen."""
    if opened.quantization is None:
        return []
    samples = []
    for name, layer in _evenly(list(packed_layers(model).items())):
        packed = opened.quantization.format_of(name)
        if packed is None or packed.quant_method == "gguf":
            continue
        sample = _sample(name, packed, layer, read)
        if sample is not None:
            samples.append(sample)
    return samples


def _evenly(layers: Sequence[tuple[str, PackedLinear]]) -> Sequence[tuple[str, PackedLinear]]:
    if len(layers) <= MAX_LAYERS:
        return layers
    return [layers[number * len(layers) // MAX_LAYERS] for number in range(MAX_LAYERS)]


def _sample(
    name: str, packed: PackedFormat, layer: PackedLinear, read: ReadTensor
) -> LayerSample | None:
    layout = layout_of(packed)
    whole = layout.rules(layer.in_features, layer.out_features)
    runs = choose_outputs(packed.bits, layer.out_features)
    num_outputs = sum(len(run) for run in runs)
    part = layout.rules(layer.in_features, num_outputs)
    stored = {}
    for key, rule in part.items():
        if not rule.is_required and rule.shape != (layer.in_features,):
            continue  # of the optional ones only the inputs' groups are wanted
        tensor = read(f"{name}.{key}")
        if tensor is not None:
            stored[key] = _cut(tensor, whole[key].shape, rule.shape, runs, layer.out_features)
        elif rule.is_required:
            return None
    tensors = PackedTensors(name, packed, layer.in_features, num_outputs, stored)
    return LayerSample(
        name=name,
        format=packed,
        codes=tensors.codes().float(),
        scales=tensors.scales(),
        zeros=tensors.zeros(),
        groups=tensors.group_of_input(),
    )


def choose_outputs(bits: int, out_features: int) -> list[range]:
    """Choose runs of outputs that fill whole words, evenly over the width."""
    length = max(SHORTEST_RUN, 32 // math.gcd(32, bits))
    num_runs = max(FEWEST_RUNS, NUM_OUTPUTS // length)
    if out_features <= num_runs * length:
        return [range(out_features)]
    last = out_features // length - 1
    starts = [number * last // (num_runs - 1) * length for number in range(num_runs)]
    return [range(start, start + length) for start in starts]


def _cut(
    tensor: Tensor,
    whole: Sequence[int],
    part: Sequence[int],
    runs: Sequence[range],
    out_features: int,
) -> Tensor:
    """Cut a tensor to what a layer of the runs' outputs alone would have of it."""
    for dimension, (size, kept) in enumerate(zip(whole, part, strict=True)):
        if size != kept:
            pieces = [
                tensor.narrow(
                    dimension,
                    run.start * size // out_features,
                    len(run) * size // out_features,
                )
                for run in runs
            ]
            tensor = torch.cat(pieces, dimension)
    return tensor
