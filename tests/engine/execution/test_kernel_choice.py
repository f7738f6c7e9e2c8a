from __future__ import annotations

from typing import Any

import pytest

from engine.attention import windows
from engine.attention.windows import attend_in_windows, ways_to_attend
from engine.config import EngineConfig
from engine.execution import kernel_choice
from engine.execution.kernel_choice import choose_kernels
from engine.execution.path import ExecutionPath
from engine.kernels.torch_kernels import TorchKernels
from tests.engine.measured.fake_clock import FakeClock

SIZES = {"max_num_seqs": 2, "max_num_batched_tokens": 64, "max_model_len": 64, "num_blocks": 8}
CPU = ExecutionPath(kernels=None, recorder=None, is_overlapped=False)


class ModelConfig:
    """What attention is chosen by: six heads of 32 that share three."""

    num_attention_heads, num_key_value_heads, head_dim, hidden_size = 6, 3, 32, 192

    def get_text_config(self, *, decoder: bool) -> ModelConfig:
        return self


class Decoder:
    """A decoder without linear layers."""

    def linears(self) -> tuple[()]:
        return ()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """Has the second way take least time."""
    clock, real = FakeClock(), kernel_choice.Choices
    monkeypatch.setattr(kernel_choice, "Choices", lambda **kw: real(**kw, clock=clock))
    slow, fast = clock.taking(0.02), clock.taking(0.001)

    def slowly(*arguments: Any) -> Any:
        slow()
        return arguments[0]

    def quickly(*arguments: Any) -> Any:
        fast()
        return arguments[0]

    ways = {"float32 windows": slowly, "float32 products": quickly}
    monkeypatch.setattr(kernel_choice, "ways_to_attend", lambda: ways)
    return clock


def chosen(path: ExecutionPath = CPU, **changes: Any) -> kernel_choice.KernelChoice:
    config = EngineConfig(**SIZES, **changes)
    return choose_kernels(Decoder(), ModelConfig(), config, path)  # type: ignore[arg-type]


def test_prompts_are_attended_to_by_the_way_that_takes_least_time(clock: FakeClock):
    choice = chosen(kernel_choice="measured")
    assert choice.told == "prompts' attention, 6 heads of 32 to 3: float32 products"
    assert choice.attend_piece is kernel_choice.ways_to_attend()["float32 products"]


def test_where_choices_are_fixed_the_first_way_is_taken_and_nothing_measured(clock: FakeClock):
    before = clock.now
    choice = chosen(kernel_choice="fixed")
    assert choice.attend_piece is kernel_choice.ways_to_attend()["float32 windows"]
    assert clock.now == before


@pytest.mark.parametrize(
    ("path", "changes"),
    [
        (CPU, {"is_batch_invariant": True}),
        (ExecutionPath(kernels=TorchKernels(), recorder=None, is_overlapped=False), {}),
        (ExecutionPath(kernels=None, recorder=None, is_overlapped=True), {}),
    ],
    ids=["row by row", "a GPU's kernels", "on a GPU"],
)
def test_nothing_is_chosen_where_pieces_are_attended_to_otherwise(
    clock: FakeClock, path: ExecutionPath, changes: dict[str, Any]
):
    choice = chosen(path, kernel_choice="measured", **changes)
    assert choice.told == ""
    assert choice.attend_piece is attend_in_windows


def test_each_way_of_this_processor_can_be_measured():
    choice = chosen(kernel_choice="measured")
    *_, name = choice.told.partition(": ")
    assert name in ways_to_attend()
    assert windows.WINDOW_ROWS <= kernel_choice._ATTENDING_ROWS
