"""Decides which kernel backend runs a layer, and says why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loaders.errors import BackendError
from loaders.model.kernels.fp16pack import Fp16PackBackend
from loaders.model.kernels.int4pack import Int4PackBackend
from loaders.model.kernels.int4planes import Int4PlanesBackend
from loaders.model.kernels.int8pack import Int8PackBackend
from loaders.model.kernels.reference import ReferenceBackend
from loaders.model.kernels.triton_linear import TritonBackend
from loaders.quantization.kernel_rules import FASTEST_FIRST

if TYPE_CHECKING:
    from loaders.model.kernels.protocol import Backend, LayerShape

_AVAILABLE: tuple[Backend, ...] = (
    Int4PackBackend(),
    Int8PackBackend(),
    Int4PlanesBackend(),
    Fp16PackBackend(),
    TritonBackend(),
    ReferenceBackend(),
)
BACKENDS = tuple(sorted(_AVAILABLE, key=lambda backend: FASTEST_FIRST.index(backend.name)))


def backend_names() -> list[str]:
    """List what can be asked for by name, beside "auto"; "stock" is `loaders.model.stock`'s."""
    return [*(backend.name for backend in BACKENDS), "stock"]


def resolve_backend(
    asked: str, shape: LayerShape, excluded: frozenset[str] = frozenset()
) -> tuple[Backend, str]:
    """Return the backend for such a layer, and the reason in words.

    asked: "auto", or a backend's name. excluded: names of those that failed before. Raises
    BackendError where the named one refuses the layer, or none is left.
    """
    if asked == "auto":
        return _first_willing(shape, excluded)
    for backend in BACKENDS:
        if backend.name == asked:
            if asked in excluded:
                raise BackendError(
                    f"backend {asked} was asked for and has failed here; use --backend auto"
                )
            if (refusal := backend.refusal(shape)) is not None:
                raise BackendError(f"backend {asked} {refusal}; use --backend auto")
            return backend, "asked for"
    raise BackendError(
        f"there is no backend {asked!r}; choose auto or {', '.join(backend_names())}"
    )


def _first_willing(shape: LayerShape, excluded: frozenset[str]) -> tuple[Backend, str]:
    refusals: list[str] = []
    for backend in BACKENDS:
        refusal = "has failed here" if backend.name in excluded else backend.refusal(shape)
        if refusal is None:
            return backend, "; ".join(refusals) or "fastest for this layer"
        refusals.append(f"{backend.name} {refusal}")
    raise BackendError(f"no backend runs this layer: {'; '.join(refusals)}")
