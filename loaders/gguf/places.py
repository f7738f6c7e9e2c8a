"""Where each tensor of a GGUF file belongs: in the model, or nowhere for a reason that is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from loaders.errors import CheckpointError, TensorError
from loaders.gguf.architectures import EMBEDDING, HEAD, HEAD_NAME, model_name
from loaders.gguf.header import FLOAT_TYPES
from loaders.gguf.left_over import kind_of_left_over, refusal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loaders.gguf.architectures import Architecture
    from loaders.gguf.header import GgufTensor
    from loaders.gguf.metadata import Settings


@dataclass(frozen=True, slots=True)
class Places:
    """All tensors of a file, each once."""

    names: Mapping[str, str]  # the model's name of a parameter → GGUF's of its tensor
    left_over: Mapping[str, str]  # GGUF's name of a tensor that the model does without → why


def place_tensors(
    architecture: Architecture,
    settings: Settings,
    tensors: Mapping[str, GgufTensor],
    num_layers: int,
) -> Places:
    """Place every tensor by its name. Raises CheckpointError for one that belongs nowhere."""
    further = settings.get("nextn_predict_layers")
    num_further = further if type(further) is int else 0
    kinds = {name: kind_of_left_over(name, num_layers, num_further) for name in tensors}
    left_over = {name: kind for name, kind in kinds.items() if kind is not None}
    placed = {name: model_name(architecture, name) for name in tensors if name not in left_over}
    if strangers := [name for name, place in placed.items() if place is None]:
        raise refusal(strangers, architecture.model_type)
    names: dict[str, str] = {}
    for stored, name in placed.items():
        if name is None:
            continue
        if name in names:
            raise CheckpointError(f"{stored} and {names[name]} are the same tensor of the model")
        _check_type(tensors[stored])
        names[name] = stored
    if HEAD not in tensors and EMBEDDING in tensors:
        names[HEAD_NAME] = EMBEDDING
    return Places(names, left_over)


def _check_type(tensor: GgufTensor) -> None:
    if len(tensor.shape) == 1 and tensor.dtype not in FLOAT_TYPES:
        raise TensorError(
            f"{tensor.name} is stored as {tensor.dtype}, expected {' or '.join(FLOAT_TYPES)}"
        )
