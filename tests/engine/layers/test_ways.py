"""Which way each shape of weight multiplies, with ways that take what a clock of the test says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
import torch
from structlog.testing import capture_logs

from engine.layers.alike import filled_up
from engine.layers.ways import ROWS, choose_ways
from engine.layers.weights import JoinedLinears, LinearsInUse
from engine.measured.choices import Choices, Source
from tests.engine.measured.fake_clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable

FIXED = ("packed", "tiles", 64)


@dataclass(frozen=True)
class Costs:
    """Seconds of a way: to make it ready, and by the row."""

    ready: float
    row: float
    off: float = 0.0  # by which share its products are wrong
    fails: bool = False


FEW = {"packed": Costs(0.0, 0.0001)}
MANY = {"tiles": Costs(0.0021, 0.00002)}


@dataclass
class Weight:
    """A weight of many ways: rows of ones give what they gave it."""

    clock: FakeClock
    few: dict[str, Costs] = field(default_factory=lambda: FEW)
    many: dict[str, Costs] = field(default_factory=lambda: MANY)
    in_features: int = 32
    out_features: int = 8
    shape_key: str = "packed 32x8"
    ways_taken: tuple[str, str, int | None] | None = FIXED
    calls: list[tuple[str, int]] = field(default_factory=list)
    unit_roundoff: float = 2**-8
    num_invariant_rows: int | None = 63
    input_permutation: None = None
    output_permutation: None = None

    def __post_init__(self) -> None:
        self.matrix = torch.randn(32, 8, generator=torch.Generator().manual_seed(1))

    def matmul(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.matrix

    def fuse_with(self, others: object) -> None:
        return None

    def ways_of_few(self) -> dict[str, Callable[[], Callable[[torch.Tensor], torch.Tensor]]]:
        return {name: self._make(name, costs) for name, costs in self.few.items()}

    def ways_of_many(self) -> dict[str, Callable[[], Callable[[torch.Tensor], torch.Tensor]]]:
        return {name: self._make(name, costs) for name, costs in self.many.items()}

    def _make(self, name, costs):
        def make():
            self.clock.now += costs.ready
            return multiply

        def multiply(x):
            self.calls.append((name, len(x)))
            self.clock.now += costs.row * len(x)
            if costs.fails:
                raise RuntimeError("no such instruction")
            return x @ self.matrix * (1 + costs.off)

        return make

    def choose_ways(self, *, few: str, many: str, many_from: int | None) -> None:
        self.ways_taken = (few, many, many_from)


def in_use(*weights):
    made = []
    for weight in weights:
        joined = JoinedLinears.__new__(JoinedLinears)
        joined._weights = [weight]
        made.append(LinearsInUse(("one",), (8,), joined))
    return made


@pytest.fixture
def clock():
    return FakeClock()


def chosen(clock, *weights, folder=None, max_rows=512, has_native=False, budget_s=60.0):
    choices = Choices(
        is_measured=True, folder=folder, budget_s=budget_s, clock=clock, cpu_clock=clock
    )
    choose_ways(in_use(*weights), choices, max_rows=max_rows, has_native=has_native)
    choices.finish()
    return choices


def expected_many_from(few, many):
    """The first number of rows of which the way of many is cheaper, many filled up."""
    return next(
        (
            rows
            for rows in ROWS
            if many.ready + many.row * (filled_up(rows, "cpu") if rows > 16 else rows)
            < few.ready + few.row * rows
        ),
        None,
    )


@pytest.mark.parametrize("ready", [0.0, 0.0001, 0.0005, 0.001, 0.0021, 0.005, 0.03, 0.05])
def test_rows_are_many_from_where_that_way_is_faster(clock, ready):
    many = {"tiles": Costs(ready, 0.00002)}
    weight = Weight(clock, many=many)
    chosen(clock, weight)
    wanted = expected_many_from(FEW["packed"], many["tiles"])
    assert weight.ways_taken == ("packed", "tiles", wanted)


def test_few_numbers_of_rows_are_tried_and_none_that_is_known_to_be_slow(clock):
    weight = Weight(clock)
    chosen(clock, weight)
    assert len({rows for name, rows in weight.calls if name == "packed"}) <= 5
    assert max(rows for _, rows in weight.calls) <= 128


def test_weights_of_one_shape_choose_alike_and_take_turns_so_that_caches_are_cold(clock):
    weights = [Weight(clock) for _ in range(3)]
    choices = chosen(clock, *weights)
    assert {weight.ways_taken for weight in weights} == {("packed", "tiles", 32)}
    assert choices.text == "packed 32x8: packed, tiles from 32 rows, tiles for prompts"
    counts = [len(weight.calls) for weight in weights]
    assert min(counts) >= max(counts) // 2


def test_a_model_of_fewer_layers_whose_weights_stay_in_caches_is_another(clock, tmp_path):
    chosen(clock, Weight(clock), folder=tmp_path)
    choices = chosen(clock, Weight(clock), Weight(clock), folder=tmp_path)
    assert choices._made["packed 32x8"].source is Source.MEASURED


def test_each_shape_is_chosen_for_by_itself(clock):
    slow = {"tiles": Costs(0.1, 0.00002)}
    small, large = Weight(clock), Weight(clock, many=slow, shape_key="packed 32x800")
    choices = chosen(clock, small, large)
    assert (small.ways_taken[2], large.ways_taken[2]) == (32, None)
    assert choices.text == (
        "packed 32x8: packed, tiles from 32 rows, tiles for prompts;"
        " packed 32x800: packed, tiles for prompts"
    )


def test_of_several_ways_for_few_rows_the_fastest_is_taken(clock):
    few = {**FEW, "native": Costs(0.0, 0.00005)}
    weight = Weight(clock, few=few)
    chosen(clock, weight, has_native=True)
    assert weight.ways_taken[0] == "native"
    slower = Weight(clock, few={**FEW, "native": Costs(0.0, 0.0002)})
    chosen(clock, slower, has_native=True)
    assert slower.ways_taken[0] == "packed"


def test_prompts_go_the_way_of_few_only_if_it_wins_for_every_number_of_them(clock):
    def way_of_prompts(row_seconds, max_rows):
        native = Costs(0.0, row_seconds)
        weight = Weight(clock, few={**FEW, "native": native}, many={**MANY, "native": native})
        chosen(clock, weight, has_native=True, max_rows=max_rows)
        return weight.ways_taken

    assert way_of_prompts(0.00001, 512) == ("native", "native", None)
    # Faster up to 210 rows.
    assert way_of_prompts(0.00003, 512) == ("native", "tiles", 256)
    assert way_of_prompts(0.00003, 128) == ("native", "native", None)


def test_of_several_ways_to_unpack_the_fastest_is_taken(clock):
    weight = Weight(clock, many={**MANY, "float32 tiles": Costs(0.001, 0.00001)})
    chosen(clock, weight)
    assert weight.ways_taken == ("packed", "float32 tiles", 16)


def test_of_ways_to_unpack_that_are_near_each_other_whole_prompts_decide(clock):
    # At 128 rows the first is faster, at 512 the second; the third is never tried with so many.
    many = {
        "tiles": Costs(0.0, 0.00003),
        "float32 tiles": Costs(0.002, 0.00002),
        "slow tiles": Costs(0.0, 0.00009),
    }
    weight = Weight(clock, many=many)
    chosen(clock, weight)
    assert weight.ways_taken[1] == "float32 tiles"
    assert ("slow tiles", 512) not in weight.calls
    short = Weight(clock, many=many)
    chosen(clock, short, max_rows=64)
    assert short.ways_taken[1] == "tiles"


def test_without_kernels_in_cpp_their_ways_are_not_even_tried(clock):
    native = Costs(0.0, 0.000001)
    weight = Weight(
        clock,
        few={**FEW, "native": native},
        many={**MANY, "native tiles": native, "native": native},
    )
    chosen(clock, weight, has_native=False)
    assert weight.ways_taken == ("packed", "tiles", 32)
    assert not any(name.startswith("native") for name, _ in weight.calls)


@pytest.mark.parametrize(
    "wrong",
    [Costs(0, 0, off=0.1), Costs(0, 0, off=float("nan")), Costs(0, 0, fails=True)],
    ids=["off", "no number", "fails"],
)
def test_a_way_whose_product_is_another_is_refused_by_name(clock, wrong):
    weight = Weight(clock, few={**FEW, "native": wrong}, many={**MANY, "native": wrong})
    with capture_logs() as logs:
        chosen(clock, weight, has_native=True)
    refused = [line for line in logs if line["event"] == "kernel_way_refused"]
    assert [(line["way"], line["weights"]) for line in refused] == [("native", "packed 32x8")]
    assert weight.ways_taken == ("packed", "tiles", 32)


def test_a_way_that_only_rounds_otherwise_is_not_refused(clock):
    weight = Weight(clock, few={**FEW, "native": Costs(0.0, 0.00001, off=2**-8)})
    with capture_logs() as logs:
        chosen(clock, weight, has_native=True)
    assert "kernel_way_refused" not in {line["event"] for line in logs}
    assert weight.ways_taken[0] == "native"


def test_the_next_start_takes_what_was_measured_and_only_compares(clock, tmp_path):
    first = Weight(clock)
    chosen(clock, first, folder=tmp_path)
    again = Weight(clock)
    choices = chosen(clock, again, folder=tmp_path)
    assert again.ways_taken == first.ways_taken
    assert again.calls == [("packed", 50), ("tiles", 50)]
    assert choices.text == "packed 32x8: packed, tiles from 32 rows, tiles for prompts"


@pytest.mark.parametrize("kept", [["packed", "tiles", 5], ["packed"], "packed", ["x", "tiles", 4]])
def test_what_a_file_keeps_and_cannot_be_is_measured_anew(clock, tmp_path, kept):
    chosen(clock, Weight(clock), folder=tmp_path)
    choices = Choices(is_measured=True, folder=tmp_path, clock=clock, cpu_clock=clock)
    (key,) = choices._known
    choices.keep(key, kept)
    choices.finish()
    weight = Weight(clock)
    chosen(clock, weight, folder=tmp_path)
    assert weight.ways_taken == ("packed", "tiles", 32)
    assert len(weight.calls) > 2


def test_fixed_ways_stay_but_for_cpp_in_place_of_pytorch(clock):
    native = Costs(0.0, 0.1)
    few = {**FEW, "native": native}
    many = {**MANY, "native tiles": native, "native panels": native}
    for has_native, taken in ((False, FIXED), (True, ("native", "native panels", 64))):
        weight, fixed = (
            Weight(clock, few=few, many=many),
            Choices(is_measured=False, clock=clock, cpu_clock=clock),
        )
        choose_ways(in_use(weight), fixed, max_rows=512, has_native=has_native)
        assert weight.ways_taken == taken
        # Not measured; and only compared is what is taken, as the others may be what fails here.
        compared = ["packed", "native", "native panels"] if has_native else []
        assert weight.calls == [(name, 50) for name in compared]
    assert fixed.text == (
        "packed 32x8: native, native panels from 64 rows, native panels for prompts"
    )


def test_fixed_ways_unpack_as_a_whole_in_cpp_where_it_has_no_panels(clock):
    native = Costs(0.0, 0.1)
    weight = Weight(clock, few={**FEW, "native": native}, many={**MANY, "native tiles": native})
    fixed = Choices(is_measured=False, clock=clock, cpu_clock=clock)
    choose_ways(in_use(weight), fixed, max_rows=512, has_native=True)
    assert weight.ways_taken == ("native", "native tiles", 64)


def test_in_cpp_that_gives_another_product_fixed_ways_are_pytorchs(clock):
    wrong = Costs(0.0, 0.0, off=0.5)
    many = {**MANY, "native tiles": wrong, "native panels": wrong}
    weight = Weight(clock, few={**FEW, "native": wrong}, many=many)
    fixed = Choices(is_measured=False, clock=clock, cpu_clock=clock)
    choose_ways(in_use(weight), fixed, max_rows=512, has_native=True)
    assert weight.ways_taken == FIXED


def test_the_larger_part_of_the_model_is_measured_first_and_the_rest_stays_as_it_is(clock):
    small = Weight(clock, shape_key="packed small")
    large = [Weight(clock, shape_key="packed large") for _ in range(4)]
    with capture_logs() as logs:
        choices = chosen(clock, small, *large, budget_s=0.15)
    assert {weight.ways_taken for weight in large} == {("packed", "tiles", 32)}
    assert small.ways_taken == FIXED
    assert choices.stopwatch.spent_s < 0.2
    (late,) = [line for line in logs if line["event"] == "kernel_ways_not_measured"]
    assert late["choices"] == ["packed small"]


def test_what_was_kept_and_is_no_longer_right_is_refused_and_measured_anew(clock, tmp_path):
    few = {**FEW, "native": Costs(0.0, 0.00005)}
    chosen(clock, Weight(clock, few=few), folder=tmp_path, has_native=True)
    wrong = Weight(clock, few={**few, "native": Costs(0.0, 0.00005, off=0.1)})
    with capture_logs() as logs:
        choices = chosen(clock, wrong, folder=tmp_path, has_native=True)
    assert [line["way"] for line in logs if line["event"] == "kernel_way_refused"] == ["native"]
    assert wrong.ways_taken == ("packed", "tiles", 32)
    assert choices._made["packed 32x8"].source is Source.MEASURED
    chosen(clock, right := Weight(clock, few=few), folder=tmp_path, has_native=True)
    assert right.ways_taken == ("packed", "tiles", 32)  # kept for what asks the same


def test_no_way_is_compared_when_time_is_over_but_those_that_are_taken(clock):
    native = Costs(0.0, 0.001)
    many = {**MANY, "native tiles": native, "native panels": native}
    weight = Weight(clock, few={**FEW, "native": native}, many=many)
    chosen(clock, weight, has_native=True, budget_s=0.01)
    assert weight.ways_taken == ("native", "native panels", 64)
    assert weight.calls == [(name, 50) for name in ("packed", "native", "native panels")]


def test_weights_with_one_way_are_left_alone(clock):
    weight = Weight(clock, ways_taken=None)
    assert chosen(clock, weight).text == ""
    assert weight.calls == []


# Between them there is time for few rows and for 128 of them, but for no more.
LONG_FEW = {**FEW, "native": Costs(0.0, 0.00008)}
LONG_MANY = {
    "tiles": Costs(0.0, 0.0011),
    "native panels": Costs(0.0, 0.0012),
    "native tiles": Costs(0.0, 0.001),
}


def large(clock, **changes):
    told = {"few": LONG_FEW, "many": LONG_MANY, "shape_key": "packed large"}
    return Weight(clock, **(told | changes))


def test_what_there_was_time_for_is_taken_and_the_rest_is_as_it_is_fixed(clock, tmp_path):
    weight = large(clock)
    choices = chosen(clock, weight, folder=tmp_path, has_native=True, budget_s=1.2)
    assert weight.ways_taken == ("native", "native tiles", 64)
    assert max(rows for _, rows in weight.calls) == 128
    assert choices._made["packed large"].source is Source.NOT_IN_TIME
    brief = large(clock)
    chosen(clock, brief, has_native=True, budget_s=0.12)
    assert brief.ways_taken == ("native", "native panels", 64)


def test_what_had_all_the_time_and_too_little_is_not_begun_again(clock, tmp_path):
    first, again = large(clock), large(clock)
    chosen(clock, first, folder=tmp_path, has_native=True, budget_s=1.2)
    with capture_logs() as logs:
        choices = chosen(clock, again, folder=tmp_path, has_native=True, budget_s=1.2)
    assert again.ways_taken == first.ways_taken
    # Compared, not measured; and of others nothing.
    assert again.calls == [(name, 50) for name in ("packed", "native", "native tiles")]
    assert choices._made["packed large"].source is Source.NEVER_IN_TIME
    assert "kernel_ways_not_measured" not in {line["event"] for line in logs}


def test_what_others_left_no_time_for_is_measured_by_a_later_start(clock, tmp_path):
    for _ in range(2):
        small, others = Weight(clock), [large(clock) for _ in range(2)]
        choices = chosen(clock, small, *others, folder=tmp_path, has_native=True, budget_s=1.2)
    assert small.ways_taken == ("packed", "tiles", 32)
    assert choices._made["packed 32x8"].source is Source.MEASURED
    assert choices._made["packed large"].source is Source.NEVER_IN_TIME


def test_a_large_weight_is_told_apart_by_fewer_rows_where_there_is_no_time_for_more(
    clock, monkeypatch
):
    def way_of_prompts():
        weight = large(clock)
        chosen(clock, weight, has_native=True, budget_s=0.6)
        return weight.ways_taken[1]

    assert way_of_prompts() == "native panels"  # as it is fixed
    monkeypatch.setattr("engine.layers.ways._LARGE", 0)
    assert way_of_prompts() == "native tiles"
