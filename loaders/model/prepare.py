"""Turns every packed layer's tensors into a kernel, and tells which backends are in use.

Which backend a layer gets is decided in `loaders.model.kernels.resolve`.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import structlog

from loaders.errors import CheckpointError
from loaders.memory.release import return_freed_memory
from loaders.model.kernels.protocol import LayerShape
from loaders.model.kernels.resolve import resolve_backend
from loaders.model.leftovers import log_left_over
from loaders.model.packed_linear import packed_layers

if TYPE_CHECKING:
    from collections.abc import Callable, Set
    from typing import TypeAlias

    from transformers import PreTrainedModel

    from loaders.memory.release import MappedFiles
    from loaders.model.packed_linear import PackedLinear

    # Is told each phase of loading, and how much of it is done, in percent, where that is known;
    # not always in the thread that loads, but then while that one waits.
    OnProgress: TypeAlias = Callable[[str, float | None], None]

log = structlog.get_logger(__name__)

# Freed memory goes back this often while layers are prepared; each time takes milliseconds.
_LAYERS_PER_TRIM = 32


def prepare_layers(
    model: PreTrainedModel,
    mapped: MappedFiles,
    *,
    asked: str,
    excluded: frozenset[str],
    offloaded: Set[str],
    on_progress: OnProgress,
) -> list[str]:
    """Prepare every packed layer's kernel; return the backends used, most layers first.

    asked: a backend's name, or "auto", which it is for offloaded layers in any case. excluded:
    backends that failed before.
    """
    counts: Counter[str] = Counter()
    reasons: dict[str, str] = {}
    zero_biases: list[str] = []
    waiting = [layer for layer in packed_layers(model).values() if layer.kernel is None]
    for number, layer in enumerate(waiting):
        wanted = "auto" if layer.name in offloaded else asked
        chosen, reason = resolve_backend(wanted, _shape_of(layer), excluded)
        had_bias = layer.bias is not None
        layer.prepare(chosen, mapped)
        if had_bias and layer.bias is None:
            zero_biases.append(f"{layer.name}.bias")
        if number % _LAYERS_PER_TRIM == 0:
            return_freed_memory()
            on_progress("preparing kernels", 100 * number / len(waiting))
        counts[chosen.name] += 1
        reasons.setdefault(chosen.name, reason)
    for name, count in counts.items():
        log.info("kernel_backend", backend=name, layers=count, reason=reasons[name])
    if zero_biases:
        log_left_over("all-zero biases", zero_biases)
    return [name for name, _ in counts.most_common()]


def _shape_of(layer: PackedLinear) -> LayerShape:
    if layer.format is None or layer.device is None:
        raise CheckpointError(f"layer {layer.name} holds no packed tensors")
    return LayerShape(layer.format, layer.in_features, layer.out_features, layer.device)
