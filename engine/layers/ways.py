"""Chooses how each shape of weight multiplies, by measuring on this machine.

A weight may multiply few rows in one way and many in another: packed as it is, or unpacked before.
From how many rows on which is fastest depends on the processor, so it is tried with the model's own
weights, once for each kind and shape of them. Those of several layers take turns, as in a step,
where none is still in the caches from the last.

Pieces of prompts (`engine.scheduling.pieces`) go one way however many they are. A way for few rows
is that way only if it is the faster one for all numbers of them.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import structlog
import torch

from engine.layers.alike import filled_up
from engine.layers.weights import weights_in_use
from engine.measured.choices import Source
from engine.measured.stopwatch import OutOfTimeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch import Tensor

    from engine.layers.weights import LinearsInUse
    from engine.measured.choices import Choices

    MakeProduct = Callable[[], Callable[[Tensor], Tensor]]

log = structlog.get_logger(__name__)

# Numbers of rows from which on they may be many.
ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 256, 512)
_FEW_ROWS = (1, 4, 16)  # by which ways for few of them are told apart
_PIECE_ROWS = (128, 16)  # and those for pieces, beside the most that a step computes
_MOST_PIECE_ROWS = 2048
# A weight of more numbers may have no time for these, so it is tried with fewer rows before.
_LARGE, _ROWS_OF_LARGE = 2**25, 32
_COMPARED_ROWS = 50  # 32, which tile registers take at once, and a rest of more than one tile
_FILLED_FROM = 17  # rows (`alike`)
_IN_TURN = 8  # weights of so many layers, or more, are all the same to the caches
# Two ways round up to five times each (see the loaders' self-test, which allows one of them half
# of this): shares of an output's usual size.
_MAX_OUTPUT_ERROR = 12.0
_MAX_LAYER_ERROR = 3.0
_HOPELESS = 1.5  # times as slow as the fastest for some rows: not tried for more of them
# What names of ways that are compiled from C++ begin with, and the fastest of those for many rows
# that run on all their CPUs: faster than weights unpacked as a whole for every number of rows that
# was measured (docs/decisions.md, 2026-11), and the one that all layers in one call have.
_NATIVE, _NATIVE_MANY = "native", "native panels"
_NEVER_IN_TIME = "not measured in time"  # what begins the entry of such a shape that is kept
_SMALLEST_OUTPUT = 0.1  # of the usual size: a smaller one is measured by the others


@runtime_checkable
class ManyWaysWeight(Protocol):
    """A weight that multiplies in ways that have names; see `LinearWeight` for the rest of it."""

    @property
    def in_features(self) -> int: ...

    @property
    def out_features(self) -> int: ...

    @property
    def shape_key(self) -> str:
        """Name what the speed of its ways depends on: weights that say the same take the same."""

    @property
    def unit_roundoff(self) -> float:
        """The largest relative error of one rounding."""

    @property
    def ways_taken(self) -> tuple[str, str, int | None] | None:
        """The ways of few and of many rows, and from how many on rows are many; None: it has one.

        None for that number: whatever is no piece of a prompt goes the way of few.
        """

    def ways_of_few(self) -> Mapping[str, MakeProduct]:
        """Give what makes ready the ways for few rows; the first is the plainest.

        Those compiled from C++ are `native`, or `native` and the name of what they do faster.
        """

    def ways_of_many(self) -> Mapping[str, MakeProduct]:
        """Give what makes ready the ways for many rows."""

    def choose_ways(self, *, few: str, many: str, many_from: int | None) -> None:
        """Take these ways from now on."""


@dataclass(frozen=True, slots=True)
class Ways:
    """The ways that a shape of weight takes."""

    few: str
    many: str
    many_from: int | None

    @property
    def told(self) -> str:
        """Say it in words."""
        if self.few == self.many:
            return self.few
        beyond = "" if self.many_from is None else f"{self.many} from {self.many_from} rows, "
        return f"{self.few}, {beyond}{self.many} for prompts"

    @classmethod
    def read(cls, kept: object, few: Iterable[str], many: Iterable[str]) -> Ways | None:
        """Read what a file keeps; None where it is none of these ways."""
        match kept:
            case [str(one), str(other), rows] if one in few and other in many:
                return cls(one, other, rows) if rows is None or rows in ROWS else None
        return None


@torch.inference_mode()
def choose_ways(
    linears: Iterable[LinearsInUse], choices: Choices, *, max_rows: int, has_native: bool = False
) -> None:
    """Have each weight that has several ways take the fastest, or say which it takes.

    max_rows: the most that a step computes. has_native: whether ways compiled from C++ are taken;
    where nothing is measured they are in place of PyTorch's like.
    """
    shapes: dict[str, list[ManyWaysWeight]] = {}
    taken: dict[str, Ways] = {}
    for weight in weights_in_use(linears):
        if isinstance(weight, ManyWaysWeight) and weight.ways_taken is not None:
            shapes.setdefault(weight.shape_key, []).append(weight)
            taken[weight.shape_key] = Ways(*weight.ways_taken)
    # Those that most is multiplied by come first, if there is no time for all.
    for key in sorted(shapes, key=lambda key: -_size(shapes[key])):
        ways, source = taken[key], Source.FIXED
        if choices.is_measured or has_native:
            shape = _ShapeOfWeights(key, shapes[key], choices, max_rows, has_native=has_native)
            ways, source = shape.choose(ways)
        choices.note(key, ways.told, source)


def _size(weights: Sequence[ManyWaysWeight]) -> int:
    return len(weights) * weights[0].in_features * weights[0].out_features


class _ShapeOfWeights:
    """Weights of one shape, whose ways are to be chosen."""

    def __init__(
        self,
        key: str,
        weights: Sequence[ManyWaysWeight],
        choices: Choices,
        max_rows: int,
        *,
        has_native: bool,
    ) -> None:
        self._key, self._weights, self._choices = key, weights, choices
        self._stopwatch = choices.stopwatch
        self._few = [weight.ways_of_few() for weight in weights]
        self._many = [weight.ways_of_many() for weight in weights]
        if not has_native:
            self._drop([name for name in self._names() if name.startswith(_NATIVE)])
        most = min(filled_up(max_rows, "cpu"), _MOST_PIECE_ROWS)
        self._piece_rows = sorted({*_PIECE_ROWS, max(most, *_PIECE_ROWS)}, key=_middle_first)
        self._x = torch.randn(
            _COMPARED_ROWS, weights[0].in_features, generator=torch.Generator().manual_seed(0)
        )
        # All that there are, before any is refused: the next start asks for the same.
        few, many = self._few[0], self._many[0]
        rows = max(self._piece_rows)
        self._kept_as = f"{key}: {', '.join(few)} | {', '.join(many)} | {rows} rows"
        self._kept_as += f" | {min(len(weights), _IN_TURN)} in turn"
        self._plainest = self._names()[0]
        self._compared = {self._plainest: True}  # whether they gave what the plainest one gives
        self._seconds: dict[tuple[str, int], float] = {}
        self._is_large = weights[0].in_features * weights[0].out_features > _LARGE
        self._is_whole = True  # whether all that was to be measured was

    def choose(self, fixed: Ways) -> tuple[Ways, Source]:
        """Choose for all of them; fixed: what they take where nothing is measured."""
        if self._choices.is_measured:
            ways, source = self._recalled() or self._measured(fixed)
        else:
            ways, source = self._allowed(fixed), Source.FIXED
        for weight in self._weights:
            weight.choose_ways(few=ways.few, many=ways.many, many_from=ways.many_from)
        return ways, source

    def _allowed(self, fixed: Ways) -> Ways:
        """Give what holds where nothing is measured: C++ in place of PyTorch, where it is right."""
        while True:
            few, many = self._few[0], self._many[0]
            of_cpp = [name for name in (_NATIVE_MANY, f"{_NATIVE} {fixed.many}") if name in many]
            ways = Ways(
                _NATIVE if _NATIVE in few else fixed.few,
                of_cpp[0] if of_cpp else fixed.many,
                fixed.many_from,
            )
            # What PyTorch takes was tried where the model was loaded.
            new = [name for name in (ways.few, ways.many) if name.startswith(_NATIVE)]
            if self._are_sound(new):
                return ways

    def _recalled(self) -> tuple[Ways, Source] | None:
        """Give what an earlier start chose; None where none did, or what is no longer right."""
        few, many = self._few[0], self._many[0]
        kept = self._choices.recall(self._kept_as)
        known, source = Ways.read(kept, few, many), Source.CACHED
        if known is None and isinstance(kept, list) and kept[:1] == [_NEVER_IN_TIME]:
            known, source = Ways.read(kept[1:], few, many), Source.NEVER_IN_TIME
        if known is None or not self._are_sound([known.few, known.many]):
            return None
        return known, source

    def _measured(self, fixed: Ways) -> tuple[Ways, Source]:
        # Others that were measured before it are known to the next start, and leave it more.
        had_all_time = not self._stopwatch.measured_s
        ways = self._measure(self._allowed(fixed))
        entry = [ways.few, ways.many, ways.many_from]
        if self._is_whole:
            self._choices.keep(self._kept_as, entry)
        elif had_all_time:  # no later start would have more, and each would spend it for nothing
            self._choices.keep(self._kept_as, [_NEVER_IN_TIME, *entry])
        return ways, Source.MEASURED if self._is_whole else Source.NOT_IN_TIME

    def _measure(self, fixed: Ways) -> Ways:
        """Measure what there is time for; the rest is as it is fixed."""
        ways = fixed
        try:
            self._refuse_unsound()
            ways = replace(ways, few=self._fastest_of_few())
            ways = replace(ways, many=self._fastest_of_many())
            is_one = ways.few == ways.many
            many_from = None if is_one else self._many_from(ways.few, ways.many)
            ways = replace(ways, many_from=many_from)
        except OutOfTimeError:
            self._is_whole = False
        return ways

    def _fastest_of_few(self) -> str:
        names = list(self._few[0])
        if len(names) == 1:
            return names[0]
        scores = dict.fromkeys(names, 1.0)
        for rows in _FEW_ROWS:  # as many times as fast counts as much for each
            for name, seconds in self._compare(names, [], rows).items():
                scores[name] *= seconds
        return min(scores, key=scores.__getitem__)

    def _fastest_of_many(self) -> str:
        """Choose the way of pieces: one that is no way of few, unless such a one always wins."""
        names = list(self._many[0])
        best = self._fastest_of_unpacked([one for one in names if one not in self._few[0]] or names)
        for name in names:
            if name in self._few[0] and self._always_wins(name, best):
                best = name
        return best

    def _fastest_of_unpacked(self, names: list[str]) -> str:
        """Choose by the most rows that there is time for, among those worth so many.

        Whole prompts come in the most that there are. Raises OutOfTimeError where none is left.
        """
        first = [_ROWS_OF_LARGE] if self._is_large else []
        tried: list[str] = []
        for rows in (*first, self._piece_rows[0], max(self._piece_rows)):
            if len(names) > 1:
                try:
                    seconds = self._compare([], names, rows)
                except OutOfTimeError:
                    if not tried:
                        raise
                    self._is_whole = False
                    break
                tried = names = sorted(seconds, key=seconds.__getitem__)
                least = min(seconds.values())
                if rows not in first:  # so few tell little of what takes long to be made ready
                    names = [name for name in names if seconds[name] < _HOPELESS * least]
        return names[0]

    def _always_wins(self, name: str, other: str) -> bool:
        for rows in self._piece_rows:
            seconds = self._compare([], [name, other], rows)
            if seconds[name] >= seconds[other]:
                return False
        return True

    def _many_from(self, few: str, many: str) -> int | None:
        """Find the number of rows from which on the way of many is faster; None if it never is.

        Halving what it may be, so there is one, and few numbers are tried: the way of few costs by
        the row, that of many for the most part once.
        """
        low, high = 0, len(ROWS)
        while low < high:
            middle = (low + high) // 2
            seconds = self._compare([few], [many], ROWS[middle])
            if seconds[many] < seconds[few]:
                high = middle
            else:
                low = middle + 1
        return ROWS[low] if low < len(ROWS) else None

    def _compare(self, few: list[str], many: list[str], rows: int) -> dict[str, float]:
        """Measure ways with so many rows; many are filled up as `alike` does."""
        whole = filled_up(rows, "cpu") if rows >= _FILLED_FROM else rows
        calls = {name: self._call(name, self._few, rows) for name in few}
        calls |= {name: self._call(name, self._many, whole) for name in many}
        known = {name: self._seconds.get((name, rows)) for name in calls}
        missing = {name: calls[name] for name in calls if known[name] is None}
        if missing:  # all, as they are to be compared at one time
            foreseen = self._foreseen(list(calls), rows)
            seconds = self._stopwatch.least_seconds(calls, foreseen_s=foreseen)
            self._seconds.update({(name, rows): seconds[name] for name in seconds})
        return {name: self._seconds[name, rows] for name in calls}

    def _foreseen(self, names: list[str], rows: int) -> float:
        """Say what a call may take at most: by the row what fewer rows took."""
        return max(
            (
                seconds * rows / known
                for (name, known), seconds in self._seconds.items()
                if name in names and known < rows
            ),
            default=0.0,
        )

    def _call(
        self, name: str, ways: Sequence[Mapping[str, MakeProduct]], rows: int
    ) -> Callable[[int], object]:
        x = self._x.repeat(-(-rows // len(self._x)), 1)[:rows]
        return lambda turn: ways[turn % len(ways)][name]()(x)

    def _names(self) -> list[str]:
        return list({**self._few[0], **self._many[0]})

    def _drop(self, names: Iterable[str]) -> None:
        for ways in (self._few, self._many):
            ways[:] = [{name: of[name] for name in of if name not in names} for of in ways]

    def _refuse_unsound(self) -> None:
        """Leave out all ways that do not give what the plainest one gives."""
        for name in self._names():
            if self._stopwatch.is_over:
                raise OutOfTimeError
            self._are_sound([name])

    def _are_sound(self, names: Iterable[str]) -> bool:
        """Return whether ways give what the plainest one gives; leave out those that do not."""
        return not [name for name in names if self._is_refused(name)]

    def _is_refused(self, name: str) -> bool:
        if name not in self._compared:
            makes = {**self._few[0], **self._many[0]}
            unit = self._weights[0].unit_roundoff
            fault = _fault(makes[name], self._x, self._expected, unit)
            self._compared[name] = fault is None
            if fault is not None:
                log.warning("kernel_way_refused", way=name, weights=self._key, reason=fault)
                self._drop([name])
        return not self._compared[name]

    @functools.cached_property
    def _expected(self) -> Tensor:
        return self._few[0][self._plainest]()(self._x)


def _fault(make: MakeProduct, x: Tensor, expected: Tensor, unit: float) -> str | None:
    """Say how a way's product differs from the expected one; None where it does not, or little."""
    try:
        product = make()(x)
    except RuntimeError as error:
        return f"it failed: {error}"
    if product.shape != expected.shape or product.dtype != expected.dtype:
        return f"it gives {tuple(product.shape)} {product.dtype}"
    usual = expected.square().mean(dim=0).sqrt()
    usual = usual.maximum(usual.median() * _SMALLEST_OUTPUT).clamp(
        min=torch.finfo(usual.dtype).tiny
    )
    # What is no number counts as more than any.
    off = ((product - expected).square().mean(dim=0).sqrt() / usual).nan_to_num(nan=torch.inf)
    worst, layer = float(off.max()), float(off.square().mean().sqrt())
    if worst <= _MAX_OUTPUT_ERROR * unit and layer <= _MAX_LAYER_ERROR * unit:
        return None
    return (
        f"one output is off by {worst:.2e} ({_MAX_OUTPUT_ERROR * unit:.2e} allowed), all by"
        f" {layer:.2e} ({_MAX_LAYER_ERROR * unit:.2e} allowed)"
    )


def _middle_first(rows: int) -> tuple[bool, int]:
    """Order numbers of rows: first the one that most likely tells ways apart and costs little."""
    return rows != _PIECE_ROWS[0], rows
