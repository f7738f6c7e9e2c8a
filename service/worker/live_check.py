"""The live check of an engine's layers: what the engine multiplies by against the model's files.

Joins what the engine tells of its linear layers and what the loaders keep of the checkpoint.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import structlog

from engine.process.live_check import LiveCheckFailure, PartOutcome
from loaders.errors import LoadError
from loaders.memory.free import is_refused_allocation
from loaders.model.kernels.reference import ReferenceBackend
from loaders.reports.self_test import SelfTestReport
from service.worker_protocol.load_attempt import FailureKind, StartFailure

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor

    from engine.layers.weights import LinearsInUse
    from engine.process.live_check import ComparePart
    from loaders.model.self_test.live import LiveLayers
    from loaders.model.self_test.read_part import LayerPart, ReadPart

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of one layer, and what multiplies by that layer, and by which beside it."""

    part: LayerPart
    linears: LinearsInUse
    first: int  # of the layer's outputs among those of `linears`
    stop: int

    def multiply(self, x: Tensor) -> Tensor:
        return self.linears.multiply(x)[:, self.first : self.stop]

    def multiply_many(self, x: Tensor) -> Tensor:
        """Multiply by the way of prompts where they have one: rows beside them may go it, too."""
        by_way = self.linears.multiply_pieces or self.linears.multiply
        return by_way(x)[:, self.first : self.stop]


class LayerCheck:
    """Checks the layers that an engine runs, one part after the other, round after round."""

    def __init__(self, linears: Iterable[LinearsInUse], layers: LiveLayers, backend: str) -> None:
        """backend: those in use, joined by "+"."""
        self._layers = layers
        self._backend = backend
        self._parts = [part for some in linears for part in _parts_of(some, layers)]
        self._num_begun = 0
        self._problem: str | None = None

    @property
    def num_parts(self) -> int:
        """How many make a full round."""
        return len(self._parts)

    @property
    def problem(self) -> str | None:
        """Why nothing can be checked any more."""
        return self._problem

    def read_next(self) -> ComparePart:
        """Read the next part; what compares it says PASSED, SKIPPED or what is wrong."""
        round_number, index = divmod(self._num_begun, self.num_parts)
        self._num_begun += 1
        part = self._parts[index]
        try:
            read = self._layers.read(part.part, with_many_rows=round_number % 2 == 0)
        except (LoadError, RuntimeError, MemoryError) as error:
            return partial(self._skip, error)
        return partial(self._compare, part, read)

    def _compare(self, part: _Part, read: ReadPart) -> LiveCheckFailure | PartOutcome:
        started = time.monotonic()
        try:
            check = read.compare(part.multiply_many if read.with_many_rows else part.multiply)
        except (RuntimeError, MemoryError) as error:
            return self._skip(error)
        if check.passed:
            return PartOutcome.PASSED
        report = SelfTestReport(
            passed=False,
            checks=(check,),
            backend=self._backend,
            seconds=round(time.monotonic() - started, 3),
            finished=int(time.time()),
        )
        # The reference runs where all others failed; what is wrong with it is its memory, which the
        # next engine's is not.
        suspects = report.suspects - {ReferenceBackend.name}
        failure = StartFailure(FailureKind.LIVE_CHECK, tuple(sorted(suspects)), report)
        reason = (
            f"{check.name} differs from its files while the model is served: {check.detail}; its"
            " kernel, its memory or the files have changed"
        )
        return LiveCheckFailure(reason, failure.encode())

    def _skip(self, error: LoadError | RuntimeError | MemoryError) -> PartOutcome:
        """Pass over a part for which memory was short; end the check where the files changed."""
        if isinstance(error, LoadError):
            self._problem = str(error)
            log.warning("live_check_impossible", reason=self._problem)
        elif isinstance(error, MemoryError) or is_refused_allocation(error):
            log.debug("live_check_skipped", reason=str(error))
        else:
            raise error
        return PartOutcome.SKIPPED


def make_live_check(
    linears: Iterable[LinearsInUse], layers: LiveLayers | None, backend: str
) -> LayerCheck | None:
    """Return what checks an engine's layers; None where none of them can be checked."""
    if layers is None:
        return None
    check = LayerCheck(linears, layers, backend)
    return check if check.num_parts else None


def _parts_of(linears: LinearsInUse, layers: LiveLayers) -> Iterator[_Part]:
    first = 0
    for name, size in zip(linears.names, linears.sizes, strict=True):
        for part in layers.parts(name):
            yield _Part(part, linears, first, first + size)
        first += size
