"""Which other engines could load a variant: a table of what their releases say, with its dates.

Facts age: each line carries the version it was true of and where it was read. What is not known for
certain is `unknown`, never a guess. Kinds are compared by value: their enum comes with the whole
catalogue, and Transformers with that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

    from loaders.catalogue.variants import Variant

CanLoad = Literal["yes", "no", "unknown"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether one engine loads one variant."""

    engine: str
    version: str
    can_load: CanLoad
    why: str  # empty where there is nothing to say


@dataclass(frozen=True, slots=True)
class _Engine:
    name: str
    version: str  # or since when
    source: str  # where it was read
    read: str  # year and month
    judge: Callable[[Variant], tuple[CanLoad, str]]


def _vllm(variant: Variant) -> tuple[CanLoad, str]:
    if variant.kind == "gptq" and variant.quantization is not None:
        base = variant.quantization.base
        needs_humming = base.bits not in (4, 8) or not variant.quantization.sym
        # Its other kernels take act order where all inputs are in one group, humming never.
        if variant.quantization.desc_act and (base.group_size != -1 or needs_humming):
            return "no", "act order"
        return "yes", "with its humming kernels" if needs_humming else ""
    if variant.kind in ("awq", "dense"):
        return "yes", ""
    return "unknown", ""


def _marlin(variant: Variant) -> tuple[CanLoad, str]:
    """Answer for engines whose GPTQ runs on Marlin; of what else they run nothing was read."""
    quantization = variant.quantization
    if variant.kind != "gptq" or quantization is None:
        return "unknown", ""
    base = quantization.base
    if base.bits in (4, 8) and quantization.sym and base.group_size in (-1, 32, 64, 128):
        return "yes", "on Marlin"
    return "unknown", ""


def _mistral_rs(variant: Variant) -> tuple[CanLoad, str]:
    quantization = variant.quantization
    if variant.kind == "gptq" and quantization is not None and quantization.base.bits in (4, 8):
        return "yes", "on CUDA"
    return "unknown", ""


def _lmdeploy(variant: Variant) -> tuple[CanLoad, str]:
    quantization = variant.quantization
    if variant.kind not in ("gptq", "awq") or quantization is None:
        return "unknown", ""
    if quantization.base.group_size != 128:
        return "no", "it takes groups of 128"
    if quantization.desc_act:
        return "no", "act order"
    return ("yes", "") if quantization.base.bits == 4 else ("unknown", "")


def _without_gptq(variant: Variant) -> tuple[CanLoad, str]:
    if variant.kind == "gptq":
        return "no", "its GPTQ loader was dropped"
    return "unknown", ""


def _llama_cpp(variant: Variant) -> tuple[CanLoad, str]:
    return ("yes", "") if variant.kind == "gguf" else ("no", "reads GGUF only")


def _transformers(variant: Variant) -> tuple[CanLoad, str]:
    if variant.kind == "gptq":
        return "yes", "with optimum and GPTQModel, slowly"
    if variant.kind == "awq":
        return "yes", "with GPTQModel, slowly"
    if variant.kind == "gguf":
        return "yes", "dequantised"
    return ("yes", "") if variant.kind == "dense" else ("unknown", "")


def _auto_gptq(variant: Variant) -> tuple[CanLoad, str]:
    if variant.kind == "gptq":
        return "no", "archived; does not import beside Transformers 5"
    return "no", "reads GPTQ only"


def _maintenance(variant: Variant) -> tuple[CanLoad, str]:  # noqa: ARG001
    return "unknown", "in maintenance mode"


_ENGINES = (
    _Engine(
        "vLLM",
        "0.33",
        "its own errors: 'GPTQ group activation ordering (desc_act=True) is no longer supported',"
        " and the lists of types that its GPTQ methods take; vllm-project/vllm#54809",
        "2026-11",
        _vllm,
    ),
    _Engine("SGLang", "0.5.23", "the checks of its Marlin method", "2026-11", _marlin),
    _Engine("Aphrodite", "0.24.1", "the checks of its Marlin method", "2026-11", _marlin),
    _Engine("TGI", "autumn 2026", "its own notice of maintenance mode", "2026-11", _maintenance),
    _Engine("LMDeploy", "0.18", "the checks of its GPTQ loader", "2026-11", _lmdeploy),
    _Engine("TabbyAPI", "autumn 2026", "its sources: no GPTQ loader", "2026-11", _without_gptq),
    _Engine(
        "text-generation-webui",
        "autumn 2026",
        "its sources: no GPTQ loader",
        "2026-11",
        _without_gptq,
    ),
    _Engine("mistral.rs", "autumn 2026", "its GPTQ layer", "2026-11", _mistral_rs),
    _Engine("llama.cpp", "autumn 2026", "its loader reads GGUF files", "2026-11", _llama_cpp),
    _Engine(
        "Transformers",
        "5.23",
        "its quantizers for GPTQ and AWQ, and `gguf_file=`",
        "2026-11",
        _transformers,
    ),
    _Engine(
        "AutoGPTQ",
        "0.7.1",
        "tried: cannot import name 'no_init_weights' beside Transformers 5",
        "2026-11",
        _auto_gptq,
    ),
)


def verdicts(variant: Variant) -> tuple[Verdict, ...]:
    """Say of each engine whether it loads the variant; Tetrad first."""
    own: CanLoad = "no" if variant.refusal else "yes"
    found = [Verdict("Tetrad", "this", own, variant.refusal or "")]
    found += [Verdict(e.name, e.version, *e.judge(variant)) for e in _ENGINES]
    return tuple(found)


def sources() -> tuple[tuple[str, str, str, str], ...]:
    """List engine, version, source and date of every line, for the documentation."""
    return tuple((e.name, e.version, e.source, e.read) for e in _ENGINES)
