"""The test of an engine's steps, joined with what the loaders know: what fails, and what is blamed.

Made for a GPU's way of running steps only; a CPU's own is covered by the self-test.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import structlog
import torch

from engine.core import Engine
from engine.errors import EngineStartError, UnsupportedArchitectureError
from engine.kernels.choice import step_kernels
from engine.step_test.prompt_attention import takes_flash
from engine.step_test.reference_pass import run_reference_pass
from engine.step_test.run import (
    check_kernels,
    check_prompt_attention,
    check_recorded_steps,
    check_whole_step,
)
from engine.step_test.step_sizes import StepSizes
from loaders.model.packed_linear import PackedLinear, packed_layers
from loaders.reports.self_test import Check, SelfTestReport
from service.worker_protocol.load_attempt import FailureKind, StartFailure

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn

    from engine.config import EngineConfig
    from engine.constraint import ConstraintFactory
    from engine.step_test.reference_pass import ReferencePass
    from engine.step_test.step_check import StepCheck
    from loaders.load import LoadedModel
    from service.worker.attempt import Attempt
    from service.worker.gpu_path import GpuPath

log = structlog.get_logger(__name__)

REFERENCE_KERNELS: Literal["torch"] = "torch"


class StepTest:
    """The stages around the making of one engine; `report` is what they found so far."""

    def __init__(
        self, loaded: LoadedModel, config: EngineConfig, path: GpuPath, attempt: Attempt
    ) -> None:
        self._loaded = loaded
        self._config = config
        self._path = path
        self._attempt = attempt
        self._checks: list[Check] = []
        self._seconds = 0.0
        self._reference: ReferencePass | None = None
        self._linear_unit = 0.0
        self._sizes = StepSizes.of(loaded.model, config)
        self._has_flash = path.has_flash and takes_flash(self._sizes)

    def before_engine(self) -> None:
        """Test kernels, and note what the first layers say, while the model is whole."""
        self._test_step_kernels()
        if self._has_flash:
            suspects = suspecting(flash=True)
            with self._attempt.first_run("testing flash attention", suspects):
                self._judge(check_prompt_attention(self._sizes), suspects)
        self._note_reference()

    def _test_step_kernels(self) -> None:
        name = self._path.step_kernels
        if name == REFERENCE_KERNELS:
            return
        suspects = suspecting(step_kernels=(name,))
        with self._attempt.first_run("testing the step kernels", suspects):
            kernels = step_kernels(name, self._sizes.device)
            reference = step_kernels(REFERENCE_KERNELS)
            self._judge(check_kernels(kernels, reference, self._sizes), suspects)

    def _note_reference(self) -> None:
        """Have the first layers say what they will be compared with."""
        model = self._loaded.model
        packed = packed_layers(model).values()
        self._linear_unit = max((layer.unit_roundoff for layer in packed), default=0.0)
        started = time.monotonic()
        try:
            self._reference = run_reference_pass(
                model, dequantize, max_model_len=self._config.max_model_len
            )
        except UnsupportedArchitectureError as error:
            self._checks.append(Check("first tokens of 2 layers", None, str(error)))
        if self._sizes.device.type == "cuda":
            # Each weight was widened once; PyTorch would keep that memory from everybody else.
            torch.cuda.empty_cache()
        self._seconds += time.monotonic() - started

    def build_engine(self, constraints: ConstraintFactory) -> Engine:
        """Build the engine, which records its graphs; constraints: what reads its grammars."""
        if self._config.enforce_eager:
            self._attempt("building the engine")
            return Engine(self._loaded.model, self._config, constraints=constraints)
        with self._attempt.first_run("building the engine", suspecting(graphs=True)):
            return Engine(self._loaded.model, self._config, constraints=constraints)

    def of_engine(self, engine: Engine) -> None:
        """Test an engine's whole steps, then its graphs."""
        if self._reference is not None:
            suspects = self._suspects_of_whole_step()
            with self._attempt.first_run("testing whole steps", suspects):
                found = check_whole_step(
                    engine, self._reference, self._sizes, linear_unit=self._linear_unit
                )
                self._judge(found, suspects)
        if not self._config.enforce_eager:
            suspects = suspecting(graphs=True)
            with self._attempt.first_run("testing graphs", suspects):
                self._judge(check_recorded_steps(engine, self._sizes), suspects)
        log.info("step_test", checks=len(self._checks), seconds=round(self._seconds, 3))

    @property
    def report(self) -> SelfTestReport | None:
        """The load's self-test with these checks added."""
        return self._report(passed=True)

    def _suspects_of_whole_step(self) -> StartFailure:
        """Name the first that has an alternative: each part passed its own test."""
        if self._path.step_kernels != REFERENCE_KERNELS:
            return suspecting(step_kernels=(self._path.step_kernels,))
        if self._path.backends:
            return suspecting(backends=self._path.backends)
        return suspecting(flash=self._has_flash)

    def _judge(self, found: Iterable[StepCheck], suspects: StartFailure) -> None:
        """Take in what a stage found; raise EngineStartError, with the report, where it failed."""
        started = time.monotonic()
        checks = list(found)
        self._seconds += time.monotonic() - started
        self._checks += [
            Check(check.name, check.passed, check.detail, check.worst) for check in checks
        ]
        failures = [check for check in checks if check.passed is False]
        for check in failures:
            log.error("step_test_failed", check=check.name, found=check.detail)
        if not failures:
            return
        detail = "; ".join(f"{check.name}: {check.detail}" for check in failures)
        failure = StartFailure(
            FailureKind.STEP_TEST,
            suspects.backends,
            self._report(passed=False),
            suspects.step_kernels,
            suspects.graphs,
            detail,
            suspects.flash,
        )
        raise EngineStartError(
            f"the test of its steps failed: {detail}", start_failure=failure.encode()
        )

    def _report(self, *, passed: bool) -> SelfTestReport | None:
        known = self._loaded.self_test
        if known is None:
            return None
        return replace(
            known,
            passed=passed,
            checks=(*known.checks, *self._checks),
            seconds=round(known.seconds + self._seconds, 3),
            finished=int(time.time()),
        )


def suspecting(
    *,
    backends: tuple[str, ...] = (),
    step_kernels: tuple[str, ...] = (),
    graphs: bool = False,
    flash: bool = False,
) -> StartFailure:
    """Name parts that a stage would speak against."""
    return StartFailure(
        FailureKind.CANNOT_RUN, backends, step_kernels=step_kernels, graphs=graphs, flash=flash
    )


def dequantize(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Return a packed layer's weight [out, in] and bias in float32, in the model's own order."""
    if not isinstance(layer, PackedLinear) or layer.kernel is None:
        raise UnsupportedArchitectureError(
            f"a {type(layer).__name__} stands where a packed layer was expected"
        )
    weight = layer.kernel.dequantize()
    order = layer.input_permutation
    if order is not None:
        natural = weight.new_empty(weight.shape)
        natural[:, order] = weight
        weight = natural
    return weight, layer.bias
