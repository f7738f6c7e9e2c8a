"""Reads all tensors of a set of shards that Transformers does not find by itself.

It follows an index with metadata, or opens one file; some who cut a checkpoint into shards wrote no
index, or one without metadata.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from safetensors import safe_open

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from loaders.checkpoint.files import TensorInfo


def read_tensors(tensors: Mapping[str, TensorInfo]) -> dict[str, Tensor]:
    """Read tensors, each file opened once; they are views of the mapped files."""
    found: dict[str, Tensor] = {}
    for shard in sorted({info.shard for info in tensors.values()}):
        with safe_open(shard, framework="pt") as file:
            found |= {n: file.get_tensor(n) for n, info in tensors.items() if info.shard == shard}
    return found
