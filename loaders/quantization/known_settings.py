"""Knows GPTQ's and AWQ's settings by name: which are read, which say how weights were made only.

What changes the decoding and is not read is refused by its own name; what nobody here knows is
logged, so that it is not passed over in silence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog

from loaders.errors import UnsupportedQuantizationError
from loaders.quantization.stored_shapes import packed_modules

if TYPE_CHECKING:
    from collections.abc import Mapping, Set

    from loaders.checkpoint.files import TensorInfo

log = structlog.get_logger(__name__)

_READ = frozenset(
    {
        "bits", "group_size", "desc_act", "sym", "zero_point", "dynamic",
        "quant_method", "method", "lm_head",
    }
)  # fmt: skip
_READ_OF = {"gptq": {"checkpoint_format", "format"}, "awq": {"version"}}
# What GPTQModel calls AWQ's versions; another format beside AWQ's version means nothing.
_AWQ_FORMATS = ("gemm", "gemv", "gemv_fast")
# How the weights were found, what runs them elsewhere, and who wrote them.
_HARMLESS = frozenset(
    {
        "static_groups", "true_sequential", "damp_percent", "damp_auto_increment", "dataset",
        "tokenizer", "batch_size", "mse", "model_name_or_path", "model_file_base_name", "meta",
        "uri", "cache_block_outputs", "block_name_to_quantize", "pad_token_id", "max_input_length",
        "module_name_preceding_first_block", "modules_in_block_to_quantize", "model_seqlen",
        "modules_to_not_convert", "exllama_config", "use_exllama", "disable_exllama", "backend",
        "use_cuda_fp16", "do_fuse", "fuse_max_seq_len", "modules_to_fuse", "quantizer",
        "quantization_status", "export", "seqlen", "nsamples", "pack_impl", "device",
        "act_group_aware", "parallel_packing", "is_marlin_format", "pack_dtype", "rotation",
        "adapter", "hyb_act", "v2", "ascending_act", "auto_gptq_version", "n_samples",
        "max_calib_samples", "max_calib_seq_len", "duo_scaling", "apply_clip", "calib_data",
        "is_sharded", "failsafe", "compile", "gptaq", "vram_strategy", "offload_to_disk",
    }
)  # fmt: skip


def check_known(settings: Mapping[str, Any], source: str, method: str) -> None:
    """Log what is not known of GPTQ's or AWQ's settings.

    method: "gptq" or "awq". Raises UnsupportedQuantizationError for what makes the tensors mean
    something else.
    """
    if settings.get("is_marlin_format"):
        raise UnsupportedQuantizationError(
            f"{source} says is_marlin_format: its weights are packed in Marlin's own layout, which"
            " is not read; take the revision from before they were repacked"
        )
    if (pack_dtype := settings.get("pack_dtype", "int32")) not in ("int32", "torch.int32"):
        raise UnsupportedQuantizationError(
            f"{source} says pack_dtype={pack_dtype!r}: codes packed into int32 are read"
        )
    if rotation := settings.get("rotation"):
        raise UnsupportedQuantizationError(
            f"{source} says rotation={rotation!r}: weights that were rotated are not read"
        )
    if adapter := settings.get("adapter"):
        log.warning(
            "adapter_not_applied",
            adapter=str(adapter)[:200],
            reason="the weights are served without it",
        )
    known = _READ | _HARMLESS | _READ_OF[method]
    if method == "awq":
        known |= {key for key in _READ_OF["gptq"] if settings.get(key) in _AWQ_FORMATS}
    log_unknown(settings, known, source)


def log_unknown(settings: Mapping[str, Any], known: Set[str], source: str) -> None:
    """Name the settings that are not read and that nobody here knows to be harmless."""
    if unknown := sorted(str(key)[:80] for key in settings.keys() - known):
        log.info("settings_not_read", source=source, keys=unknown[:20])


def report_head(
    settings: Mapping[str, Any], source: str, tensors: Mapping[str, TensorInfo]
) -> None:
    """Log where settings say of the output head what its tensors don't; the tensors decide."""
    said = settings.get("lm_head")
    is_packed = any(f"lm_head.{marker}" in tensors for marker in ("qweight", "weight_packed"))
    if said is not None and said != is_packed:
        log.warning(
            "settings_contradict_tensors",
            said=f"lm_head={str(said).lower()} in {source}",
            found="a quantised lm_head" if is_packed else "a dense or tied lm_head",
            reason="the tensors decide",
        )


def report_left_alone(
    settings: Mapping[str, Any], source: str, tensors: Mapping[str, TensorInfo]
) -> None:
    """Log where settings leave modules unquantised that are packed; the tensors decide.

    compressed-tensors' `ignore` counts by whole names only; its patterns are not read.
    """
    modules = packed_modules(tensors)
    left = _strings(settings.get("modules_to_not_convert"))
    ignored = set(_strings(settings.get("ignore")))
    within = _strings(settings.get("modules_in_block_to_quantize"))
    for key, wrong in {
        "modules_to_not_convert": [m for m in modules if any(f".{n}." in f".{m}." for n in left)],
        "ignore": [module for module in modules if module in ignored],
        "modules_in_block_to_quantize": [
            module
            for module in modules
            if within and "." in module and not any(f".{module}".endswith(f".{n}") for n in within)
        ],
    }.items():
        if wrong:
            log.warning(
                "settings_contradict_tensors",
                said=f"{key} in {source} leaves them as they were",
                found="packed layers",
                layers=len(wrong),
                first=wrong[:3],
                reason="the tensors decide",
            )


def _strings(value: object) -> list[str]:
    """Flatten a setting's lists of names; what is no list of names says nothing."""
    if isinstance(value, str):
        return [value]
    return [name for item in value for name in _strings(item)] if isinstance(value, list) else []


def said_symmetry(settings: Mapping[str, Any], source: str, *, decisive: str) -> bool | None:
    """Return whether settings say that zero points are the middle code; None: nothing is said.

    decisive: which of `sym` and `zero_point`, its opposite, is the method's own word.
    """
    said = {}
    if "sym" in settings:
        said["sym"] = bool(settings["sym"])
    if "zero_point" in settings:
        said["zero_point"] = not settings["zero_point"]
    if len(set(said.values())) > 1:
        log.warning(
            "settings_contradict_each_other",
            said=f"sym={settings['sym']} and zero_point={settings['zero_point']} in {source}",
            found=decisive,
            reason="it is the method's own word",
        )
    return said.get(decisive, next(iter(said.values()), None))
