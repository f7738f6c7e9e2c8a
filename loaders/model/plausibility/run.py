"""Runs the checks of plausibility: which there are, in which order.

None fails a load. What to do about a suspicion is decided by whoever loads.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import structlog
import torch

from loaders.memory.release import MappedFiles
from loaders.model.plausibility.parts import check_parts, describe_parts
from loaders.model.plausibility.prediction import check_prediction
from loaders.model.plausibility.rope import check_rope
from loaders.model.plausibility.round_trip import check_round_trip
from loaders.model.plausibility.sampling import open_tensors, sample_layers
from loaders.model.plausibility.statistics import describe_layer
from loaders.model.plausibility.weights import check_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from loaders.model.opened import OpenedCheckpoint
    from loaders.reports.suspicion import Suspicion

log = structlog.get_logger(__name__)


@torch.inference_mode()
def find_suspicions(
    opened: OpenedCheckpoint,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    known: Sequence[Suspicion] = (),
) -> tuple[Suspicion, ...]:
    """Return the reasons to doubt a loaded model; each is logged.

    known: those that opening and building it gave, which come first.
    """
    started = time.monotonic()
    checks: Mapping[str, Callable[[], list[Suspicion]]] = {
        "rope": lambda: check_rope(model.config),
        "round_trip": lambda: check_round_trip(tokenizer),
        "weights": lambda: _check_weights(opened, model),
        "prediction": lambda: check_prediction(model, tokenizer),
    }
    found = list(known)
    for name, check in checks.items():
        found += _make(name, check)
    # Rows of an embedding that stays in its file, and all that lie on the same pages.
    MappedFiles.find(opened.files).release(model.parameters())
    log.info("plausibility", suspicions=len(found), seconds=round(time.monotonic() - started, 3))
    for suspicion in found:
        log.warning("suspect", check=suspicion.check, reason=suspicion.reason)
    return tuple(found)


def _make(name: str, check: Callable[[], list[Suspicion]]) -> list[Suspicion]:
    """Make one check; one that cannot be made says nothing."""
    try:
        return check()
    except Exception as error:  # whatever a library raises over a strange model, it still serves
        log.info(
            "check_not_made",
            check=name,
            reason=f"could not be made: {type(error).__name__}: {error}",
        )
        return []


def _check_weights(opened: OpenedCheckpoint, model: PreTrainedModel) -> list[Suspicion]:
    if opened.quantization is None:
        return []
    with open_tensors(opened.tensors) as read:
        samples = sample_layers(opened, model, read)
        found = check_weights([describe_layer(sample) for sample in samples])
        return found + check_parts([describe_parts(sample) for sample in samples])
