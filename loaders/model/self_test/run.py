"""Runs the self-test of a loaded model: which checks there are, in which order.

What to do about one that failed is decided by whoever loads.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import structlog
import torch

from loaders.errors import SelfTestError
from loaders.memory.free import is_refused_allocation
from loaders.model.self_test.layers import SeenInputs, check_layer, choose_layers
from loaders.model.self_test.tokens import (
    answer,
    check_known_tokens,
    check_logits,
    check_repetition,
    prompt_for,
    tokens_key,
)
from loaders.reports.self_test import Check, SelfTestReport

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from loaders.model.self_test.reference_weights import ReferenceWeight
    from loaders.model.self_test.tokens import GreedyContinuation
    from loaders.records import Records

log = structlog.get_logger(__name__)


@torch.inference_mode()
def run_self_test(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    reference_weight: ReferenceWeight,
    *,
    backend: str,
    dtype: str,
    commit: str | None,
    records: Records,
) -> SelfTestReport:
    """Check a model whose kernels are prepared, before the engine takes it over.

    backend: those in use, joined by "+". dtype: of activations. Raises SelfTestError with the
    report.
    """
    started = time.monotonic()
    prompt_ids = prompt_for(tokenizer, model)
    try:
        found, checks = _look(model, prompt_ids, reference_weight)
    except RuntimeError as error:
        if is_refused_allocation(error):  # which is no kernel's fault
            raise
        found, checks = None, [Check("run", passed=False, detail=f"a step failed: {error}")]
    if found is not None and _passed(checks):  # so that nothing wrong is kept for the next time
        key = tokens_key(prompt_ids, backend, dtype, model.device)
        checks.append(check_known_tokens(found, records, commit, key))
    report = SelfTestReport(
        passed=_passed(checks),
        checks=tuple(checks),
        backend=backend,
        seconds=round(time.monotonic() - started, 3),
        finished=int(time.time()),
    )
    _log(report)
    if not report.passed:
        raise SelfTestError(report)
    return report


def _passed(checks: Iterable[Check]) -> bool:
    return all(check.passed is not False for check in checks)


def _look(
    model: PreTrainedModel, prompt_ids: Sequence[int], reference_weight: ReferenceWeight
) -> tuple[GreedyContinuation, list[Check]]:
    """Run the model; compare layers, then look at what it said."""
    layers = choose_layers(model)
    with SeenInputs(layers) as inputs:
        found, logits = answer(model, prompt_ids)
    checks = [
        check_layer(name, layer, inputs.rows.pop(name, None), reference_weight)
        for name, layer in layers.items()
    ]
    if not layers:
        checks.append(Check("layers", None, "none of the model's blocks holds packed layers"))
    checks.append(check_logits(logits))
    if checks[-1].passed:
        checks.append(check_repetition(model, prompt_ids, found, reference_weight))
    return found, checks


def _log(report: SelfTestReport) -> None:
    worst = max((check.worst for check in report.checks if check.worst is not None), default=None)
    log.info(
        "self_test",
        passed=report.passed,
        backend=report.backend,
        checks=len(report.checks),
        worst=None if worst is None else round(worst, 3),
        seconds=report.seconds,
    )
    for check in report.failures:
        log.error("self_test_failed", check=check.name, backend=check.backend, found=check.detail)
