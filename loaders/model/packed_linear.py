"""The layer that stands where `nn.Linear` stood: first a place for a checkpoint's tensors, then a
kernel.

While loading it offers buffers named and shaped as in the file, so that Transformers fills and
places them like any others. `loaders.model.prepare` takes them and gives it a kernel, its own or
its share of one that layers were joined in. The engine sees it only through its `LinearWeight`
protocol: `matmul`, `fuse_with` and the orders of inputs and outputs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from loaders.errors import BackendError, CheckpointError
from loaders.model.finite import check_finite
from loaders.model.kernels.output_slice import whole_of
from loaders.model.kernels.protocol import NativeKernel, TwoWayKernel
from loaders.model.kernels.ways import ManyWaysKernel, WayChoice
from loaders.quantization.packed_tensors import PackedTensors
from native.int8 import Int8Weight

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from loaders.model.kernels.protocol import Kernel
    from loaders.model.kernels.ways import MakeProduct
    from loaders.quantization.packed_format import PackedFormat
    from native.int4 import Int4Weight


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a buffer must be to take one of the checkpoint's tensors."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class PackedLinear(nn.Module):
    """A linear layer with packed weights; forward takes [..., in] and gives [..., out]."""

    bias: Tensor | None
    name: str = ""
    format: PackedFormat | None = None

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.kernel: Kernel | None = None
        self.backend = ""  # what made the kernel
        self.expects_bias = True  # whether the layer that it stands for has one
        self._output_permutation: Tensor | None = None
        self.is_constant = False  # whether all codes that were stored are one and the same
        self.is_bias_in_kernel = False  # whether the kernel adds it; else `matmul` does
        self.register_buffer("bias", None)

    @classmethod
    def awaiting(
        cls,
        packed: PackedFormat,
        in_features: int,
        out_features: int,
        *,
        name: str,
        tensors: Mapping[str, TensorSpec],
    ) -> PackedLinear:
        """Make an empty layer whose buffers wait for the checkpoint's tensors, bias among them."""
        layer = cls(in_features, out_features)
        layer.name, layer.format = name, packed
        for key, place in tensors.items():
            layer.register_buffer(key, torch.empty(place.shape, dtype=place.dtype))
        # Some models fill their layers' weights with random numbers first (GPT-BigCode), unless
        # these say that they are filled; it is neither a parameter nor a buffer.
        weight = torch.empty(out_features, in_features, device="meta")
        weight._is_hf_initialized = True  # type: ignore[attr-defined]  # Transformers' own flag
        layer.__dict__["weight"] = weight
        return layer

    def forget_initialised(self) -> None:
        """Drop what stood for the weight while Transformers built the model."""
        self.__dict__.pop("weight", None)

    @classmethod
    def from_kernel(
        cls,
        kernel: Kernel,
        in_features: int,
        out_features: int,
        *,
        bias: Tensor | None = None,
        is_bias_in_kernel: bool = False,
        output_permutation: Tensor | None = None,
        backend: str = "",
    ) -> PackedLinear:
        """Make a layer around a kernel that is already prepared."""
        layer = cls(in_features, out_features)
        layer.use_kernel(kernel, backend, is_bias_in_kernel=is_bias_in_kernel)
        layer._output_permutation = output_permutation
        layer.register_buffer("bias", bias, persistent=False)
        return layer

    @property
    def device(self) -> torch.device | None:
        """Where the tensors that wait to be prepared lie; None where there are none."""
        return next((buffer.device for buffer in self._stored().values()), None)

    def _stored(self) -> dict[str, Tensor]:
        return {key: buffer for key, buffer in self.named_buffers() if key != "bias"}

    @property
    def waiting(self) -> PackedTensors:
        """The checkpoint's tensors, which wait to be prepared."""
        stored = self._stored()
        if self.format is None or not stored:
            raise CheckpointError(
                f"layer {self.name or '(fused)'} holds no packed tensors any more"
            )
        return PackedTensors(
            name=self.name,
            format=self.format,
            in_features=self.in_features,
            out_features=self.out_features,
            stored=stored,
        )

    def take_tensors(self) -> PackedTensors:
        """Check the checkpoint's tensors and hand them over, leaving none behind in the layer.

        A bias is checked too, and stays; AutoGPTQ stores one of zeros for layers that have none,
        which goes.
        """
        packed = self.waiting
        for key in packed.stored:
            delattr(self, key)
        packed.check_values()
        self.is_constant = packed.is_constant()
        if self.bias is not None:
            check_finite(f"{self.name}.bias", self.bias)
            self.bias = self.bias.float() if bool(self.bias.any()) else None
        return packed

    def use_kernel(self, kernel: Kernel, backend: str, *, is_bias_in_kernel: bool = False) -> None:
        """Multiply by a kernel from now on; backend: what made it."""
        self.kernel, self.backend = kernel, backend
        self.is_bias_in_kernel = is_bias_in_kernel

    @property
    def num_invariant_rows(self) -> int | None:
        """Up to how many rows `matmul` gives each as it would alone, to the last bit; None: any."""
        return self._ready_kernel().num_invariant_rows

    @property
    def unit_roundoff(self) -> float:
        """The largest relative error of one rounding that the kernel does."""
        return self._ready_kernel().unit_roundoff

    @property
    def input_permutation(self) -> Tensor | None:
        """Order in which `matmul` expects the inputs, [in] int64; None for the natural one."""
        return self._ready_kernel().input_permutation

    @property
    def output_permutation(self) -> Tensor | None:
        """Order in which `matmul` gives the outputs, [out] int64; None for the natural one."""
        return self._output_permutation

    def matmul(self, x: Tensor) -> Tensor:
        """Multiply x [rows, in], already permuted, and add the bias: [rows, out] in x's dtype."""
        return self._with_bias(self._ready_kernel()(x))

    @property
    def kind(self) -> str:
        """Name what made the kernel, and its way of many rows.

        Weights of one kind and shape take the same ways.
        """
        kernel = self._kernel_of_ways()
        return self.backend if kernel is None else f"{self.backend} {kernel.choice.many}"

    def product_of_many(self) -> Callable[[Tensor], Tensor]:
        """Give what does as `matmul`, but by the way of many rows however few there are."""
        kernel = self._ready_kernel()
        return self._biased(
            kernel.product_of_many() if isinstance(kernel, TwoWayKernel) else kernel
        )

    @property
    def shape_key(self) -> str:
        """Name what the speed of the kernel's ways depends on; empty where it has but one."""
        kernel = self._kernel_of_ways()
        return "" if kernel is None else kernel.shape_key

    @property
    def ways_taken(self) -> tuple[str, str, int | None] | None:
        """A `WayChoice`: few, many, and many from how many rows; None where there is one way."""
        kernel = self._kernel_of_ways()
        return None if kernel is None else kernel.choice.as_tuple()

    def ways_of_few(self) -> Mapping[str, MakeProduct]:
        """Give what does as `matmul` by each way for few rows; the first runs everywhere."""
        kernel = self._kernel_of_ways()
        return {} if kernel is None else self._with_biases(kernel.ways_of_few())

    def ways_of_many(self) -> Mapping[str, MakeProduct]:
        """Give what does as `matmul` by each way for many rows."""
        kernel = self._kernel_of_ways()
        return {} if kernel is None else self._with_biases(kernel.ways_of_many())

    def choose_ways(self, *, few: str, many: str, many_from: int | None) -> None:
        """Have `matmul` take these ways, named as above, and prompts' pieces that of many."""
        kernel = self._kernel_of_ways()
        if kernel is None:
            raise BackendError(f"layer {self.name}: {self.backend} has one way to multiply")
        kernel.choose(WayChoice(few, many, many_from))

    def _kernel_of_ways(self) -> ManyWaysKernel | None:
        kernel = self._ready_kernel()
        return kernel if isinstance(kernel, ManyWaysKernel) else None

    def _with_biases(self, ways: Mapping[str, MakeProduct]) -> dict[str, MakeProduct]:
        return {name: partial(self._make, make) for name, make in ways.items()}

    def _make(self, make: MakeProduct) -> Callable[[Tensor], Tensor]:
        return self._biased(make())

    def _biased(self, product: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: self._with_bias(product(x))

    def native_weight(self) -> Int4Weight | Int8Weight | None:
        """Give the layer as the kernels in C++ take it, bias and order of inputs included.

        Its memory is the layer's own. None where its kernel is none of theirs, and where outputs
        come in another order than the model's. Whether there are such kernels is not asked here.
        """
        kernel = self._ready_kernel()
        if not isinstance(kernel, NativeKernel) or self._output_permutation is not None:
            return None
        weight = kernel.native_weight()
        if weight is None:
            return None
        bias = None if self.bias is None else self.bias.float()
        if isinstance(weight, Int8Weight):  # whose inputs lie in the model's order
            return replace(weight, bias=bias)
        return replace(weight, bias=bias, input_permutation=kernel.input_permutation)

    def _with_bias(self, out: Tensor) -> Tensor:
        if self.bias is None or self.is_bias_in_kernel:
            return out
        return out + self.bias.to(out.dtype)

    def fuse_with(self, others: Sequence[object]) -> PackedLinear | None:
        """Return one layer giving this output and the others' side by side, or None."""
        siblings = [other for other in others if isinstance(other, PackedLinear)]
        if len(siblings) != len(others):
            return None
        layers = [self, *siblings]
        kernels = [layer._ready_kernel() for layer in layers]
        joined = whole_of(kernels)
        kernel = kernels[0].fuse(kernels[1:]) if joined is None else joined.kernel
        if kernel is None:
            return None
        return PackedLinear.from_kernel(
            kernel,
            self.in_features,
            sum(layer.out_features for layer in layers),
            bias=joined_bias(layers),
            is_bias_in_kernel=self.is_bias_in_kernel,
            output_permutation=None if joined is None else joined.output_permutation,
            backend=self.backend,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x [..., in] in the model's own order: [..., out] in x's dtype."""
        rows = x.reshape(-1, self.in_features)
        if (permutation := self.input_permutation) is not None:
            rows = rows.index_select(1, permutation)
        return self.matmul(rows).view(*x.shape[:-1], self.out_features)

    def _ready_kernel(self) -> Kernel:
        if self.kernel is None:
            raise CheckpointError(f"layer {self.name} was used before it was prepared")
        return self.kernel

    def extra_repr(self) -> str:
        """Name shape and kernel where the model is printed."""
        kernel = type(self.kernel).__name__ if self.kernel else "not prepared"
        return f"in_features={self.in_features}, out_features={self.out_features}, kernel={kernel}"


def joined_bias(layers: Sequence[PackedLinear]) -> Tensor | None:
    """Put layers' biases side by side, zeros where one has none; None where none has any."""
    biases = [layer.bias for layer in layers if layer.bias is not None]
    if not biases:
        return None
    return torch.cat(
        [
            biases[0].new_zeros(layer.out_features) if layer.bias is None else layer.bias
            for layer in layers
        ]
    )


def packed_layers(model: nn.Module) -> Mapping[str, PackedLinear]:
    """Return the model's packed layers by name."""
    return {
        name: module for name, module in model.named_modules() if isinstance(module, PackedLinear)
    }
