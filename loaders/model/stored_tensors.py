"""Reads tensors out of a checkpoint's safetensors files, by what their headers say.

For what Transformers does not read itself: a single tensor to compare with, and all of a set of
shards that has no index to lead it there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from safetensors import safe_open

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from loaders.checkpoint.files import TensorInfo


def read_tensor(tensors: Mapping[str, TensorInfo], name: str) -> Tensor | None:
    """Read one tensor, as it is stored; None where there is none by that name."""
    info = tensors.get(name)
    if info is None:
        return None
    with safe_open(info.shard, framework="pt") as file:
        tensor: Tensor = file.get_tensor(name)
    return tensor


def read_tensors(tensors: Mapping[str, TensorInfo]) -> dict[str, Tensor]:
    """Read all tensors, each file opened once; they are views of the mapped files."""
    found: dict[str, Tensor] = {}
    for shard in sorted({info.shard for info in tensors.values()}):
        with safe_open(shard, framework="pt") as file:
            found |= {n: file.get_tensor(n) for n, info in tensors.items() if info.shard == shard}
    return found
