"""The layers' part of the self-test, made to go on after somebody has taken the model over.

Whoever multiplies by the layers now, fused or not, is asked for products of random inputs; they are
compared with the checkpoint's files, one part of one layer at a time. Nothing of the model itself
is kept for it.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from loaders.errors import CheckpointError
from loaders.memory.release import MappedFiles
from loaders.model.packed_linear import packed_layers
from loaders.model.self_test.layers import Bounds, Expected, compare_products
from loaders.reports.self_test import Check

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedModel

    from loaders.model.packed_linear import PackedLinear
    from loaders.model.self_test.reference_weights import StoredWeights

    # Multiplies rows [rows, in] by a layer's weight as it is used now: [rows, out].
    Multiply: TypeAlias = Callable[[Tensor], Tensor]

# Kernels take few rows another way than many; rounds take turns.
MANY_ROWS = 64
FEW_ROWS = (1, 2, 4)
_FEW = ((0, 1), (1, 2), (3, 4))  # where each begins, and how many
# What of a row's mean is taken off its inputs: kernels that add a multiple of the row's sum to
# rounded products (`int8pack`) lose precision with that sum alone. Whole, it had a right layer of
# the demo reach 1.02 of what is allowed once in 20 times.
MEAN_SHARE = 0.75
# A layer fails when it does so again with other inputs, of many rows each time.
CONFIRMATIONS = 2
# Products of many rows by a large head would hold a request up: 28 M weights by 4 rows take 2 ms,
# by 64 rows 60 (two cores, 2026-11).
MAX_MULTIPLICATIONS = 2**27
# A part holds no more weights than this where it can be cut: 8 MB in float32, read in 4 ms.
MAX_PART_WEIGHTS = 2**21


@dataclass(frozen=True, slots=True)
class LayerPart:
    """Some outputs of one layer."""

    name: str  # the layer's
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class _Layer:
    """What must be known of a layer once its module is gone."""

    in_features: int
    out_features: int
    backend: str
    unit_roundoff: float
    bias: Tensor | None  # [out] float32, on the CPU

    @classmethod
    def of(cls, layer: PackedLinear) -> _Layer:
        bias = None if layer.bias is None else layer.bias.detach().float().cpu().clone()
        return cls(layer.in_features, layer.out_features, layer.backend, layer.unit_roundoff, bias)


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
        self._layers = {name: _Layer.of(layer) for name, layer in packed_layers(model).items()}
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
        if self._weights.has_rows(name):
            size = max(1, MAX_PART_WEIGHTS // layer.in_features)
        return [
            LayerPart(name, start, min(start + size, layer.out_features))
            for start in range(0, layer.out_features, size)
        ]

    @torch.inference_mode()
    def check(self, part: LayerPart, multiply: Multiply, *, with_many_rows: bool) -> Check:
        """Compare products with the files.

        multiply: gives all of the layer's outputs. with_many_rows: many rows at once, else few.
        Raises CheckpointError where the files are not those that were loaded any more.
        """
        self._require_unchanged()
        with _one_thread(part, self._layers[part.name]):
            check = self._check(part, multiply, with_many_rows=with_many_rows)
            for _ in range(CONFIRMATIONS):
                if check.passed is False:
                    check = self._check(
                        part, multiply, with_many_rows=with_many_rows, num_rows=MANY_ROWS
                    )
            return check

    def _check(
        self,
        part: LayerPart,
        multiply: Multiply,
        *,
        with_many_rows: bool,
        num_rows: int | None = None,
    ) -> Check:
        """num_rows: to compare; None for as many as the layer's size allows in passing."""
        layer, stored = self._layers[part.name], self._weights.find(part.name)
        if stored is None:
            return Check(part.name, None, "the files hold no weight of this name")
        whole = (part.start, part.stop) == (0, layer.out_features)
        weight = (stored if whole else stored.outputs(part.start, part.stop)).dequantize()
        self._mapped.release(stored.tensors)
        x = self._inputs(layer, num_rows or _num_rows(layer, with_many_rows=with_many_rows))
        bias = None if layer.bias is None else layer.bias[part.start : part.stop]
        expected = Expected.of(x.float().cpu(), weight.cpu(), bias)
        products = (
            (how, product[:, part.start : part.stop])
            for how, product in _products(multiply, x, with_many_rows=with_many_rows)
        )
        bounds = Bounds.of(layer.unit_roundoff, x.dtype)
        return compare_products(part.name, layer.backend, products, expected, bounds)

    def _require_unchanged(self) -> None:
        for stamp in self._stamps:
            try:
                is_same = _FileStamp.of(stamp.path) == stamp
            except OSError:
                raise CheckpointError(f"{stamp.path.name} is gone since it was loaded") from None
            if not is_same:
                raise CheckpointError(f"{stamp.path.name} has changed since it was loaded")

    def _inputs(self, layer: _Layer, num_rows: int) -> Tensor:
        """Draw rows of inputs; random ones, so that every group of every weight counts."""
        x = torch.randn(num_rows, layer.in_features, generator=self._generator)
        x -= MEAN_SHARE * x.mean(dim=1, keepdim=True)
        return x.to(self._device, self._dtype)


def _num_rows(layer: _Layer, *, with_many_rows: bool) -> int:
    """How many rows to multiply in passing."""
    most = MAX_MULTIPLICATIONS // (layer.in_features * layer.out_features)
    return min(MANY_ROWS if with_many_rows else sum(FEW_ROWS), max(FEW_ROWS[-1], most))


@contextmanager
def _one_thread(part: LayerPart, layer: _Layer) -> Iterator[None]:
    """Have a small part computed by this thread alone.

    Two are hardly quicker there, cost twice as much of an idle machine, and wait for each other
    on a busy one: 10 ms of the demo's became 190 with ten processes on two cores (2026-11).
    """
    num_threads = torch.get_num_threads()
    is_small = (part.stop - part.start) * layer.in_features <= MAX_PART_WEIGHTS
    torch.set_num_threads(1 if is_small else num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def _products(
    multiply: Multiply, x: Tensor, *, with_many_rows: bool
) -> Iterator[tuple[str, Tensor]]:
    if with_many_rows:
        yield f"{len(x)} rows at once", multiply(x)
        return
    pieces: list[Tensor] = []
    for rows in torch.split(x, sum(FEW_ROWS)):
        pieces += [rows[first : first + size] for first, size in _FEW if first < len(rows)]
    yield "few rows at once", torch.cat([multiply(rows) for rows in pieces])
