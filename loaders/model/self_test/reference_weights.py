"""Weights as a checkpoint's files hold them, read again after the tensors were let go.

The self-test needs a dozen of them, one at a time, and the live check all, again and again: reading
each anew takes less memory than keeping any. Other formats bring a callable of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open

from loaders.errors import CheckpointError
from loaders.model.packed_linear import packed_layers
from loaders.quantization.layouts import layout_of
from loaders.quantization.output_cuts import output_cuts
from loaders.quantization.packed_tensors import PackedTensors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedModel

    from loaders.checkpoint.files import TensorInfo
    from loaders.model.opened import OpenedCheckpoint
    from loaders.quantization.output_cuts import Cut
    from loaders.quantization.packed_format import PackedFormat

    # By a linear layer's name: its weight [out, in] float32 in the checkpoint's input order, or
    # None where the files have none by that name.
    ReferenceWeight: TypeAlias = Callable[[str], Tensor | None]

_OF_THE_WHOLE = {"weight_shape"}  # tensors that only speak of a whole layer


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """A linear layer's weight as its files hold it; tensors may be views of the mapped files."""

    weight: PackedTensors | Tensor  # [out, in] where it is not packed

    @property
    def tensors(self) -> Iterable[Tensor]:
        """The checkpoint's own tensors."""
        return (
            self.weight.stored.values() if isinstance(self.weight, PackedTensors) else [self.weight]
        )

    def dequantize(self) -> Tensor:
        """Return the weight, [out, in] float32; never a view of a mapped file."""
        if isinstance(self.weight, PackedTensors):
            return self.weight.dequantize()
        return self.weight.to(torch.float32, copy=True)


class StoredWeights:
    """Reads the weights of a model's linear layers; keeps none of the model's own."""

    def __init__(self, opened: OpenedCheckpoint, model: PreTrainedModel) -> None:
        self._sizes = {
            name: (layer.in_features, layer.out_features)
            for name, layer in packed_layers(model).items()
        }
        self._opened = opened
        self._tied = _tied_head(model)

    def __call__(self, name: str) -> Tensor | None:
        """Read a whole layer; a `ReferenceWeight`."""
        layer = self.find(name)
        return None if layer is None else layer.dequantize()

    def find(self, name: str) -> StoredLayer | None:
        """Find what is stored for a layer; None where the files hold nothing by its name."""
        return self.find_part(name, 0, self._sizes[name][1]) if name in self._sizes else None

    def find_part(self, name: str, start: int, stop: int) -> StoredLayer | None:
        """Find what is stored for some outputs; not all of them only where it `can_be_cut`."""
        if (packed := self._packed_parts(name)) is not None:
            return StoredLayer(self._find_packed(name, *packed, start, stop))
        if (dense := self._dense_name(name)) is not None:
            return StoredLayer(
                *self._read({"weight": dense}, {"weight": slice(start, stop)}).values()
            )
        return None

    def _find_packed(
        self, name: str, packed: PackedFormat, keys: set[str], start: int, stop: int
    ) -> PackedTensors:
        in_features, out_features = self._sizes[name]
        cuts: dict[str, Cut] = {}
        if (start, stop) != (0, out_features):
            keys = keys - _OF_THE_WHOLE
            cuts = output_cuts(layout_of(packed), in_features, out_features, start, stop)
        stored = self._read({key: f"{name}.{key}" for key in keys}, cuts)
        return PackedTensors(name, packed, in_features, stop - start, stored)

    def is_stored(self, name: str) -> bool:
        """Whether `find` would find a layer; reads nothing."""
        return self._packed_parts(name) is not None or self._dense_name(name) is not None

    def can_be_cut(self, name: str) -> bool:
        """Whether some outputs can be read without the others."""
        packed = self._packed_parts(name)
        if packed is None:
            return True
        # GEMV's count their groups by the scales of all outputs; `rows` has outputs out of order.
        return packed[0].checkpoint_format not in ("gemv", "gemv_fast") and "rows" not in packed[1]

    def _packed_parts(self, name: str) -> tuple[PackedFormat, set[str]] | None:
        """Return a packed layer's format, and its tensors' names without the layer's."""
        quantization = self._opened.quantization
        packed = None if quantization is None else quantization.format_of(name)
        if packed is None or name not in self._sizes:
            return None
        rules = layout_of(packed).rules(*self._sizes[name])
        keys = {key for key in rules if f"{name}.{key}" in self._opened.tensors}
        return (packed, keys) if keys else None

    def _dense_name(self, name: str) -> str | None:
        """Name the plain tensor that holds a layer's weight."""
        # Which one counts where a tied head is stored beside the embedding is Transformers' to say.
        names = {f"{source}.weight" for source in (name, self._tied.get(name, name))}
        found = names & self._opened.tensors.keys()
        return found.pop() if len(found) == 1 else None

    def _read(self, names: Mapping[str, str], cuts: Mapping[str, Cut]) -> dict[str, Tensor]:
        """Read tensors by name, for the keys they shall have; cuts: what of them, by key."""
        if (read_weight := self._opened.read_weight) is not None:
            found = {key: read_weight(name) for key, name in names.items()}
            return {
                key: tensor[cuts.get(key, ...)]
                for key, tensor in found.items()
                if tensor is not None
            }
        wanted = {name: cuts.get(key, ...) for key, name in names.items()}
        found_by_name = _read_safetensors(self._opened.tensors, wanted)
        return {key: found_by_name[name] for key, name in names.items()}


def _tied_head(model: Any) -> dict[str, str]:
    """Map the head's name to the embedding's, where the model says that their weight is one."""
    if not getattr(model.config.get_text_config(decoder=True), "tie_word_embeddings", False):
        return {}
    names = {id(module): name for name, module in model.named_modules()}
    head, embedding = (
        names.get(id(module))
        for module in (model.get_output_embeddings(), model.get_input_embeddings())
    )
    return {head: embedding} if head and embedding else {}


def _read_safetensors(
    tensors: Mapping[str, TensorInfo], wanted: Mapping[str, Cut]
) -> dict[str, Tensor]:
    by_shard: dict[Path, list[str]] = {}
    for name in wanted:
        if (info := tensors.get(name)) is not None:
            by_shard.setdefault(info.shard, []).append(name)
    found: dict[str, Tensor] = {}
    for shard, held in by_shard.items():
        # Opened once for all of a layer's: reading the header takes 1 ms (272 tensors).
        try:
            with safe_open(shard, framework="pt") as file:
                found |= {name: _read_tensor(file, name, wanted[name]) for name in held}
        except (OSError, SafetensorError) as error:  # read before, so it has changed meanwhile
            raise CheckpointError(
                f"{shard.name} cannot be read any more ({type(error).__name__}); leave a model's"
                " files as they are while it is loaded and served"
            ) from error
    return found


def _read_tensor(file: Any, name: str, cut: Cut) -> Tensor:
    tensor: Tensor = file.get_tensor(name) if cut is ... else file.get_slice(name)[cut]
    return tensor
