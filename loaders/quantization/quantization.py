"""A checkpoint's quantisation, once it is told: how each module is packed, what is claimed of it.

Where it is read from is `loaders.quantization.settings`' part.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from loaders.errors import UnsupportedQuantizationError
from loaders.quantization.name_patterns import NamePatterns
from loaders.quantization.packed_format import PackedFormat, QuantMethod

if TYPE_CHECKING:
    from collections.abc import Mapping

FROM_TENSORS = "tensors"  # a quantisation's source where no settings tell it
GPTQ_BITS = (2, 3, 4, 8)
AWQ_BITS = (4,)
READABLE_BITS: dict[QuantMethod, tuple[int, ...]] = {
    "gptq": GPTQ_BITS,
    "awq": AWQ_BITS,
    "compressed-tensors": tuple(range(2, 9)),
}


@dataclass(frozen=True, slots=True)
class Claims:
    """What settings say of a layer's values; None where they say nothing."""

    sym: bool | None = None  # zero points are the middle code
    desc_act: bool | None = None  # groups are scattered


@dataclass(frozen=True, slots=True)
class Quantization:
    """A checkpoint's quantisation, as its settings tell it."""

    base: PackedFormat  # what applies where no rule says otherwise
    desc_act: bool  # act order: columns were quantised by falling activation; g_idx tells the group
    sym: bool
    source: str  # where this was read: a file's name, or `FROM_TENSORS`
    # Rules by module, pattern → overrides (bits, group_size, checkpoint_format, sym, desc_act);
    # None leaves the module unquantised. First match wins.
    rules: Mapping[str, Mapping[str, Any] | None] = field(default_factory=dict)
    # Module → how it is packed, before any rule: GGUF's mixed types, and what tensors say
    # otherwise than settings.
    formats: Mapping[str, PackedFormat] = field(default_factory=dict)
    label: str | None = None  # what people call it, where that says more: "Q4_K_M"
    claims: Claims = field(default_factory=Claims)  # what its values are held against
    remarks: tuple[str, ...] = ()  # what the settings say otherwise than the tensors; those win
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
        return None if overrides is None else override(self.base, overrides, module)

    def claims_of(self, module: str) -> Claims:
        """Return what settings say of the named module's values."""
        pattern = self._patterns.find(module)
        overrides = (None if pattern is None else self.rules[pattern]) or {}
        return Claims(
            sym=overrides.get("sym", self.claims.sym),
            desc_act=overrides.get("desc_act", self.claims.desc_act),
        )

    def __str__(self) -> str:
        """Describe it in a few words, as in `gptq 4-bit group 128 act-order`."""
        if self.label is not None:
            return f"{self.base.quant_method} {self.label}"
        group = "one group" if self.base.group_size == -1 else f"group {self.base.group_size}"
        order = " act-order" if self.desc_act else ""
        symmetry = "" if self.sym else " asymmetric"
        return f"{self.base.quant_method} {self.base.bits}-bit {group}{order}{symmetry}"


def check_bits(method: QuantMethod, bits: int, source: str) -> None:
    """Raise UnsupportedQuantizationError for widths that are not read."""
    readable = READABLE_BITS[method]
    if bits not in readable:
        raise UnsupportedQuantizationError(
            f"{source} says {bits} bits; of {method.upper()},"
            f" {', '.join(map(str, readable))} bits are read"
        )


def checked(packed: PackedFormat, source: str) -> PackedFormat:
    """Return the format; raises UnsupportedQuantizationError for one that is not read."""
    check_bits(packed.quant_method, packed.bits, source)
    if packed.group_size != -1 and packed.group_size < 1:
        raise UnsupportedQuantizationError(
            f"{source} says group_size {packed.group_size}; give a positive number, or -1 for no"
            " groups"
        )
    return packed


def override(base: PackedFormat, overrides: Mapping[str, Any], where: str) -> PackedFormat:
    """Change a format as a rule for `where` says; raises as `checked` does."""
    return checked(
        PackedFormat(
            base.quant_method,
            overrides.get("checkpoint_format", base.checkpoint_format),
            overrides.get("bits", base.bits),
            overrides.get("group_size", base.group_size),
        ),
        f"the rule for {where}",
    )
