"""Leaves a part of a model's weights on the CPU, where a device cannot hold them all.

Weights stay, activations move: a linear layer that was left behind multiplies on the CPU with the
CPU's own kernels, and its result goes back. Only as many layers are left as must be, from the end
of the model. Norms, embedding, head and attention stay on the device, and so the model lies on one
device for whoever runs it; it can be captured in no CUDA graph.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import structlog
import torch
from torch import nn

from loaders.errors import NotEnoughMemoryError
from loaders.model.dtypes import packed_fp16
from loaders.model.packed_linear import PackedLinear

if TYPE_CHECKING:
    from collections.abc import Sequence, Set

    from torch import Tensor
    from transformers import PreTrainedModel

    from loaders.memory.release import MappedFiles

log = structlog.get_logger(__name__)

# Of the memory that is free on the device, what weights may take: the rest is for keys, values,
# activations and workspace.
WEIGHT_SHARE = 0.75
_IN_A_BLOCK = re.compile(r"\.\d+\.")


class OffloadedLinear(nn.Module):
    """A linear layer whose weight lies on the CPU, seen from another device."""

    # The inputs are put into the kernel's order on the CPU.
    input_permutation: Tensor | None = None
    output_permutation: Tensor | None = None

    def __init__(self, linear: PackedLinear | nn.Linear) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        # In a tuple, no submodule: what moves or counts the model's tensors leaves it alone.
        self._held = (linear,)

    @property
    def num_invariant_rows(self) -> int | None:
        """Up to how many rows `matmul` gives each as it would alone, to the last bit; None: any."""
        linear = self._held[0]
        return linear.num_invariant_rows if isinstance(linear, PackedLinear) else 1

    def matmul(self, x: Tensor) -> Tensor:
        """Multiply x [rows, in] on the CPU and add the bias: [rows, out] where x lies."""
        return self.forward(x)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x [..., in]: [..., out] where x lies."""
        linear, here = self._held[0], x.to("cpu")
        if isinstance(linear, nn.Linear):
            here = here.to(linear.weight.dtype)
        out: Tensor = linear(here).to(x.device, x.dtype)
        return out

    def fuse_with(self, others: Sequence[object]) -> OffloadedLinear | None:
        """Return one layer giving this output and the others' side by side, or None."""
        held = [other._held[0] for other in others if isinstance(other, OffloadedLinear)]
        mine = self._held[0]
        if len(held) != len(others) or not isinstance(mine, PackedLinear):
            return None
        fused = mine.fuse_with(held)
        return None if fused is None else OffloadedLinear(fused)


def choose_offloaded(
    model: PreTrainedModel, device: torch.device, *, free: int, cpu_free: int
) -> frozenset[str]:
    """Name the linear layers that must stay on the CPU for the rest to fit; none where all fits.

    free, cpu_free: bytes free on the device and on the CPU. Raises NotEnoughMemoryError, with the
    arithmetic, where even that does not help.
    """
    budget = int(free * WEIGHT_SHARE)
    total = _num_bytes(model)
    missing, moved = total - budget, 0
    chosen = []
    for name, module in reversed(list(model.named_modules())):
        if moved >= missing:
            break
        if isinstance(module, nn.Linear | PackedLinear) and _IN_A_BLOCK.search(name):
            chosen.append(name)
            moved += _num_bytes(module)
    if moved < missing:
        raise NotEnoughMemoryError(
            f"{(total - moved) / 1e9:.2f} GB of the weights cannot lie on the CPU and"
            f" {budget / 1e9:.2f} GB may be used on {device} ({WEIGHT_SHARE:.0%} of"
            f" {free / 1e9:.2f} GB free); choose a smaller variant, or free memory there"
        )
    if moved > cpu_free:
        raise NotEnoughMemoryError(
            f"of {total / 1e9:.2f} GB of weights {moved / 1e9:.2f} GB do not fit on {device}, and"
            f" {cpu_free / 1e9:.2f} GB are free on the CPU; choose a smaller variant, or free"
            " memory"
        )
    log.info(
        "weights_offloaded",
        layers=len(chosen),
        gigabytes=round(moved / 1e9, 2),
        of=round(total / 1e9, 2),
        device=str(device),
    )
    return frozenset(chosen)


def move_others(
    model: PreTrainedModel, device: torch.device, offloaded: Set[str], mapped: MappedFiles
) -> None:
    """Move everything but the named layers to the device, and let go of what was read for it."""
    for name, module in model.named_modules():
        if name in offloaded:
            continue
        for parameter in module.parameters(recurse=False):
            here, parameter.data = parameter.data, parameter.data.to(device)
            mapped.release([here])
        for key, buffer in module.named_buffers(recurse=False):
            setattr(module, key, buffer.to(device))
            mapped.release([buffer])


def wrap_offloaded(model: PreTrainedModel, offloaded: Set[str]) -> None:
    """Put an OffloadedLinear in place of each of the named layers, all prepared.

    Plain halves are packed first; other plain layers multiply as they are.
    """
    for name in offloaded:
        linear = model.get_submodule(name)
        if isinstance(linear, nn.Linear) and linear.weight.dtype == torch.float16:
            linear = packed_fp16(linear)
        if not isinstance(linear, nn.Linear | PackedLinear):
            raise TypeError(f"{name} is a {type(linear).__name__}, no linear layer")
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, OffloadedLinear(linear))


def _num_bytes(module: nn.Module) -> int:
    """Count a module's tensors, those that several parts share once."""
    tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
