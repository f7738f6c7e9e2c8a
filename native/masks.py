"""What oneDNN is told to leave alone of a CPU's instructions. Nothing here needs PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

# oneDNN takes the first that is set, and neither capitals nor small letters matter to it.
_VARIABLES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
# What leaves out products of bfloat16.
_WITHOUT_BFLOAT16 = frozenset(
    ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")
)
# Those and what has bfloat16 and no tile registers (AMX).
_WITHOUT_TILES = _WITHOUT_BFLOAT16 | {
    *("AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX10_1_512", "AVX10_2", "AVX10_2_512"),
}


def mask_of_bfloat16(environment: Mapping[str, str]) -> str | None:
    """Return the setting that leaves out products of bfloat16, as NAME=value; None if none does."""
    return _mask_among(environment, _WITHOUT_BFLOAT16)


def mask_of_tiles(environment: Mapping[str, str]) -> str | None:
    """Return the setting that leaves out tile registers (AMX), as NAME=value; None if none does."""
    return _mask_among(environment, _WITHOUT_TILES)


def _mask_among(environment: Mapping[str, str], limits: Collection[str]) -> str | None:
    name = next((name for name in _VARIABLES if environment.get(name)), None)
    if name is None or environment[name].upper() not in limits:
        return None
    return f"{name}={environment[name]}"
