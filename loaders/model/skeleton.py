"""Compares a model that has shapes and no memory yet with the tensors that are to fill it.

What a configuration claims is then known in full, whatever the architecture calls it; what does not
fit is refused while it costs nothing.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import torch
from transformers.initialization import no_init_weights

from loaders.errors import TensorError
from loaders.model.packed_linear import packed_layers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor, nn
    from transformers import PreTrainedConfig

    from loaders.checkpoint.files import TensorInfo

# Tables that a model computes itself and the checkpoint lacks: masks and angles, some megabytes.
_MAX_OWN_BYTES = 1 << 30
# Tensors under other names than the model's are renamed while they are read; what the model has
# beyond so many times their bytes was claimed and is not there. Layers that another library will
# unpack are lacking, too: of 1 byte, it makes 4 weights of 2 bits.
_SLACK, _SLACK_OF_STOCK = 2, 6


def check_unpacked(
    model_class: Any, config: PreTrainedConfig, tensors: Mapping[str, TensorInfo], *, is_stock: bool
) -> None:
    """Do the same for a model in which nothing is packed here; makes its skeleton first."""
    with torch.device("meta"), no_init_weights():
        model = model_class(copy.deepcopy(config))
    check_skeleton(model, tensors, is_stock=is_stock)


def check_skeleton(
    model: nn.Module, tensors: Mapping[str, TensorInfo], *, is_stock: bool = False
) -> None:
    """Raise TensorError where a model would not be filled by the tensors, or needs far more.

    model: on the meta device, with its packed layers in place. tensors: all, from the headers.
    is_stock: the packed layers are not in place, as another library makes them.
    """
    lacking = {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if not _is_filled(name, parameter, tensors)
    }
    held = sum(tensor.num_bytes for tensor in tensors.values())
    slack = _SLACK_OF_STOCK if is_stock else _SLACK
    if sum(lacking.values()) > slack * held + _MAX_OWN_BYTES // 16:
        largest = max(lacking, key=lambda name: lacking[name])
        raise TensorError(
            f"config.json describes {sum(lacking.values())} weights that the checkpoint lacks"
            f" ({largest} alone {lacking[largest]}), and all its tensors have {held} bytes; the two"
            " are from different models"
        )
    own = sum(buffer.numel() * buffer.element_size() for buffer in _own_tables(model, tensors))
    if own > _MAX_OWN_BYTES:
        raise TensorError(
            f"config.json describes tables of {own} bytes beside the weights; at most"
            f" {_MAX_OWN_BYTES} are made"
        )


def _is_filled(name: str, parameter: Tensor, tensors: Mapping[str, TensorInfo]) -> bool:
    found = tensors.get(name)
    # Some are turned over while they are read, none becomes more or less.
    if found is not None and math.prod(found.shape) != parameter.numel():
        raise TensorError(
            f"{name} is {list(found.shape)}, expected {list(parameter.shape)} by config.json"
        )
    return found is not None


def _own_tables(model: nn.Module, tensors: Mapping[str, TensorInfo]) -> Iterator[Tensor]:
    """Give the buffers that neither the checkpoint nor a packed layer fills."""
    packed = packed_layers(model)
    for name, buffer in model.named_buffers():
        if name not in tensors and name.rpartition(".")[0] not in packed:
            yield buffer
