"""Holds a quantisation's settings against the shapes of the tensors, from headers alone.

Catalogue, plan and loader all read through here, so they see the same. Where shapes are decisive
they win, which is logged and remembered as a remark; where they are not, the load is refused with
what was found and what was expected. What only values tell is `stored_values`' part.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import structlog

from loaders.errors import TensorError
from loaders.quantization.group_sizes import common_group_size, explains_groups, is_odd_one_out
from loaders.quantization.layouts import layout_of
from loaders.quantization.packed_format import PackedFormat
from loaders.quantization.stored_shapes import (
    StoredShape,
    compressed_shape,
    packed_modules,
    possible_shapes,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loaders.checkpoint.files import TensorInfo
    from loaders.quantization.quantization import Quantization

log = structlog.get_logger(__name__)

_MAX_NAMED = 3  # modules that a message lists
_ORDERS = {"qweight": "g_idx", "weight_packed": "weight_g_idx"}  # a layer's marker → its order
# Names of sizes in config.json, of the families that are read.
_INPUT_KEYS = ("hidden_size", "n_embd", "intermediate_size", "n_inner", "ffn_dim")
_UNORDERED = ("gemm", "gemv", "gemv_fast")


@dataclass(frozen=True, slots=True)
class _Layer:
    module: str
    shape: StoredShape


def stored_layout(tensors: Mapping[str, TensorInfo], stated: str) -> str:
    """Return the layout of GPTQ's and AWQ's that every packed layer's shapes are of.

    stated: what settings say, kept wherever it is possible. Raises TensorError where layers are of
    several.
    """
    found: dict[str, str] = {}
    for module in packed_modules(tensors):
        possible = possible_shapes(tensors, module)
        if stated in possible:
            found.setdefault(stated, module)
        elif possible:
            found.setdefault(next(iter(possible)), module)
    if len(found) > 1:
        listed = ", ".join(f"{module} {layout}" for layout, module in found.items())
        raise TensorError(
            f"the packed layers are of several layouts by their shapes: {listed}; all must be of"
            " one, the files are from different revisions"
        )
    return next(iter(found), stated)


def stored_group_size(tensors: Mapping[str, TensorInfo], layout: str) -> int | None:
    """Return the group size that explains every layer's shapes; None if none does, or several."""
    layers = [
        possible[layout]
        for module in packed_modules(tensors)
        if layout in (possible := possible_shapes(tensors, module))
    ]
    if not layers:
        return None
    packed = PackedFormat("gptq" if layout == "gptq" else "awq", layout, layers[0].bits, -1)
    return common_group_size(packed, [(s.in_features, s.num_groups) for s in layers])


def hold_against_shapes(
    quantization: Quantization, tensors: Mapping[str, TensorInfo], config: Mapping[str, Any]
) -> Quantization:
    """Return the quantisation as the tensors have it; the same where they agree.

    config: the parsed config.json, for the sizes of the model's layers. Raises TensorError where
    shapes contradict the settings and do not say what is right.
    """
    by_stated: dict[PackedFormat, list[_Layer]] = {}
    for stated, modules in _modules_by_format(quantization, tensors).items():
        layers = _layers_of(stated, modules, tensors, layer_inputs(config))
        for layer in layers:
            _check_act_order(quantization, tensors, layer)
        by_stated[stated] = layers
    formats: dict[str, PackedFormat] = {}
    remarks: list[str] = []
    for stated, layers in by_stated.items():
        wrong = [layer for layer in layers if not _explains(stated, layer.shape)]
        sizes = [(layer.shape.in_features, layer.shape.num_groups) for layer in layers]
        if not wrong and is_odd_one_out(stated, sizes):
            wrong = layers
        is_all = len(wrong) == len(layers)
        found = _formats_found(stated, wrong, tensors, is_all=is_all)
        formats |= found
        remarks += _report(stated, found, quantization.source)
    if not formats:
        return quantization
    return _with_formats(quantization, formats, by_stated, remarks)


def _check_act_order(
    quantization: Quantization, tensors: Mapping[str, TensorInfo], layer: _Layer
) -> None:
    """Raise TensorError where settings say that groups are scattered and no tensor says how."""
    if not quantization.claims_of(layer.module).desc_act or layer.shape.num_groups == 1:
        return
    key = _ORDERS.get(layout_of(quantization.base).marker, "")
    if layer.shape.layout in _UNORDERED or f"{layer.module}.{key}" in tensors:
        return
    raise TensorError(
        f"{layer.module} has {layer.shape.num_groups} groups and no {key}, but"
        f" {quantization.source} says act order (desc_act), which needs it to tell each input's"
        " group; download the weights again, or correct the settings if they lie"
    )


def layer_inputs(config: Mapping[str, Any]) -> frozenset[int]:
    """Return how many inputs most of a model's linear layers have, by its config.json."""
    text_part = config.get("text_config")
    values = {**config, **(text_part if isinstance(text_part, dict) else {})}
    sizes = [values.get(key) for key in _INPUT_KEYS]
    heads, head_dim = values.get("num_attention_heads"), values.get("head_dim")
    if isinstance(heads, int) and isinstance(head_dim, int):
        sizes.append(heads * head_dim)
    return frozenset(size for size in sizes if isinstance(size, int) and size > 0)


def _modules_by_format(
    quantization: Quantization, tensors: Mapping[str, TensorInfo]
) -> dict[PackedFormat, list[str]]:
    """Group the packed modules by what settings say; those that settings leave alone are not in."""
    found: dict[PackedFormat, list[str]] = defaultdict(list)
    for module in packed_modules(tensors):
        stated = quantization.format_of(module)
        if stated is not None:  # else refused by name where the layers are made
            found[stated].append(module)
    return found


def _layers_of(
    stated: PackedFormat,
    modules: list[str],
    tensors: Mapping[str, TensorInfo],
    inputs: frozenset[int],
) -> list[_Layer]:
    """Read the shapes of layers; those that make no sense are refused where layers are made."""
    is_compressed = stated.quant_method == "compressed-tensors"
    bits = _compressed_bits(stated, modules, tensors, inputs) if is_compressed else stated.bits
    shapes = {
        module: compressed_shape(tensors, module, bits)
        if is_compressed
        else possible_shapes(tensors, module).get(layout_name(stated))
        for module in modules
    }
    return [_Layer(module, shape) for module, shape in shapes.items() if shape is not None]


def _compressed_bits(
    stated: PackedFormat,
    modules: list[str],
    tensors: Mapping[str, TensorInfo],
    inputs: frozenset[int],
) -> int:
    """Return the bits with which all layers have inputs that the model has.

    Those of the settings, unless one other width alone gives such: a layer of an unusual size then
    changes nothing.
    """
    infos = [tensors.get(f"{module}.weight_packed") for module in modules]
    row_bits = {32 * info.shape[-1] for info in infos if info is not None and info.shape}
    fitting = [
        bits
        for bits in range(2, 9)
        if all(size % bits == 0 and size // bits in inputs for size in row_bits)
    ]
    is_told = row_bits and len(fitting) == 1
    return fitting[0] if is_told else stated.bits


def layout_name(packed: PackedFormat) -> str:
    """Name a format's layout as `StoredShape` does, whatever the version of its zero points."""
    return "gptq" if packed.quant_method == "gptq" else packed.checkpoint_format


def _explains(stated: PackedFormat, shape: StoredShape) -> bool:
    if stated.quant_method == "compressed-tensors" and not _fits_layout(stated, shape):
        return False
    return stated.bits == shape.bits and explains_groups(
        stated, shape.in_features, shape.num_groups
    )


def _fits_layout(stated: PackedFormat, shape: StoredShape) -> bool:
    # Missing zero points are named where the layers are made.
    return shape.layout == stated.checkpoint_format or (
        shape.layout == "pack-quantized" and stated.checkpoint_format.endswith("zero points")
    )


def _formats_found(
    stated: PackedFormat,
    layers: list[_Layer],
    tensors: Mapping[str, TensorInfo],
    *,
    is_all: bool,
) -> dict[str, PackedFormat]:
    """Return how each layer is packed. Raises TensorError where its shapes don't tell.

    is_all: whether these are all the layers with such settings. Where some of them fit, a layer
    whose tensors don't confirm each other is more likely damaged than otherwise packed.
    """
    found: dict[str, PackedFormat] = {}
    by_width: dict[tuple[str, int], list[_Layer]] = defaultdict(list)
    for layer in layers:
        if not (is_all or layer.shape.is_certain):
            raise _misfit(stated, layer, tensors)
        by_width[layer.shape.layout, layer.shape.bits].append(layer)
    for (layout, bits), alike in by_width.items():
        is_gptq = stated.quant_method == "gptq"
        told = replace(
            stated, bits=bits, checkpoint_format=stated.checkpoint_format if is_gptq else layout
        )
        sizes = {(layer.shape.in_features, layer.shape.num_groups) for layer in alike}
        common = common_group_size(told, sorted(sizes))
        for layer in alike:
            own = (layer.shape.in_features, layer.shape.num_groups)
            size = common_group_size(told, [own]) if common is None else common
            if size is None:
                raise _misfit(stated, layer, tensors)
            found[layer.module] = replace(told, group_size=size)
    return found


def _misfit(stated: PackedFormat, layer: _Layer, tensors: Mapping[str, TensorInfo]) -> TensorError:
    """Name the first tensor that is not what the settings say."""
    shape = layer.shape
    try:
        rules = layout_of(stated).rules(shape.in_features, shape.out_features)
    except ValueError as error:
        return TensorError(f"{layer.module}: {error}")
    for key, rule in rules.items():
        tensor = tensors.get(f"{layer.module}.{key}")
        if tensor is not None and tensor.shape != rule.shape:
            return TensorError(
                f"{tensor.name} is {list(tensor.shape)}, expected {list(rule.shape)} for"
                f" {shape.in_features} inputs, {shape.out_features} outputs, {stated.bits} bits"
                f" and group size {stated.group_size}; the settings and the weights are from"
                " different revisions"
            )
    return TensorError(
        f"{layer.module} stores {shape.num_groups} groups for {shape.in_features} inputs, which no"
        f" group size explains; the settings say {stated.group_size}"
    )


def _report(stated: PackedFormat, found: Mapping[str, PackedFormat], source: str) -> list[str]:
    """Log what settings say otherwise than tensors; return a sentence for each way."""
    sentences = []
    for packed, count in Counter(found.values()).items():
        modules = [module for module, other in found.items() if other == packed]
        sentence = f"{source} says {_words(stated)}, the tensors are {_words(packed)}"
        log.warning(
            "settings_contradict_tensors",
            said=_words(stated),
            found=_words(packed),
            layers=count,
            first=modules[:_MAX_NAMED],
            reason="the shapes of the tensors decide",
        )
        sentences.append(sentence)
    return sentences


def _words(packed: PackedFormat) -> str:
    group = "one group" if packed.group_size == -1 else f"group size {packed.group_size}"
    return f"{packed.checkpoint_format} of {packed.bits} bits, {group}"


def _with_formats(
    quantization: Quantization,
    formats: dict[str, PackedFormat],
    by_stated: Mapping[PackedFormat, list[_Layer]],
    remarks: list[str],
) -> Quantization:
    """Put what was found in place of what was said; the base too, where no layer is of it."""
    base = quantization.base
    of_base = [formats.get(layer.module, base) for layer in by_stated.get(base, ())]
    if of_base and base not in of_base:
        base = Counter(of_base).most_common(1)[0][0]
    return replace(
        quantization,
        base=base,
        formats={**quantization.formats, **formats},
        remarks=(*quantization.remarks, *remarks),
    )
