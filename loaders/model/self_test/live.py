"""The layers' part of the self-test, made to go on after somebody has taken the model over.

Whoever multiplies by the layers now, fused or not, is asked for products of random inputs; they are
compared with the checkpoint's files, one part of one layer at a time. Nothing of the model itself
is kept for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from loaders.errors import CheckpointError
from loaders.memory.release import MappedFiles
from loaders.model.packed_linear import packed_layers
from loaders.model.self_test import read_part
from loaders.model.self_test.read_part import LayerFacts, LayerPart, ReadPart, one_thread
from loaders.quantization.output_cuts import OUTPUTS_OF_WHOLE_WORDS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedModel

    from loaders.model.self_test.reference_weights import StoredWeights

# What of a row's mean is taken off its inputs: kernels that add a multiple of the row's sum to
# rounded products (`int8pack`) lose precision with that sum alone. Whole, it had a right layer of
# the demo reach 1.02 of what is allowed once in 20 times.
MEAN_SHARE = 0.75


@dataclass(frozen=True, slots=True)
class _FileStamp:
    """What changes where a file is written or replaced."""

    path: Path
    size: int
    modified_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> _FileStamp:
        found = path.stat()
        return cls(path, found.st_size, found.st_mtime_ns, found.st_ino)


class LiveLayers:
    """A loaded model's packed layers, and what their files say that they compute."""

    def __init__(
        self, files: Sequence[Path], model: PreTrainedModel, weights: StoredWeights
    ) -> None:
        """Note what must be known of the layers; make it before anything replaces them."""
        self._weights = weights
        self._stamps = [_FileStamp.of(path) for path in files]
        self._mapped = MappedFiles.find(files)  # those that stay mapped: GGUF's
        self._layers = {name: LayerFacts.of(layer) for name, layer in packed_layers(model).items()}
        self._device = model.device
        on_cpu = self._device.type == "cpu"
        # What the engine's own layers multiply: `loaders.model.dtypes`.
        embedding: Any = model.get_input_embeddings()
        self._dtype: torch.dtype = torch.float32 if on_cpu else embedding.weight.dtype
        self._generator = torch.Generator().manual_seed(0)

    def parts(self, name: str) -> list[LayerPart]:
        """Return the parts that a layer is checked in; none where the files say nothing of it."""
        layer = self._layers.get(name)
        if layer is None or not self._weights.is_stored(name):
            return []
        size = layer.out_features
        if self._weights.can_be_cut(name):
            most = read_part.MAX_PART_WEIGHTS // layer.in_features // OUTPUTS_OF_WHOLE_WORDS
            size = max(1, most) * OUTPUTS_OF_WHOLE_WORDS
        return [
            LayerPart(name, start, min(start + size, layer.out_features))
            for start in range(0, layer.out_features, size)
        ]

    @torch.inference_mode()
    def read(self, part: LayerPart, *, with_many_rows: bool) -> ReadPart:
        """Read a part from the files, in any thread, one at a time.

        with_many_rows: compare many rows at once, else few. Raises CheckpointError where the files
        are not those that were loaded any more.
        """
        self._require_unchanged()
        with one_thread():
            stored = self._weights.find_part(part.name, part.start, part.stop)
            if stored is None:
                raise CheckpointError(f"the files hold no weight of {part.name} any more")
            weight = stored.dequantize().cpu()
            self._mapped.release(stored.tensors)
            self._require_unchanged()
            layer = self._layers[part.name]

            def draw(num_rows: int) -> Tensor:
                return self._draw(num_rows, layer.in_features)

            return ReadPart(part, layer, weight, draw, with_many_rows=with_many_rows)

    def _require_unchanged(self) -> None:
        for stamp in self._stamps:
            try:
                is_same = _FileStamp.of(stamp.path) == stamp
            except OSError:
                raise CheckpointError(f"{stamp.path.name} is gone since it was loaded") from None
            if not is_same:
                raise CheckpointError(f"{stamp.path.name} has changed since it was loaded")

    def _draw(self, num_rows: int, in_features: int) -> Tensor:
        """Draw rows of inputs; random ones, so that every group of every weight counts."""
        x = torch.randn(num_rows, in_features, generator=self._generator)
        x -= MEAN_SHARE * x.mean(dim=1, keepdim=True)
        return x.to(self._device, self._dtype)
