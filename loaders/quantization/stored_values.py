"""Holds a quantisation's settings against the values of zero points and group indexes.

What shapes cannot tell: which version of GPTQ's zero points is stored, and whether groups are
scattered. Both are decided from all layers together, before any kernel is prepared.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias, get_args

import structlog
import torch
from safetensors import SafetensorError, safe_open

from loaders.errors import CheckpointError, TensorError
from loaders.quantization.agreement import layout_name
from loaders.quantization.layouts import layout_of
from loaders.quantization.layouts.compressed_tensors import PackQuantizedLayout
from loaders.quantization.layouts.gptq import GptqLayout
from loaders.quantization.packing import CheckpointFormat, pack_gptq_zeros, unpack_gptq_zeros
from loaders.quantization.stored_shapes import packed_modules, possible_shapes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor

    from loaders.checkpoint.files import TensorInfo
    from loaders.quantization.packed_format import PackedFormat
    from loaders.quantization.quantization import Quantization

    # Reads a tensor by name; None where there is none.
    ReadTensor: TypeAlias = Callable[[str], Tensor | None]

log = structlog.get_logger(__name__)

_VERSIONS: tuple[CheckpointFormat, ...] = get_args(CheckpointFormat)
_OTHER: dict[str, CheckpointFormat] = {"gptq": "gptq_v2", "gptq_v2": "gptq"}
_INDEX_DTYPES = (torch.int32, torch.int64)  # others are refused where the layers are made
_MAX_NAMED = 3  # modules that a message lists
_OPEN_SHARDS = 8  # at a time; a layer's tensors seldom lie in more than two


class _Order(StrEnum):
    """What a layer's group index says of several groups."""

    SCATTERED = "scattered"
    IN_ORDER = "in order"
    ZERO = "all zero"  # never filled in, by AutoGPTQ's tools
    UNSET = "all -1"  # never filled in, by compressed-tensors' own mark


@dataclass(frozen=True, slots=True)
class _Found:
    """What the values of all layers say, by module."""

    orders: dict[str, _Order] = field(default_factory=dict)
    # Versions under which every zero point is the middle code; GPTQ's layers only.
    centred_in: dict[str, frozenset[CheckpointFormat]] = field(default_factory=dict)
    off_centre: list[str] = field(default_factory=list)  # AWQ's, symmetric by the settings


def hold_against_values(
    quantization: Quantization, tensors: Mapping[str, TensorInfo]
) -> Quantization:
    """Return the quantisation as the values have it; the same where they agree.

    tensors: of safetensors files, some of which are read here. Raises TensorError where values
    contradict the settings and do not say what is right, CheckpointError for unreadable files.
    """
    read = _reader(tensors)
    found = _Found()
    for module in _by_shard(tensors, quantization):
        packed = quantization.format_of(module)
        if packed is not None and _is_readable(module, packed, tensors):
            _look_at(module, packed, quantization, read, found)
    if found.off_centre:
        log.warning(
            "zero_points_not_centred",
            said=f"{quantization.source} says that there are no zero points",
            layers=len(found.off_centre),
            first=found.off_centre[:_MAX_NAMED],
            reason="the zero points that are stored are used",
        )
    quantization = _settle_version(quantization, found, read)
    return _settle_order(quantization, found)


def _is_readable(module: str, packed: PackedFormat, tensors: Mapping[str, TensorInfo]) -> bool:
    """Whether the shapes are of that layout; others are refused by name where layers are made."""
    is_compressed = packed.quant_method == "compressed-tensors"
    return is_compressed or layout_name(packed) in possible_shapes(tensors, module)


def _by_shard(tensors: Mapping[str, TensorInfo], quantization: Quantization) -> list[str]:
    """List the packed modules, those of one file after each other."""
    marker = layout_of(quantization.base).marker
    modules = [module for module in packed_modules(tensors) if f"{module}.{marker}" in tensors]
    return sorted(modules, key=lambda module: str(tensors[f"{module}.{marker}"].shard))


def _reader(tensors: Mapping[str, TensorInfo]) -> ReadTensor:
    @lru_cache(_OPEN_SHARDS)
    def opened(shard: Path) -> Any:
        return safe_open(shard, framework="pt")

    def read(name: str) -> Tensor | None:
        info = tensors.get(name)
        if info is None:
            return None
        try:
            tensor: Tensor = opened(info.shard).get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{info.shard.name} cannot be read: {error}") from error
        return tensor

    return read


def _look_at(
    module: str,
    packed: PackedFormat,
    quantization: Quantization,
    read: ReadTensor,
    found: _Found,
) -> None:
    key = {GptqLayout.marker: "g_idx", PackQuantizedLayout.marker: "weight_g_idx"}
    if packed.quant_method != "awq":
        g_idx = read(f"{module}.{key[layout_of(packed).marker]}")
        if g_idx is not None and (order := _order_of(g_idx, packed)) is not None:
            found.orders[module] = order
    sym = quantization.claims_of(module).sym
    if packed.quant_method == "gptq" and sym is not False:
        centred_in = _centred_in(read(f"{module}.qzeros"), packed.bits)
        if centred_in is not None:
            found.centred_in[module] = centred_in
    elif packed.quant_method == "awq" and sym and not _is_centred(module, packed, read):
        found.off_centre.append(module)


def _order_of(g_idx: Tensor, packed: PackedFormat) -> _Order | None:
    """Say what a group index tells; None where there is one group, or it is no list of groups."""
    if g_idx.ndim != 1 or g_idx.dtype not in _INDEX_DTYPES or packed.num_groups(len(g_idx)) == 1:
        return None
    if not bool(g_idx.any()):
        return _Order.ZERO
    if bool((g_idx == -1).all()):
        return _Order.UNSET
    in_order = torch.arange(len(g_idx)) // packed.group_size
    return _Order.IN_ORDER if torch.equal(g_idx.long(), in_order) else _Order.SCATTERED


def _centred_in(qzeros: Tensor | None, bits: int) -> frozenset[CheckpointFormat] | None:
    """Name the versions under which all zero points are the middle code; None if unreadable."""
    if qzeros is None or qzeros.dtype != torch.int32 or qzeros.ndim != 2:
        return None
    if qzeros.shape[1] % len(_middle_words(bits, "gptq")):
        return None
    return frozenset(v for v in _VERSIONS if _is_filled_with(qzeros, _middle_words(bits, v)))


@cache
def _middle_words(bits: int, version: CheckpointFormat) -> Tensor:
    """Return the words that repeat where every zero point is the middle code."""
    middle = torch.full((1, 32), 2 ** (bits - 1), dtype=torch.uint8)
    words = pack_gptq_zeros(middle, bits, checkpoint_format=version)[0]
    return words[:1] if bool((words == words[0]).all()) else words


def _is_filled_with(qzeros: Tensor, words: Tensor) -> bool:
    return bool((qzeros.reshape(-1, len(words)) == words).all())


def _is_centred(module: str, packed: PackedFormat, read: ReadTensor) -> bool:
    """Whether the zero points of an AWQ layer are the middle code, fractions rounded."""
    layout = layout_of(packed)
    tensors = {key: read(f"{module}.{key}") for key in ("qweight", "qzeros", "scales")}
    stored = {key: tensor for key, tensor in tensors.items() if tensor is not None}
    if len(stored) < len(tensors):
        return True  # refused by name where the layers are made
    try:
        zeros = layout.zeros(stored)
    except (ValueError, IndexError, RuntimeError, TensorError):
        return True  # of a shape or dtype that is refused then, too
    return bool(((zeros - 2 ** (packed.bits - 1)).abs() < 0.5).all())


def _settle_version(quantization: Quantization, found: _Found, read: ReadTensor) -> Quantization:
    """Take the version of zero points that explains every layer which should be symmetric.

    Where settings do not say whether layers are, zero points that are the middle throughout under
    one version only are taken to be of that version. Raises TensorError where neither explains
    what settings do say.
    """
    claimed = [module for module in found.centred_in if quantization.claims_of(module).sym]
    judged = claimed or list(found.centred_in)
    wrong = [
        module
        for module in judged
        if _version(quantization, module) not in found.centred_in[module]
    ]
    if not wrong:
        return quantization
    stated = _version(quantization, wrong[0])
    other = _OTHER[stated]
    if all(other in found.centred_in[module] for module in judged):
        return _with_version(quantization, other, stated)
    if claimed:
        raise TensorError(_neither(quantization, wrong, judged, read))
    return quantization  # asymmetric, as nothing says otherwise


def _version(quantization: Quantization, module: str) -> str:
    return (quantization.format_of(module) or quantization.base).checkpoint_format


def _with_version(
    quantization: Quantization, version: CheckpointFormat, stated: str
) -> Quantization:
    log.warning(
        "settings_contradict_tensors",
        said=f"checkpoint_format {stated}",
        found=version,
        reason="symmetric layers have the middle code as zero point, which they have as this"
        " version only",
    )
    base = replace(quantization.base, checkpoint_format=version)
    remark = f"{quantization.source} says {stated}, the zero points are those of {version}"
    return replace(
        quantization,
        base=base,
        formats={
            module: replace(packed, checkpoint_format=version)
            for module, packed in quantization.formats.items()
        },
        remarks=(*quantization.remarks, remark),
    )


def _neither(
    quantization: Quantization, wrong: list[str], judged: list[str], read: ReadTensor
) -> str:
    module = wrong[0]
    packed = quantization.format_of(module) or quantization.base
    version = _VERSIONS[packed.checkpoint_format == "gptq_v2"]
    qzeros = read(f"{module}.qzeros")
    seen: list[int] = []
    if qzeros is not None:
        zeros = unpack_gptq_zeros(qzeros, packed.bits, checkpoint_format=version)
        seen = sorted(set(zeros.flatten().tolist()))
    shown = ", ".join(map(str, seen[:8])) + (", …" if len(seen) > 8 else "")
    return (
        f"{quantization.source} says sym, so every zero point must be {2 ** (packed.bits - 1)};"
        f" {module}.qzeros holds {shown} as {version}, and {_OTHER[version]} does not explain all"
        f" {len(judged)} layers either ({len(wrong)} are wrong as {version}); the settings are"
        " wrong or the file is damaged"
    )


def _settle_order(quantization: Quantization, found: _Found) -> Quantization:
    """Log what group indexes say otherwise than settings. Raises TensorError for a lost order."""
    said: dict[bool | None, dict[_Order, list[str]]] = {}
    for module, order in found.orders.items():
        claim = quantization.claims_of(module).desc_act
        said.setdefault(claim, {}).setdefault(order, []).append(module)
    ordered = said.get(True, {})
    # compressed-tensors leaves it unset where weights were rounded as they came: in every layer.
    lost = ordered.get(_Order.UNSET, []) if _Order.SCATTERED in ordered else []
    # GPTQ's, zero in all layers, means groups in order, as exllama reads it; in some it is lost.
    if _Order.SCATTERED in ordered or quantization.base.quant_method != "gptq":
        lost += ordered.get(_Order.ZERO, [])
    if lost:
        raise TensorError(
            f"the group index of {lost[0]} is {found.orders[lost[0]]}, in {len(lost)} of"
            f" {len(found.orders)} layers, but {quantization.source} says act order, which needs it"
            " to tell each input's group; download the weights again"
        )
    scattered = [m for m, order in found.orders.items() if order is _Order.SCATTERED]
    _log_order("act order", "groups in order", ordered.get(_Order.IN_ORDER))
    _log_order("act order", "a group index that is all zero", ordered.get(_Order.ZERO))
    _log_order("act order", "a group index that is unset", ordered.get(_Order.UNSET))
    _log_order("no act order", "scattered groups", said.get(False, {}).get(_Order.SCATTERED))
    if zero := [m for m, order in found.orders.items() if order is _Order.ZERO]:
        log.info(
            "group_index_says_nothing",
            layers=len(zero),
            first=zero[:_MAX_NAMED],
            reason="g_idx is all zero beside several groups, which are then in order",
        )
    if scattered and not quantization.desc_act:
        return replace(quantization, desc_act=True)
    return quantization


def _log_order(said: str, found: str, modules: list[str] | None) -> None:
    if modules:
        log.warning(
            "settings_contradict_tensors",
            said=said,
            found=found,
            layers=len(modules),
            first=modules[:_MAX_NAMED],
            reason="the group index of each layer decides",
        )
