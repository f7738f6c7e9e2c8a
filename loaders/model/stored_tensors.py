"""Reads single tensors of an opened checkpoint by name, whatever its files are."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from safetensors import safe_open

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from loaders.checkpoint.files import TensorInfo
    from loaders.model.opened import OpenedCheckpoint


def tensor_reader(opened: OpenedCheckpoint) -> Callable[[str], Tensor | None]:
    """Return what reads one tensor by name, None where there is none."""
    return opened.read_weight or partial(_read, opened.tensors)


def _read(tensors: Mapping[str, TensorInfo], name: str) -> Tensor | None:
    info = tensors.get(name)
    if info is None:
        return None
    with safe_open(info.shard, framework="pt") as file:
        tensor: Tensor = file.get_tensor(name)
    return tensor
