"""Settles the dtypes of everything that is not packed, once a model is loaded.

On CPU the residual stream, norms, attention and logits are float32 and only packed layers see
less. Large tables stay as small as they are stored: the embedding is looked up in half precision
and widened by the row, a half-precision lm_head is multiplied in packed form. On CUDA all take the
one dtype that was resolved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from loaders.model.finite import check_own_weights
from loaders.model.kernels.fp16pack import Fp16PackBackend, Fp16PackKernel
from loaders.model.packed_linear import PackedLinear

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from loaders.memory.release import MappedFiles


def settle_on_cpu(model: PreTrainedModel, mapped: MappedFiles) -> None:
    """Widen a loaded CPU model to float32, keeping large tables compact where that is exact.

    Raises TensorError for what is no number, where it is read: an embedding's rows are only read
    when they are asked for.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Embedding):
            module.register_forward_hook(_widen)
        elif isinstance(module, nn.Linear):
            check_own_weights(name, module)
            _settle_linear(model, name, module)
            mapped.release([module.weight.data])
        elif not isinstance(module, PackedLinear):
            check_own_weights(name, module)
            _widen_own_tensors(module)


def settle_on_cuda(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Bring every float parameter outside packed layers to one dtype, and sums to float32.

    Raises TensorError for what is no number.
    """
    _sum_in_float32()
    for name, module in model.named_modules():
        if isinstance(module, PackedLinear):
            continue
        check_own_weights(name, module)
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)


def _sum_in_float32() -> None:
    """Have cuBLAS add up the parts of a split product in float32, in the whole process.

    By default it may do so in the product's own dtype: a rounding for each part, and in float16 an
    overflow where the sum itself has none. Which shapes are split, a card and a version decide, so
    nothing else here could be held to a bound.
    """
    products = torch.backends.cuda.matmul
    products.allow_fp16_reduced_precision_reduction = False
    products.allow_bf16_reduced_precision_reduction = False


def _widen(module: nn.Module, inputs: object, rows: Tensor) -> Tensor:  # noqa: ARG001
    return rows.float()


def _widen_own_tensors(module: nn.Module) -> None:
    for parameter in module.parameters(recurse=False):
        if parameter.is_floating_point():
            parameter.data = parameter.data.float()


def _settle_linear(model: PreTrainedModel, name: str, linear: nn.Linear) -> None:
    """Pack a dense layer as halves where that loses nothing, else widen it."""
    weight = linear.weight.data
    if not _is_exact_in_half(weight):
        _widen_own_tensors(linear)
        return
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, packed_fp16(linear))


def packed_fp16(linear: nn.Linear) -> PackedLinear:
    """Return a dense layer of the CPU, packed as halves."""
    bias = None if linear.bias is None else linear.bias.data.float()
    kernel = Fp16PackKernel.from_weight(linear.weight.data)
    return PackedLinear.from_kernel(
        kernel,
        linear.in_features,
        linear.out_features,
        bias=bias,
        backend=Fp16PackBackend.name,
    )


def _is_exact_in_half(weight: Tensor) -> bool:
    if weight.dtype == torch.float16:
        return True
    if weight.dtype == torch.bfloat16:
        return bool((weight.half().to(torch.bfloat16) == weight).all())
    return False
