"""Decides which kernel backend runs a layer, and says why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loaders.errors import BackendError
from loaders.model.kernels.fp16pack import Fp16PackBackend
from loaders.model.kernels.int4pack import Int4PackBackend
from loaders.model.kernels.int4planes import Int4PlanesBackend
from loaders.model.kernels.int8pack import Int8PackBackend
from loaders.model.kernels.reference import ReferenceBackend

if TYPE_CHECKING:
    from loaders.model.kernels.protocol import Backend, LayerShape

# Fastest first, measured on CPU (docs/decisions.md); the reference runs wherever no other does.
#
# GGUF's types: Q4_0, Q4_1 and Q4_K go to int4pack; Q5_0, Q5_1, Q5_K and Q8_0 to int4planes; those
# with groups of 16, Q2_K, Q3_K and Q6_K, to fp16pack. One core, µs for a 4096x4096 weight (eight
# of them in turn, so that none stays in the cache) at 1 row, and at 64 rows without tiles, 2026-11:
# int4pack g32 950 and 28 000, int4planes g32 1 870 and 51 000, fp16pack 1 630 and 27 000; for
# 1536x512, 108, 172 and 107 at 1 row. int4planes costs 15 % more than fp16pack at one row and
# takes 10 bits a weight, not 16. Groups of 16 on the int4 kernel, every second half of a block
# meeting zeros, would take 1 900 and 60 000 for 10 bits a weight (20 for Q6_K, at 4 900).
BACKENDS: tuple[Backend, ...] = (
    Int4PackBackend(),
    Int8PackBackend(),
    Int4PlanesBackend(),
    Fp16PackBackend(),
    ReferenceBackend(),
)


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
