"""Refuses weights that are no numbers: one of them is enough to spoil every answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from loaders.errors import TensorError

if TYPE_CHECKING:
    from torch import Tensor, nn


def check_own_weights(name: str, module: nn.Module) -> None:
    """Check a module's own float parameters; raises TensorError, naming the first bad one."""
    for key, parameter in module.named_parameters(recurse=False):
        check_finite(f"{name}.{key}", parameter.data)


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise TensorError where a tensor of floats holds NaN or infinity."""
    if not tensor.is_floating_point() or not tensor.numel():
        return
    # Both ends take a tenth of the time of looking at each number, and no memory: 60 ms for 65
    # million halves, isfinite 1 300 (two cores, 2026-11). NaN shows in either.
    if not bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all()):
        raise TensorError(f"{name} holds NaN or infinity; the file is damaged: download it again")
