"""What a GGUF file says of its rotary embedding, as config.json would say it.

The defaults are llama.cpp's: a factor without a kind is linear, a kind without a factor divides by
1, and YaRN without an original context was trained on the whole one.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from loaders.checkpoint.config_limits import LARGEST_SIZES
from loaders.errors import CheckpointError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from loaders.gguf.metadata import Settings

# Tensors of factors by which single frequencies are divided; read with the settings, not placed in
# the model.
ROPE_FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_ONE, _LONG, _SHORT = ROPE_FACTORS
_KINDS = ("none", "linear", "yarn", "longrope")
_MAX_CONTEXT = LARGEST_SIZES["max_position_embeddings"]


def make_rope(
    settings: Settings,
    head_dim: int,
    tensors: Mapping[str, object],
    read_numbers: Callable[[str], Sequence[float]] | None,
) -> dict[str, Any]:
    """Make config.json's `rope_parameters`.

    read_numbers: gives the values of a tensor; without it, tensors of factors are left out, as is
    right where nothing will be computed. Raises CheckpointError for what makes no sense,
    UnsupportedModelError for what Transformers cannot express.
    """
    rope: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": settings.real("rope.freq_base", 10_000.0),
    }
    rotated = settings.get("rope.dimension_count")
    if rotated is not None and rotated != head_dim:
        rotated = settings.whole("rope.dimension_count", head_dim, least=2)
        if rotated % 2:
            raise settings.wrong("rope.dimension_count", "an even number")
        rope["partial_rotary_factor"] = _share(rotated, head_dim)
    kind, factor = _kind(settings), _factor(settings)
    names = _factor_tensors(tensors)
    if kind == "longrope" and names is None:
        raise CheckpointError(
            f"the GGUF file scales RoPE by longrope and holds no {_LONG} and {_SHORT}; download it"
            " again"
        )
    if kind == "yarn":
        if names is not None:
            raise UnsupportedModelError(
                f"the GGUF file scales RoPE by yarn and by {names[0]}; one of them is read"
            )
        return rope | _yarn(settings, factor)
    _check_unmixed(settings)
    if kind == "none":
        factor = 1.0
    width = (rotated or head_dim) // 2
    return rope | _plain(settings, factor, width, names, read_numbers)


def _share(rotated: int, head_dim: int) -> float:
    """Give the part of a head that rotates, as a number that multiplies back to it exactly."""
    share = rotated / head_dim
    return share if int(head_dim * share) == rotated else math.nextafter(share, 1.0)


def _kind(settings: Settings) -> str:
    kind = settings.get("rope.scaling.type")
    if kind is None:
        return "linear"
    if kind not in _KINDS:
        raise UnsupportedModelError(
            f"the GGUF file scales RoPE by {str(kind)[:40]!r}; {', '.join(_KINDS)} are read"
        )
    return str(kind)


def _factor(settings: Settings) -> float:
    """Read the factor, under its name or under the one before October 2023; 0 stands for none."""
    for key in ("rope.scaling.factor", "rope.scale_linear"):
        if settings.get(key) is not None:
            return 1.0 if settings.get(key) == 0 else settings.real(key)
    return 1.0


def _yarn(settings: Settings, factor: float) -> dict[str, Any]:
    if _is_said(settings, "rope.scaling.yarn_ext_factor", neutral=1.0):
        raise settings.wrong("rope.scaling.yarn_ext_factor", "1 with yarn")
    own = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
    # Some mean the attention's factor by it, some what that is multiplied by.
    said = settings.real("rope.scaling.yarn_attn_factor", 1.0)
    if said != 1.0 and not math.isclose(said, own, rel_tol=1e-4):
        raise settings.wrong("rope.scaling.yarn_attn_factor", f"1 or {own:.6g}")
    yarn: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": _original_context(settings),
        "attention_factor": settings.real("rope.scaling.attn_factor", 1.0) * own,
    }
    for name in ("beta_fast", "beta_slow"):
        if settings.get(f"rope.scaling.yarn_{name}") is not None:
            yarn[name] = settings.real(f"rope.scaling.yarn_{name}")
    return yarn


def _check_unmixed(settings: Settings) -> None:
    """Raise where frequencies are mixed as YaRN does it, and the kind is another."""
    if _is_said(settings, "rope.scaling.yarn_ext_factor", neutral=0.0):
        raise settings.wrong("rope.scaling.yarn_ext_factor", "0 without yarn")


def _is_said(settings: Settings, key: str, *, neutral: float) -> bool:
    """Whether a number is another than the neutral one; below zero it stands for nothing."""
    found = settings.get(key)
    return found is not None and not (
        type(found) in (int, float) and (found < 0 or found == neutral)
    )


def _original_context(settings: Settings) -> int:
    key = "rope.scaling.original_context_length"
    if settings.get(key) is None:
        return settings.whole("context_length", _MAX_CONTEXT)
    return settings.whole(key, _MAX_CONTEXT)


def _factor_tensors(tensors: Mapping[str, object]) -> tuple[str, str] | None:
    """Name the tensors of the factors for long and for short texts."""
    found = [name for name in ROPE_FACTORS if name in tensors]
    if not found:
        return None
    if found == [_ONE]:
        return _ONE, _ONE
    if found == [_LONG, _SHORT]:
        return _LONG, _SHORT
    raise CheckpointError(
        f"the GGUF file holds {' and '.join(found)}; expected {_ONE} alone, or {_LONG} and {_SHORT}"
    )


def _plain(
    settings: Settings,
    factor: float,
    width: int,
    names: tuple[str, str] | None,
    read_numbers: Callable[[str], Sequence[float]] | None,
) -> dict[str, Any]:
    """Divide all frequencies by the factor, single ones by those of the tensors as well.

    Llama 3.1's are one such set, which Transformers would compute from four numbers that GGUF does
    not keep; as longrope with twice the same factors it is the same. So is a plain factor whose
    attention is scaled.
    """
    attention = settings.real("rope.scaling.attn_factor", 1.0)
    if names is None and attention == 1.0:
        return {} if factor == 1.0 else {"rope_type": "linear", "factor": factor}
    if names is None:
        long = short = [factor] * width
    elif read_numbers is None:
        return {}
    else:
        long, short = (
            [factor * value for value in _factors(name, width, read_numbers)] for name in names
        )
    return {
        "rope_type": "longrope",
        "long_factor": long,
        "short_factor": short,
        "original_max_position_embeddings": _original_context(settings),
        "attention_factor": attention,
    }


def _factors(name: str, width: int, read_numbers: Callable[[str], Sequence[float]]) -> list[float]:
    values = [float(value) for value in read_numbers(name)]
    if not all(math.isfinite(value) and value > 0 for value in values):
        raise CheckpointError(f"{name} holds values that are no positive numbers")
    if len(values) != width:
        raise CheckpointError(
            f"{name} holds {len(values)} factors, expected {width}: one for two values of a head"
            " that rotate together"
        )
    return values
