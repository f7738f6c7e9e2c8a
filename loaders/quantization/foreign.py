"""Knows the packings of other tools by name, and refuses them.

Settings files and tensor headers are looked at together: either may name a packing, and what is
packed though nobody says so must not pass for plain weights. Packings that are read here are told
apart in `loaders.quantization.settings`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loaders.errors import UnsupportedQuantizationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from loaders.checkpoint.files import TensorInfo

# NVIDIA ModelOpt's own file; its exports may leave config.json without a word of quantisation.
MODELOPT_FILE = "hf_quant_config.json"
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_WORDS = frozenset({"I32", "U32"})
_OCTETS = frozenset({"U8", "I8"})
_ADVICE = (
    "GPTQ, AWQ, compressed-tensors (pack-quantized), auto-round and GGUF are read, and plain F16,"
    " BF16 or F32 weights; choose a revision or repository in one of these"
)


@dataclass(frozen=True, slots=True)
class _Packing:
    """How a tool's tensors are told from everyone else's."""

    name: str  # what people call it
    endings: tuple[str, ...]  # of the names of tensors that tell it
    dtypes: frozenset[str] = frozenset()  # of such a tensor; any where empty
    beside: tuple[str, ...] = ()  # endings of the same name, one of which must be there, too

    def find(self, tensors: Mapping[str, TensorInfo]) -> str | None:
        """Describe the first tensor that tells it; None where there is none."""
        for name, tensor in tensors.items():
            if name.endswith(self.endings) and (not self.dtypes or tensor.dtype in self.dtypes):
                stem = name.removesuffix(next(e for e in self.endings if name.endswith(e)))
                there = [ending for ending in self.beside if stem + ending in tensors]
                if there or not self.beside:
                    beside = f" beside {', '.join(there)}" if there else ""
                    return _described(tensor) + beside
        return None


# The first that fits names a checkpoint: what has more marks comes before what has fewer.
_PACKINGS = (
    _Packing("MLX", (".weight",), frozenset({"U32"}), (".scales", ".biases")),
    _Packing(
        "bitsandbytes",
        (
            ".weight.absmax", ".weight.quant_map", ".weight.nested_absmax", ".weight_format",
            ".weight.quant_state.bitsandbytes__nf4", ".weight.quant_state.bitsandbytes__fp4",
            ".SCB",
        ),
    ),
    _Packing(
        "EXL2 (ExLlamaV2)",
        (".q_weight",),
        beside=(".q_scale", ".q_scale_max", ".q_groups", ".q_invperm", ".q_perm"),
    ),
    _Packing("QTIP", (".trellis",), beside=(".tlut", ".rcp", ".SU", ".SV")),
    _Packing("EXL3 (ExLlamaV3)", (".trellis",), beside=(".suh", ".svh", ".su", ".sv")),
    _Packing("HQQ", (".W_q",), _OCTETS | _WORDS),
    _Packing("AQLM", (".codes",), beside=(".codebooks",)),
    _Packing("QuIP#", (".Qidxs",)),
    _Packing("VPTQ", (".indices",), beside=(".centroids.weight", ".centroids")),
    _Packing("SpQR", (".dense_weights",), beside=(".row_offsets", ".in_perm")),
    _Packing("QQQ", (".B",), _WORDS, (".s_channel", ".s_group")),
    _Packing("sparse Marlin (2:4)", (".B_24",), _WORDS),
    _Packing("Marlin", (".B",), _WORDS, (".s", ".workspace")),
    _Packing("MXFP4", ("_blocks",), frozenset({"U8"}), ("_scales",)),
    _Packing("NVFP4", (".weight_scale_2", ".weight_global_scale")),
    _Packing("MXFP4", (".weight_packed",), frozenset({"U8"}), (".weight_scale",)),
    _Packing("AWQ as NVIDIA ModelOpt stores it", (".pre_quant_scale",)),
    _Packing("EETQ", (".weight", ".qweight"), _OCTETS, (".weight_scales",)),
    _Packing("Quanto", (".weight._data",)),
    _Packing("torchao", (".weight:qdata", "._weight_qdata", ".weight:_data")),
    _Packing("INT8", (".weight",), frozenset({"I8"}), (".weight_scale",)),
)  # fmt: skip
# Scales that belong to weights of 8 bits, whatever the weights beside them are.
_FP8_SCALES = (".weight_scale_inv", ".weight_scale", ".input_scale", ".scale_weight", ".scale_inv")
# What `quant_method` and its like say in settings.
_METHODS = {
    "aqlm": "AQLM",
    "bitblas": "BitBLAS",
    "bitnet": "BitNet",
    "bitsandbytes": "bitsandbytes",
    "eetq": "EETQ",
    "exl2": "EXL2 (ExLlamaV2)",
    "exl3": "EXL3 (ExLlamaV3)",
    "fbgemm_fp8": "FP8",
    "fine_grained_fp8": "FP8",
    "fp8": "FP8",
    "fp_quant": "FP-Quant",
    "higgs": "HIGGS",
    "hqq": "HQQ",
    "int8": "INT8",
    "marlin": "Marlin",
    "marlin_24": "sparse Marlin (2:4)",
    "gptq_marlin_24": "sparse Marlin (2:4)",
    "mlx": "MLX",
    "modelopt_fp4": "NVFP4",
    "modelopt_fp8": "FP8",
    "mxfp4": "MXFP4",
    "mxfp8": "FP8",
    "nvfp4": "NVFP4",
    "ptpc_fp8": "FP8",
    "qqq": "QQQ",
    "qtip": "QTIP",
    "quanto": "Quanto",
    "quark": "Quark",
    "quip": "QuIP#",
    "quip_sharp": "QuIP#",
    "sinq": "SINQ",
    "spqr": "SpQR",
    "squeezellm": "SqueezeLLM",
    "torchao": "torchao",
    "vptq": "VPTQ",
    "w8a8_fp8": "FP8",
    "w8a8_int8": "INT8",
}
_FORMAT_KEYS = ("quant_method", "checkpoint_format", "format")
# Numbers that are no weights, by how their names end: parts of packings that are read here, masks
# and tables that old models stored.
_KNOWN_NUMBERS = (
    ".qweight", ".qzeros", ".scales", ".g_idx", ".weight_packed", ".weight_shape",
    ".weight_zero_point", ".weight_g_idx", ".position_ids", "position_ids", ".masked_bias",
    ".attn.bias", ".attention.bias", ".attn.attention.bias", ".causal_mask",
    ".num_batches_tracked",
)  # fmt: skip


def check_foreign(
    own: tuple[str, Mapping[str, Any]] | None,
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorInfo],
    modelopt: Mapping[str, Any] | None,
) -> None:
    """Raise UnsupportedQuantizationError for a packing that is not read here, by its name.

    own: name and content of the quantizer's own settings file. config: the parsed config.json.
    tensors: all of them, from the headers. modelopt: what `MODELOPT_FILE` holds. What is None is
    not there.
    """
    told = next(_told(own, config, modelopt), None)
    shown = _shown(tensors)
    if shown is not None:
        name, evidence = shown
        said = f"; {told[1]}" if told else ""
        raise UnsupportedQuantizationError(
            f"the tensors are packed as {name}, which is not read: {evidence}{said}. {_ADVICE}"
        )
    if told is not None:
        name, said = told
        raise UnsupportedQuantizationError(
            f"the settings name {name}, which is not read: {said}, and {_what_there_is(tensors)}."
            f" {_ADVICE}"
        )


def _told(
    own: tuple[str, Mapping[str, Any]] | None,
    config: Mapping[str, Any],
    modelopt: Mapping[str, Any] | None,
) -> Iterator[tuple[str, str]]:
    """Yield each foreign packing that settings name, and where they do, in words."""
    if modelopt is not None:
        yield from _algorithm(modelopt.get("quantization"), MODELOPT_FILE)
    for source, settings in (own or ("", None)), ("config.json", config.get("quantization_config")):
        if not isinstance(settings, dict):
            continue
        yield from _algorithm(settings, source)
        for key in _FORMAT_KEYS:
            value = settings.get(key)
            if isinstance(value, str) and value.lower() in _METHODS:
                yield _METHODS[value.lower()], f"{source} says {key} {value!r}"
        if settings.get("is_marlin_format") is True:
            yield "Marlin", f"{source} says is_marlin_format"
    mlx = config.get("quantization")
    if isinstance(mlx, dict) and "bits" in mlx and "group_size" in mlx:
        yield "MLX", "config.json has MLX's key `quantization`"


def _algorithm(settings: object, source: str) -> Iterator[tuple[str, str]]:
    """Read ModelOpt's word for a quantisation; none at all where only the KV cache has one."""
    algorithm = settings.get("quant_algo") if isinstance(settings, dict) else None
    if isinstance(algorithm, str) and algorithm:
        known = next((name for name in ("NVFP4", "FP8") if name in algorithm.upper()), None)
        name = known or f"NVIDIA ModelOpt's {algorithm[:40]}"
        yield name, f"{source} says quant_algo {algorithm[:40]!r}"


def _shown(tensors: Mapping[str, TensorInfo]) -> tuple[str, str] | None:
    """Return the foreign packing that tensors show, and by which of them."""
    if all(tensor.dtype in _FLOATS for tensor in tensors.values()):
        return _scales_without_codes(tensors)
    for packing in _PACKINGS:
        evidence = packing.find(tensors)
        if evidence is not None:
            return packing.name, evidence
    return _small_floats(tensors) or _scales_without_codes(tensors) or _strange_numbers(tensors)


def _small_floats(tensors: Mapping[str, TensorInfo]) -> tuple[str, str] | None:
    """Find floats of 8 bits or fewer, be they all the weights or one layer's."""
    small = ("F8", "F6", "F4")  # F64 is a plain float
    found = [t for t in tensors.values() if t.dtype.startswith(small) and t.dtype not in _FLOATS]
    if not found:
        return None
    first = f"{len(found)} of {len(tensors)} tensors, the first {_described(found[0])}"
    return f"FP{found[0].dtype[1]}", first


def _scales_without_codes(tensors: Mapping[str, TensorInfo]) -> tuple[str, str] | None:
    """Find FP8's scales beside weights that are no longer, or not yet, of 8 bits."""
    for name, tensor in tensors.items():
        if not name.endswith(_FP8_SCALES):
            continue
        module = name.removesuffix(next(end for end in _FP8_SCALES if name.endswith(end)))
        if f"{module}.weight_packed" in tensors and not name.endswith(".input_scale"):
            continue
        weight = tensors.get(f"{module}.weight")
        beside = "" if weight is None else f", the weight beside it is {weight.dtype}"
        return "FP8 or INT8 with scales", f"{_described(tensor)} is a scale{beside}"
    return None


def _strange_numbers(tensors: Mapping[str, TensorInfo]) -> tuple[str, str] | None:
    """Find what is no float and no part of anything that is known."""
    for name, tensor in tensors.items():
        if tensor.dtype not in _FLOATS and not name.endswith(_KNOWN_NUMBERS):
            return "something unknown", f"{_described(tensor)} is no part of a known packing"
    return None


def _described(tensor: TensorInfo) -> str:
    return f"{tensor.name} ({tensor.dtype} {list(tensor.shape)})"


def _what_there_is(tensors: Mapping[str, TensorInfo]) -> str:
    """Say how the tensors are stored where they do not bear out the settings."""
    packed = next((t for t in tensors.values() if t.dtype not in _FLOATS), None)
    if packed is not None:
        return f"{_described(packed)} is no part of that"
    dtypes = ", ".join(sorted({tensor.dtype for tensor in tensors.values()}))
    return (
        f"no tensor is packed (all are {dtypes}); if the weights are plain ones, take the"
        " quantisation out of the settings"
    )
