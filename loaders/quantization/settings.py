"""Tells how a checkpoint is quantised: from its two settings files, or else from its tensors.

`quantize_config.json` is AutoGPTQ's file, `config.json["quantization_config"]` is Transformers';
repositories carry one, both or (before August 2023) neither. Weights are not read here.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import structlog

from loaders.checkpoint.files import read_json
from loaders.errors import (
    CheckpointError,
    QuantizationNotFoundError,
    TensorError,
    UnsupportedQuantizationError,
)
from loaders.quantization import auto_round, compressed_tensors
from loaders.quantization.foreign import MODELOPT_FILE, check_foreign
from loaders.quantization.layouts import PACKED_ENDINGS, layout_of
from loaders.quantization.layouts.compressed_tensors import PackQuantized
from loaders.quantization.name_patterns import NamePatterns, check_pattern
from loaders.quantization.packed_format import PackedFormat, QuantMethod

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loaders.checkpoint.files import Checkpoint, TensorInfo

log = structlog.get_logger(__name__)

# AutoGPTQ's file, else AutoAWQ's of before it used Transformers' settings.
OWN_FILES = ("quantize_config.json", "quant_config.json")
FROM_TENSORS = "tensors"  # a quantisation's source where no settings tell it
GPTQ_BITS = (2, 3, 4, 8)
AWQ_BITS = (4,)
READABLE_BITS: dict[QuantMethod, tuple[int, ...]] = {
    "gptq": GPTQ_BITS,
    "awq": AWQ_BITS,
    "compressed-tensors": tuple(range(2, 9)),
}
# Sizes tried, in this order, when only the number of groups is known.
_USUAL_GROUP_SIZES = (128, 64, 32, 16, 256, 512, 1024)


@dataclass(frozen=True, slots=True)
class Quantization:
    """A checkpoint's quantisation, as its settings tell it."""

    base: PackedFormat  # what applies where no rule says otherwise
    desc_act: bool  # act order: columns were quantised by falling activation; g_idx tells the group
    sym: bool
    source: str  # where this was read: a file's name, or `FROM_TENSORS`
    # Rules by module, pattern → overrides (bits, group_size, checkpoint_format); None leaves the
    # module unquantised. First match wins.
    rules: Mapping[str, Mapping[str, Any] | None] = field(default_factory=dict)
    # GGUF's mixed types: module → how it is packed, before any rule.
    formats: Mapping[str, PackedFormat] = field(default_factory=dict)
    label: str | None = None  # what people call it, where that says more: "Q4_K_M"
    _patterns: NamePatterns = field(init=False, repr=False, compare=False)  # the rules', read

    def __post_init__(self) -> None:
        """Read the rules' patterns; raises CheckpointError."""
        object.__setattr__(self, "_patterns", NamePatterns(self.rules))

    @property
    def is_inferred(self) -> bool:
        """Whether no settings file tells it."""
        return self.source == FROM_TENSORS

    def format_of(self, module: str) -> PackedFormat | None:
        """Return how the named module is packed by the rules; None if they leave it alone."""
        if module in self.formats:
            return self.formats[module]
        pattern = self._patterns.find(module)
        if pattern is None:
            return self.base
        overrides = self.rules[pattern]
        return None if overrides is None else _override(self.base, overrides, module)

    def __str__(self) -> str:
        """Describe it in a few words, as in `gptq 4-bit group 128 act-order`."""
        if self.label is not None:
            return f"{self.base.quant_method} {self.label}"
        group = "one group" if self.base.group_size == -1 else f"group {self.base.group_size}"
        order = " act-order" if self.desc_act else ""
        symmetry = "" if self.sym else " asymmetric"
        return f"{self.base.quant_method} {self.base.bits}-bit {group}{order}{symmetry}"


def read_quantization(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Quantization | None:
    """Return a folder's quantisation, None for a plain checkpoint; see `resolve_quantization`."""
    own_file = next((name for name in OWN_FILES if (checkpoint.folder / name).exists()), None)
    own = None if own_file is None else (own_file, read_json(checkpoint.folder / own_file))
    modelopt = checkpoint.folder / MODELOPT_FILE
    told = read_json(modelopt) if modelopt.exists() else None
    return resolve_quantization(own, config, checkpoint.tensors, modelopt=told)


def resolve_quantization(
    own: tuple[str, Mapping[str, Any]] | None,
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorInfo],
    *,
    modelopt: Mapping[str, Any] | None = None,
) -> Quantization | None:
    """Return a checkpoint's quantisation, None for a plain one.

    own: name and content of the quantizer's own settings file, None where there is none. config:
    the parsed config.json. tensors: all of them, from the headers. modelopt: what `MODELOPT_FILE`
    holds, None where there is none.
    Raises UnsupportedQuantizationError for methods and widths that are not read here,
    CheckpointError where the two files contradict each other, QuantizationNotFoundError where
    nothing can be told.
    """
    check_foreign(own, config, tensors, modelopt)
    embedded = config.get("quantization_config")
    if embedded is not None and not isinstance(embedded, dict):
        raise CheckpointError("config.json's quantization_config is not an object")
    packed = any(name.endswith(PACKED_ENDINGS) for name in tensors)
    if own is None and embedded is None:
        return infer_quantization(tensors) if packed else None
    settings = _given(embedded or {})
    if own is not None:
        own_file, own_settings = own[0], _given(own[1])
        _check_agreement(own_settings, settings, own_file)
        settings = {**own_settings, **settings}
    source = "config.json" if own is None or embedded is not None else own[0]
    quantization = _parse(settings, source)
    ending = f".{layout_of(quantization.base).marker}"
    if not any(name.endswith(ending) for name in tensors):
        raise QuantizationNotFoundError(
            f"{source} says {quantization}, but no tensor is packed (none ends in {ending}); the"
            " weights and"
            " the settings are from different revisions"
        )
    return quantization


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what is null: it says nothing."""
    return {key: value for key, value in settings.items() if value is not None}


def _check_agreement(own: Mapping[str, Any], embedded: Mapping[str, Any], own_file: str) -> None:
    for key in ("bits", "group_size", "desc_act", "sym", "quant_method", "checkpoint_format"):
        if key in own and key in embedded and own[key] != embedded[key]:
            raise CheckpointError(
                f"{own_file} says {key}={own[key]}, config.json says"
                f" {key}={embedded[key]};"
                " one of the files is from another revision"
            )


def _parse(settings: Mapping[str, Any], source: str) -> Quantization:
    method = str(
        settings.get("quant_method", "awq" if "zero_point" in settings else "gptq")
    ).lower()
    if method == "gptq":
        return _parse_gptq(settings, source)
    if method == "awq":
        return _parse_awq(settings, source)
    if method == compressed_tensors.NAME:
        return _parse_compressed_tensors(settings, source)
    if method in auto_round.NAMES:
        return _parse(auto_round.translate(settings, source), f"{source} (auto-round)")
    raise UnsupportedQuantizationError(
        f"{source} names the quantisation method {method!r}; GPTQ, AWQ, compressed-tensors"
        " (pack-quantized) and auto-round (in GPTQ's or AWQ's layout) are read"
    )


def _parse_gptq(settings: Mapping[str, Any], source: str) -> Quantization:
    bits = _number(settings, ("bits", "w_bit"), source)
    checkpoint_format = settings.get("checkpoint_format", settings.get("format", "gptq"))
    if checkpoint_format not in ("gptq", "gptq_v2"):
        raise UnsupportedQuantizationError(
            f"{source} names the checkpoint format {checkpoint_format!r}; of GPTQ, 'gptq' and"
            " 'gptq_v2' are read"
        )
    base = _checked(
        PackedFormat("gptq", checkpoint_format, bits, _number(settings, ("group_size",), source)),
        source,
    )
    return Quantization(
        base=base,
        desc_act=bool(settings.get("desc_act", False)),
        sym=bool(settings.get("sym", True)),
        source=source,
        rules=_parse_dynamic(settings.get("dynamic"), base, source),
    )


def _parse_awq(settings: Mapping[str, Any], source: str) -> Quantization:
    version = str(settings.get("version", "gemm")).lower()
    if version not in ("gemm", "gemv", "gemv_fast"):
        raise UnsupportedQuantizationError(
            f"{source} names the AWQ version {version!r}; GEMM, GEMV and GEMV_fast are read"
        )
    base = PackedFormat(
        "awq",
        version,
        _number(settings, ("bits", "w_bit"), source),
        _number(settings, ("group_size", "q_group_size"), source),
    )
    return Quantization(
        base=_checked(base, source),
        desc_act=False,
        sym=not settings.get("zero_point", True),
        source=source,
        rules=_parse_dynamic(settings.get("dynamic"), base, source),
    )


def _parse_compressed_tensors(settings: Mapping[str, Any], source: str) -> Quantization:
    groups = compressed_tensors.read_groups(settings, source)
    formats = {
        group.pattern: _checked(
            PackedFormat("compressed-tensors", group.layout, group.bits, group.group_size), source
        )
        for group in reversed(groups)  # of several with one pattern the first wins
    }
    rules: dict[str, Mapping[str, Any] | None] = {}
    for group in groups:
        if group.pattern is not None:
            rules[group.pattern] = _overrides(formats[group.pattern])
    if None not in formats:
        rules[".*"] = None  # what no group names is not quantised
    return Quantization(
        base=formats.get(None, next(iter(formats.values()))),
        desc_act=any(group.has_act_order for group in groups),
        sym=all(group.layout is not PackQuantized.ZERO_POINTS for group in groups),
        source=source,
        rules=rules,
    )


def _overrides(packed: PackedFormat) -> dict[str, Any]:
    return {
        "bits": packed.bits,
        "group_size": packed.group_size,
        "checkpoint_format": packed.checkpoint_format,
    }


def _number(settings: Mapping[str, Any], names: tuple[str, ...], source: str) -> int:
    for name in names:
        value = settings.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    raise CheckpointError(f"{source} has no whole number for {names[0]}")


def _checked(packed: PackedFormat, source: str) -> PackedFormat:
    readable = READABLE_BITS[packed.quant_method]
    if packed.bits not in readable:
        raise UnsupportedQuantizationError(
            f"{source} says {packed.bits} bits; of {packed.quant_method.upper()},"
            f" {', '.join(map(str, readable))} bits are read"
        )
    if packed.group_size != -1 and packed.group_size < 1:
        raise UnsupportedQuantizationError(
            f"{source} says group_size {packed.group_size}; give a positive number, or -1 for no"
            " groups"
        )
    return packed


def _parse_dynamic(
    dynamic: object, base: PackedFormat, source: str
) -> dict[str, Mapping[str, Any] | None]:
    """Turn GPTQModel's `{"-:pattern": {}, "+:pattern": {…}}` into pattern → overrides."""
    if not dynamic:
        return {}
    if not isinstance(dynamic, dict):
        raise CheckpointError(f"{source} has a `dynamic` that is not an object")
    rules: dict[str, Mapping[str, Any] | None] = {}
    for name, overrides in dynamic.items():
        pattern = name[2:] if name[:2] in ("+:", "-:") else name
        try:
            check_pattern(pattern)
        except CheckpointError as error:
            raise CheckpointError(f"{source} has an unreadable dynamic rule: {error}") from error
        if not isinstance(overrides, dict):
            raise CheckpointError(f"{source} has a dynamic rule {name!r} that is not an object")
        own = {key: overrides[key] for key in ("bits", "group_size") if key in overrides}
        rules[pattern] = None if name.startswith("-:") else own
        if not name.startswith("-:"):
            _override(base, overrides, name)
    return rules


def _override(base: PackedFormat, overrides: Mapping[str, Any], where: str) -> PackedFormat:
    bits = overrides.get("bits", base.bits)
    group_size = overrides.get("group_size", base.group_size)
    if not isinstance(bits, int) or not isinstance(group_size, int):
        raise CheckpointError(
            f"the dynamic rule for {where} has bits or a group_size that is no number"
        )
    return _checked(
        PackedFormat(
            base.quant_method,
            overrides.get("checkpoint_format", base.checkpoint_format),
            bits,
            group_size,
        ),
        f"the rule for {where}",
    )


def infer_quantization(tensors: Mapping[str, TensorInfo]) -> Quantization:
    """Tell the quantisation of a checkpoint without settings from its packed tensors' shapes.

    GPTQ packs qweight along the input, [in*bits/32, out]; AWQ along the output, [in, out/8]. Both
    have scales [groups, out], so comparing widths tells them apart.
    """
    modules = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    if not modules:
        raise QuantizationNotFoundError(
            "the checkpoint is packed, but not as GPTQ or AWQ, and config.json has no"
            " quantization_config to tell how; download it again"
        )
    try:
        guesses = Counter(_infer_module(tensors, module) for module in modules)
    except KeyError as error:
        raise QuantizationNotFoundError(
            f"the checkpoint is packed but has neither quantization settings nor {error.args[0]};"
            " GPTQ"
            " checkpoints made before zero points were packed are not read"
        ) from error
    method, bits = _only(Counter((m, b) for m, b, _, _ in guesses))
    if bits not in READABLE_BITS[method]:
        raise UnsupportedQuantizationError(
            f"the tensors' shapes say {method} at {bits} bits, which is not read"
        )
    group_size = _infer_group_size([(size, groups) for _, _, size, groups in guesses])
    quantization = Quantization(
        base=PackedFormat(method, "gptq" if method == "gptq" else "gemm", bits, group_size),
        desc_act=False,  # g_idx decides when the layers are prepared; no setting is needed
        sym=False,  # zero points are stored and always read
        source=FROM_TENSORS,
    )
    log.warning(
        "quantization_inferred",
        found=str(quantization),
        reason="neither quantize_config.json nor config.json describes it; told from tensor shapes",
    )
    return quantization


def _only(found: Counter[tuple[QuantMethod, int]]) -> tuple[QuantMethod, int]:
    if len(found) != 1:
        raise QuantizationNotFoundError(
            f"the packed tensors' shapes disagree ({', '.join(f'{m} {b}-bit' for m, b in found)}),"
            " and there is"
            " no quantize_config.json to tell; add one"
        )
    return next(iter(found))


def _infer_module(
    tensors: Mapping[str, TensorInfo], module: str
) -> tuple[QuantMethod, int, int, int]:
    """Return (method, bits, in_features, number of groups) of one packed layer."""
    qweight = tensors[f"{module}.qweight"].shape
    qzeros = tensors[f"{module}.qzeros"].shape
    scales = tensors[f"{module}.scales"].shape
    if not (len(qweight) == len(qzeros) == len(scales) == 2) or 0 in qweight + qzeros + scales:
        raise TensorError(
            f"{module}: packed tensors must have two dimensions, found {list(qweight)}"
        )
    num_groups, out_features = scales
    if qweight[1] == out_features:
        bits = 32 * qzeros[1] // out_features
        if bits == 0:
            raise TensorError(
                f"{module}.qzeros {list(qzeros)} is too small for {out_features} outputs"
            )
        return "gptq", bits, qweight[0] * 32 // bits, num_groups
    if qweight[1] * 8 == out_features:
        return "awq", 4, qweight[0], num_groups
    raise QuantizationNotFoundError(
        f"{module}: qweight {list(qweight)} and scales {list(scales)} fit neither GPTQ nor AWQ"
        " packing"
    )


def _infer_group_size(layers: list[tuple[int, int]]) -> int:
    """Find the group size that explains every layer's (in_features, number of groups)."""
    if all(groups == 1 for _, groups in layers):
        return -1
    exact = {size // groups for size, groups in layers if size % groups == 0}
    for group_size in (*sorted(exact, reverse=True), *_USUAL_GROUP_SIZES):
        if all(-(-size // group_size) == groups for size, groups in layers):
            return group_size
    raise QuantizationNotFoundError(
        f"no group size explains the layers' (inputs, groups) {sorted(set(layers))[:4]}; add a"
        " quantize_config.json"
    )
