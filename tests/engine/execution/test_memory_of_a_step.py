"""What a GPU's steps allocate, counted on the meta device: shapes of a 7B model, and no memory."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, LlamaConfig

from engine.attention import prompt
from engine.config import EngineConfig
from engine.execution import decode_graphs, decoder
from engine.execution.model_runner import ModelRunner
from engine.execution.path import ExecutionPath
from engine.execution.replayed import ReplayedRecorder
from engine.kernels.choice import step_kernels
from engine.kernels.paged_decode import MAX_REFERENCE_BYTES
from engine.sampling_params import SamplingParams
from engine.scheduling.batch import Decodes, ScheduledBatch, ScheduledChunk, SlotStart

if TYPE_CHECKING:
    from engine.execution.graphs import GraphRecorder

ROWS, LENGTH, BLOCK = 32, 4096, 16
HIDDEN, INTERMEDIATE, VOCAB = 4096, 11008, 32_000
MIB = 2**20
# Keys and values of so many rows side by side, of one layer: what no step may make.
PADDED_BYTES = ROWS * LENGTH * 2 * HIDDEN * 2
GREEDY = SamplingParams(max_tokens=8, temperature=0)


class Allocations(TorchDispatchMode):
    """Notes the size of every storage that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.by_operation: dict[str, int] = {}  # the largest of each, in bytes

    @property
    def largest(self) -> int:
        return max(self.by_operation.values())

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {
            id(leaf.untyped_storage())
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, torch.Tensor)
        }
        name = func.overloadpacket.__name__
        for leaf in tree_leaves(made):
            if not isinstance(leaf, torch.Tensor) or func.is_view:
                continue
            if id(leaf.untyped_storage()) not in given:
                num_bytes = math.prod(leaf.shape) * leaf.itemsize
                self.by_operation[name] = max(self.by_operation.get(name, 0), num_bytes)
        return made


@pytest.fixture
def on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a model without memory pass, and prompts go the way they go on a GPU."""
    monkeypatch.setattr(decoder, "_check_placement", lambda model: None)
    monkeypatch.setattr(prompt, "takes_flash", lambda *facts: True)


def make_runner(recorder: GraphRecorder | None = None, num_rows: int = ROWS) -> ModelRunner:
    shape = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=2,  # of 32; each allocates what the next one does
        num_attention_heads=32,
        vocab_size=VOCAB,
        max_position_embeddings=LENGTH,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16)
    sizes = EngineConfig(
        max_num_seqs=num_rows,
        max_num_batched_tokens=LENGTH,
        max_model_len=LENGTH,
        num_blocks=num_rows * LENGTH // BLOCK,
    )
    path = ExecutionPath(step_kernels("torch"), recorder, is_overlapped=True)
    return ModelRunner(model, sizes, path)


def starts(num_rows: int) -> tuple[SlotStart, ...]:
    per_row = LENGTH // BLOCK
    return tuple(
        SlotStart(
            row, row, GREEDY, 0, (1,) * 8, (), tuple(range(row * per_row, (row + 1) * per_row))
        )
        for row in range(num_rows)
    )


def decodes(num_rows: int, position: int) -> ScheduledBatch:
    rows = tuple(range(num_rows))
    return ScheduledBatch(Decodes(rows, rows, (position,) * num_rows), (), starts(num_rows))


def chunk(start: int, num_tokens: int) -> ScheduledBatch:
    tokens = ScheduledChunk(0, 0, start, (1,) * num_tokens, 1)
    return ScheduledBatch(Decodes(), (tokens,), starts(1))


@pytest.mark.usefixtures("on_meta")
@pytest.mark.parametrize("is_recorded", [False, True], ids=["eager", "recorded"])
def test_a_decode_step_makes_nothing_as_large_as_its_rows_times_what_they_see(
    monkeypatch: pytest.MonkeyPatch, *, is_recorded: bool
):
    monkeypatch.setattr(decode_graphs, "ROW_BUCKETS", (ROWS,))  # the others take long
    runner = make_runner(ReplayedRecorder() if is_recorded else None)
    with Allocations() as made:
        runner.launch(decodes(ROWS, LENGTH - 2))
    assert made.largest <= MAX_REFERENCE_BYTES  # what the kernel's reference reads at once
    assert made.largest * 20 < PADDED_BYTES
    # And beside what stands for the kernel, logits are the largest.
    others = {name: size for name, size in made.by_operation.items() if size > ROWS * VOCAB * 4}
    assert others.keys() <= {"index_select", "_to_copy", "masked_fill", "bmm", "mul", "clone"}
    if is_recorded:
        assert runner._graphs is not None
        assert runner._graphs.num_replays.total() == 1


@pytest.mark.usefixtures("on_meta")
def test_a_first_chunk_makes_what_its_widest_product_gives_and_no_more():
    runner = make_runner(num_rows=1)
    with Allocations() as made:
        runner.launch(chunk(0, LENGTH))
    assert made.largest == LENGTH * 2 * INTERMEDIATE * 2


@pytest.mark.usefixtures("on_meta")
def test_an_onward_chunk_gathers_its_own_prefix_once_a_layer():
    runner = make_runner(num_rows=1)
    with Allocations() as made:
        runner.launch(chunk(LENGTH // 2, 256))
    seen = LENGTH // 2 + 256
    assert made.by_operation["index_select"] == seen * 2 * HIDDEN * 2
    assert made.largest == made.by_operation["index_select"]
