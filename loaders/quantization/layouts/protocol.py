"""What a layout answers: which tensors a layer has, and what codes, scales and zeros they hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

# A layer's tensors as the checkpoint stores them, by the last part of their names.
StoredTensors: TypeAlias = "Mapping[str, Tensor]"

FLOAT_DTYPES = ("F16", "BF16", "F32")
INT_DTYPES = ("I32",)


@dataclass(frozen=True, slots=True)
class TensorRule:
    """What one stored tensor of a layer must be."""

    shape: tuple[int, ...]
    dtypes: tuple[str, ...]  # any of these, by safetensors' names
    is_required: bool = True


class Layout(Protocol):
    """How a format stores a layer; weight[o, i] = (code[i, o] - zero[g, o]) * scale[g, o]."""

    marker: str  # the tensor that every packed layer has and no other

    def rules(self, in_features: int, out_features: int) -> dict[str, TensorRule]:
        """Say what each stored tensor of such a layer must be.

        Raises ValueError, in words, where no such layer can be stored.
        """

    def codes(self, stored: StoredTensors) -> Tensor:
        """Unpack the codes: uint8 [in, out] in the checkpoint's input order."""

    def scales(self, stored: StoredTensors) -> Tensor:
        """Return the scales: float32 [groups, out]."""

    def zeros(self, stored: StoredTensors) -> Tensor:
        """Return the zero points, in units of codes: float32 [groups, out]."""

    def group_of_input(self, stored: StoredTensors) -> Tensor | None:
        """Return the group of each input, int64 [in]; None where they are in order."""
