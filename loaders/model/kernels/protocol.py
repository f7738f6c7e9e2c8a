"""What a kernel backend is: it accepts or refuses a layer, then prepares a kernel for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from loaders.quantization.kernel_rules import DeviceFacts, PackedSize, has_triton

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch
    from torch import Tensor

    from loaders.quantization.packed_format import PackedFormat
    from loaders.quantization.packed_tensors import GroupedWeight, PackedTensors
    from native.int4 import Int4Weight
    from native.int8 import Int8Weight


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What the choice of a backend may depend on."""

    format: PackedFormat
    in_features: int
    out_features: int
    device: torch.device
    dtype: torch.dtype | None = None  # of activations; None where nobody has said
    # Of a CUDA device, as (9, 0), or of one that a CPU stands for; None on CPU else.
    compute_capability: tuple[int, int] | None = None

    @property
    def size(self) -> PackedSize:
        """What the rule of kernels follows from, beside the device."""
        return PackedSize(
            self.format.bits, self.format.group_size, self.in_features, self.out_features
        )

    @property
    def facts(self) -> DeviceFacts:
        """What the rule of kernels needs to know of the device."""
        is_cpu = self.device.type == "cpu" and self.compute_capability is None
        return DeviceFacts("cpu" if is_cpu else "cuda", self.compute_capability, has_triton())


class Kernel(Protocol):
    """A prepared weight that multiplies rows of activations."""

    @property
    def num_invariant_rows(self) -> int | None:
        """Up to how many rows each comes out, to the last bit, as it would alone; None: any."""

    @property
    def unit_roundoff(self) -> float:
        """The largest relative error of one rounding, of activations, weights, scales or results.

        The coarsest there is, beside rounding to the activations' own dtype; the self-test derives
        from it how far products may be off.
        """

    @property
    def input_permutation(self) -> Tensor | None:
        """Order in which `__call__` expects the inputs, [in] int64; None for the natural one."""

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply x [rows, in], already permuted, giving [rows, out] in x's dtype; no bias."""

    def dequantize(self) -> Tensor:
        """Return the weight it really multiplies by, [out, in] float32, in its input order."""

    def fuse(self, others: Sequence[Kernel]) -> Kernel | None:
        """Return one kernel giving this output and the others' side by side, or None."""


@runtime_checkable
class TwoWayKernel(Protocol):
    """A kernel that multiplies many rows in another way than few, by their number if not told."""

    def product_of_many(self) -> Callable[[Tensor], Tensor]:
        """Give what does as a call, but by the way of many rows however few there are.

        What is made ready of the weight is made once, and kept as long as what is given.
        """


@runtime_checkable
class NativeKernel(Protocol):
    """A kernel whose weight is laid out as the kernels in C++ read it, at least on some CPUs."""

    def native_weight(self) -> Int4Weight | Int8Weight | None:
        """Give the weight as they take it, sharing its memory; None where it is laid out else."""


class Backend(Protocol):
    """A way to run packed layers."""

    name: str

    def refusal(self, shape: LayerShape) -> str | None:
        """Say why this backend cannot run such a layer; None if it can."""

    def prepare(self, packed: PackedTensors) -> Kernel:
        """Make the kernel; only the reference keeps the packed tensors."""


@runtime_checkable
class GroupedBackend(Protocol):
    """A backend that takes grouped weights, so that layers are joined before they are packed.

    Joining what is packed already would hold both at once, twice the memory.
    """

    name: str

    def refusal(self, shape: LayerShape) -> str | None:
        """Say why this backend cannot run such a layer; None if it can."""

    def prepare_grouped(
        self, weight: GroupedWeight, bias: Tensor | None, dtype: torch.dtype
    ) -> Kernel:
        """Make the kernel of one weight, or of several that were joined along their outputs.

        bias: [out] float32, added by the kernel itself. dtype: of activations.
        """


# Of one rounding to the nearest: half the distance of a number with so many bits to the next.
BFLOAT16_ROUNDOFF = 2**-8
FLOAT16_ROUNDOFF = 2**-11
FLOAT32_ROUNDOFF = 2**-24


def same_permutation(first: Tensor | None, second: Tensor | None) -> bool:
    """Whether two weights expect their inputs in the same order."""
    if first is None or second is None:
        return first is second
    return first is second or bool((first == second).all())
