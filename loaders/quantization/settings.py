"""Tells how a checkpoint is quantised: from its two settings files, or else from its tensors.

`quantize_config.json` is AutoGPTQ's file, `config.json["quantization_config"]` is Transformers';
repositories carry one, both or (before August 2023) neither. Weights are not read here.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
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
from loaders.quantization.agreement import (
    hold_against_shapes,
    stored_group_size,
    stored_layout,
)
from loaders.quantization.embedded import embedded_settings
from loaders.quantization.foreign import MODELOPT_FILE, check_foreign
from loaders.quantization.group_sizes import common_group_size
from loaders.quantization.known_settings import (
    check_known,
    log_unknown,
    report_head,
    report_left_alone,
    said_symmetry,
)
from loaders.quantization.layouts import PACKED_ENDINGS, layout_of
from loaders.quantization.layouts.compressed_tensors import PackQuantized
from loaders.quantization.name_patterns import check_pattern
from loaders.quantization.packed_format import PackedFormat, QuantMethod
from loaders.quantization.quantization import (
    FROM_TENSORS,
    READABLE_BITS,
    Claims,
    Quantization,
    check_bits,
    checked,
    override,
)
from loaders.quantization.setting_values import read_values

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loaders.checkpoint.files import Checkpoint, TensorInfo

log = structlog.get_logger(__name__)

# AutoGPTQ's file, else AutoAWQ's of before it used Transformers' settings.
OWN_FILES = ("quantize_config.json", "quant_config.json")
# What two settings files of one checkpoint must say alike.
_MUST_AGREE = (
    "bits", "group_size", "desc_act", "sym", "zero_point", "quant_method", "checkpoint_format",
    "format", "version",
)  # fmt: skip
_GPTQ_FORMATS = ("gptq", "gptq_v2")
# Names of kernels that read these methods' own tensors; some tools write them as the method.
_KERNEL_NAMES = {"gptq_marlin": "gptq", "awq_marlin": "awq"}
# AWQ's versions as they are written → the layout; the last two name kernels that read GEMM's.
_AWQ_VERSIONS = {
    "gemm": "gemm", "gemv": "gemv", "gemv_fast": "gemv_fast", "exllama": "gemm", "ipex": "gemm",
}  # fmt: skip


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
    embedded = embedded_settings(config)
    packed = any(name.endswith(PACKED_ENDINGS) for name in tensors)
    if own is None and embedded is None:
        return infer_quantization(tensors) if packed else None
    settings = read_values(embedded or {}, "config.json")
    if own is not None:
        own_file, own_settings = own[0], read_values(own[1], own[0])
        _check_agreement(own_settings, settings, own_file)
        settings = {**own_settings, **settings}
    source = "config.json" if own is None or embedded is not None else own[0]
    quantization = _parse(settings, source, tensors)
    ending = f".{layout_of(quantization.base).marker}"
    if not any(name.endswith(ending) for name in tensors):
        raise QuantizationNotFoundError(
            f"{source} says {quantization}, but no tensor is packed (none ends in {ending}); the"
            " weights and"
            " the settings are from different revisions"
        )
    report_head(settings, source, tensors)
    report_left_alone(settings, source, tensors)
    return hold_against_shapes(quantization, tensors, config)


def _check_agreement(own: Mapping[str, Any], embedded: Mapping[str, Any], own_file: str) -> None:
    for key in _MUST_AGREE:
        if key in own and key in embedded and _plain(own[key]) != _plain(embedded[key]):
            raise CheckpointError(
                f"{own_file} says {key}={own[key]}, config.json says"
                f" {key}={embedded[key]};"
                " one of the files is from another revision"
            )


def _plain(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _parse(
    settings: Mapping[str, Any], source: str, tensors: Mapping[str, TensorInfo]
) -> Quantization:
    method = _method_of(settings)
    if method == compressed_tensors.NAME:
        return _parse_compressed_tensors(settings, source)
    if method in auto_round.NAMES:
        return _parse(auto_round.translate(settings, source), f"{source} (auto-round)", tensors)
    if method not in ("gptq", "awq"):
        raise UnsupportedQuantizationError(
            f"{source} names the quantisation method {method!r}; GPTQ, AWQ, compressed-tensors"
            " (pack-quantized) and auto-round (in GPTQ's or AWQ's layout) are read"
        )
    check_known(settings, source, method)
    stated = method if method == "gptq" else _awq_version(settings, source)
    check_bits("gptq" if method == "gptq" else "awq", _bits(settings, source), source)
    layout = stored_layout(tensors, stated)
    remarks = _report_layout(stated, layout, source)
    settings = {**settings, "group_size": _group_size(settings, layout, source, tensors)}
    if layout == "gptq":
        return _parse_gptq(settings, source, remarks)
    return _parse_awq(settings, layout, source, remarks)


def _method_of(settings: Mapping[str, Any]) -> str:
    usual = "awq" if "zero_point" in settings else "gptq"
    method = str(settings.get("quant_method", settings.get("method", usual))).lower()
    if "config_groups" in settings:  # compressed-tensors' first versions named themselves otherwise
        if method != compressed_tensors.NAME and "quant_method" in settings:
            log.warning(
                "settings_contradict_each_other",
                said=method,
                found="config_groups",
                reason="only compressed-tensors has config_groups",
            )
        return compressed_tensors.NAME
    return _KERNEL_NAMES.get(method, method)


def _report_layout(stated: str, layout: str, source: str) -> tuple[str, ...]:
    """Log where tensors are of another layout than settings say; return it as a remark."""
    if stated == layout:
        return ()
    log.warning(
        "settings_contradict_tensors",
        said=stated,
        found=layout,
        reason="the shapes of the tensors decide",
    )
    return (f"{source} says {stated}, the tensors are in the layout of {layout}",)


def _group_size(
    settings: Mapping[str, Any], layout: str, source: str, tensors: Mapping[str, TensorInfo]
) -> int:
    """Return the group size that settings say, or else that of the tensors."""
    if "group_size" in settings:
        return int(settings["group_size"])
    found = stored_group_size(tensors, layout)
    if found is None:
        raise CheckpointError(
            f"{source} has no whole number for group_size, and the tensors do not tell it; add one"
        )
    log.info("group_size_inferred", source=source, found=found, reason="the settings say none")
    return found


def _parse_gptq(settings: Mapping[str, Any], source: str, remarks: tuple[str, ...]) -> Quantization:
    base = PackedFormat(
        "gptq",
        _gptq_format(settings, source, is_stated=not remarks),
        _bits(settings, source),
        settings["group_size"],
    )
    sym = said_symmetry(settings, source, decisive="sym")
    return Quantization(
        base=checked(base, source),
        desc_act=settings.get("desc_act", False),
        sym=True if sym is None else sym,
        source=source,
        rules=_parse_dynamic(settings.get("dynamic"), base, source),
        # With static groups columns are quantised in another order, and groups stay in theirs.
        claims=Claims(sym, None if settings.get("static_groups") else settings.get("desc_act")),
        remarks=remarks,
    )


def _gptq_format(settings: Mapping[str, Any], source: str, *, is_stated: bool) -> str:
    """Return the version of zero points, which GPTQModel names in two ways.

    is_stated: whether the settings are GPTQ's; those of AWQ may name its own versions here.
    """
    names = {
        str(settings[key]).lower() for key in ("checkpoint_format", "format") if key in settings
    } or {"gptq"}
    if len(names) > 1:
        raise CheckpointError(
            f"{source} says checkpoint_format={settings['checkpoint_format']} and"
            f" format={settings['format']}; leave the one that is the weights'"
        )
    (name,) = names
    if name not in _GPTQ_FORMATS and not is_stated:
        return "gptq"
    if name not in _GPTQ_FORMATS:
        raise UnsupportedQuantizationError(
            f"{source} names the checkpoint format {name!r}; of GPTQ, 'gptq' and 'gptq_v2' are read"
        )
    return name


def _awq_version(settings: Mapping[str, Any], source: str) -> str:
    written = settings.get("checkpoint_format", settings.get("format", "gemm"))
    version = str(settings.get("version", written)).lower()
    if version in _GPTQ_FORMATS:  # the shapes decide which of both methods is right
        return "gemm"
    if version not in _AWQ_VERSIONS:
        raise UnsupportedQuantizationError(
            f"{source} names the AWQ version {version!r}; GEMM, GEMV and GEMV_fast are read"
        )
    return _AWQ_VERSIONS[version]


def _parse_awq(
    settings: Mapping[str, Any], layout: str, source: str, remarks: tuple[str, ...]
) -> Quantization:
    base = PackedFormat("awq", layout, _bits(settings, source), settings["group_size"])
    sym = said_symmetry(settings, source, decisive="zero_point")
    if settings.get("desc_act"):
        log.warning("act_order_not_stored", source=source, reason="AWQ keeps groups in order")
    return Quantization(
        base=checked(base, source),
        desc_act=False,
        sym=bool(sym),
        source=source,
        rules=_parse_dynamic(settings.get("dynamic"), base, source),
        claims=Claims(sym=sym),
        remarks=remarks,
    )


def _parse_compressed_tensors(settings: Mapping[str, Any], source: str) -> Quantization:
    log_unknown(settings, compressed_tensors.KNOWN_SETTINGS, source)
    groups = compressed_tensors.read_groups(settings, source)
    formats = {
        group.pattern: checked(
            PackedFormat("compressed-tensors", group.layout, group.bits, group.group_size), source
        )
        for group in reversed(groups)  # of several with one pattern the first wins
    }
    rules: dict[str, Mapping[str, Any] | None] = {}
    for group in groups:
        if group.pattern is not None:
            rules[group.pattern] = {
                **_overrides(formats[group.pattern]),
                "desc_act": group.has_act_order,
            }
    if None not in formats:
        rules[".*"] = None  # what no group names is not quantised
    return Quantization(
        base=formats.get(None, next(iter(formats.values()))),
        desc_act=any(group.has_act_order for group in groups),
        sym=all(group.layout is not PackQuantized.ZERO_POINTS for group in groups),
        source=source,
        rules=rules,
        claims=Claims(desc_act=any(g.has_act_order for g in groups if g.pattern is None)),
    )


def _overrides(packed: PackedFormat) -> dict[str, Any]:
    return {
        "bits": packed.bits,
        "group_size": packed.group_size,
        "checkpoint_format": packed.checkpoint_format,
    }


def _bits(settings: Mapping[str, Any], source: str) -> int:
    if "bits" in settings:
        return int(settings["bits"])
    raise CheckpointError(f"{source} has no whole number for bits")


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
        if name.startswith("-:"):
            rules[pattern] = None
            continue
        rules[pattern] = _read_rule(overrides, f"the rule {name!r} in {source}")
        override(base, rules[pattern] or {}, name)
    return rules


def _read_rule(overrides: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Keep of a rule what is read. Raises UnsupportedQuantizationError for another layout."""
    values = read_values(overrides, where)
    for key in ("checkpoint_format", "format", "quant_method", "method", "pack_dtype"):
        if key in values:
            raise UnsupportedQuantizationError(
                f"{where} says {key}={values[key]!r}; rules may change bits, group_size, sym and"
                " desc_act"
            )
    return {key: values[key] for key in ("bits", "group_size", "sym", "desc_act") if key in values}


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
    base = PackedFormat(method, "gptq" if method == "gptq" else "gemm", bits, -1)
    sizes = [(size, groups) for _, _, size, groups in guesses]
    group_size = common_group_size(base, sizes)
    if group_size is None:
        raise QuantizationNotFoundError(
            f"no group size explains the layers' (inputs, groups) {sorted(set(sizes))[:4]}; add a"
            " quantize_config.json"
        )
    quantization = Quantization(
        base=replace(base, group_size=group_size),
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
