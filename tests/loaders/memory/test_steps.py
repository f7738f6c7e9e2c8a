"""What steps on a GPU hold: formulas, and what the engine makes on the meta device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.attention.prompt import prompt_bytes
from engine.execution.decode_graphs import COMMON_PLANS, DecodeGraphs
from engine.execution.host_ring import DirectMemory
from engine.execution.static_decode import row_bucket
from engine.kernels.paged_decode import split_buffer_bytes
from engine.sampling.row_plan import PlanKey, SamplingPlan
from engine.sampling.sampler import sample
from engine.sampling.state import Need, SamplingState
from loaders.checkpoint.shape import ModelShape, read_shape
from loaders.memory import steps
from tests.live_bytes import LiveBytes
from tests.published import CODELLAMA_7B, CODELLAMA_70B

META = torch.device("meta")
ROWS, VOCAB = 32, 32_000
SHAPE_7B, SHAPE_70B = read_shape(CODELLAMA_7B.config()), read_shape(CODELLAMA_70B.config())
EVERYTHING = ~Need(0)
DRAWN = Need.SAMPLE | Need.LEADING


def small_shape(**sizes: int) -> ModelShape:
    usual = {
        "hidden_size": 64,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 16,
        "intermediate_size": 128,
        "vocab_size": VOCAB,
        "max_context": 512,
    }
    return ModelShape(**{**usual, **sizes})


def peak_of_sampling(needs: Need, num_top: int | None) -> int:
    """Count what picking a token of each row takes, from the head's logits on."""
    state = SamplingState(max_num_seqs=ROWS, vocab_size=VOCAB, device=META, is_graph_safe=True)
    state.reserve(needs)
    numbers = torch.zeros(ROWS, dtype=torch.int64, device=META)
    plan = SamplingPlan(PlanKey(needs, num_top), numbers, numbers)
    with LiveBytes() as live, torch.inference_mode():
        sample(torch.empty(ROWS, VOCAB, dtype=torch.float16, device=META).float(), plan, state)
    return live.peak


def test_what_is_let_go_no_longer_counts():
    with LiveBytes() as live:
        kept = torch.empty(1000, dtype=torch.uint8, device=META)
        view = kept[:10].view(2, 5)
        del kept
        assert live.held == 1000
        del view
        torch.empty(300, dtype=torch.uint8, device=META)
    assert (live.held, live.peak) == (0, 1000)


@pytest.mark.parametrize(
    ("needs", "num_top"), [(Need(0), None), (Need(0), 5), (DRAWN, None), (EVERYTHING, 20)]
)
def test_picking_tokens_takes_no_more_than_the_formula_says(needs, num_top):
    assert peak_of_sampling(needs, num_top) <= steps.sampling_bytes(small_shape(), ROWS)


def test_with_every_setting_in_use_it_takes_nearly_all_of_that():
    assert peak_of_sampling(EVERYTHING, 20) > 0.98 * steps.sampling_bytes(small_shape(), ROWS)


def test_the_slots_tables_are_those_that_sampling_makes():
    state = SamplingState(max_num_seqs=ROWS, vocab_size=VOCAB, device=META)
    state.reserve(EVERYTHING)
    tables = (state.logit_offsets, state.is_end, state.counts, state.is_in_prompt)
    assert steps.slot_bytes(small_shape(), ROWS) == sum(table.nbytes for table in tables)


@pytest.mark.parametrize("max_num_seqs", [1, 5, 32, 33, 256, 257, 700])
def test_graphs_are_planned_for_the_steps_that_are_recorded_at_the_start(max_num_seqs):
    sampling = SamplingState(max_num_seqs=1, vocab_size=8, device=META)
    graphs = DecodeGraphs(no_step, no_step, sampling, DirectMemory(), max_num_seqs=max_num_seqs)
    assert steps.graph_rows(max_num_seqs) == graphs.sizes
    assert len(COMMON_PLANS) == steps.PLANS_A_SHAPE
    recorded = max_num_seqs if max_num_seqs <= 256 else 256  # more rows run as they come
    assert graphs.sizes[-1] == row_bucket(recorded)


def no_step(*_: Any) -> Any:
    raise AssertionError("nothing is to be run")


def test_the_steps_recorded_at_the_start_take_less_for_sampling_than_any_may():
    made = max(peak_of_sampling(plan.needs, plan.num_top) for plan in COMMON_PLANS)
    counted = steps.START_SAMPLING_BYTES * ROWS * VOCAB
    assert 0.98 * counted < made <= counted


def test_what_lies_between_the_layers_of_7b():
    assert steps.layer_bytes(SHAPE_7B, 2048, 1) == 2048 * (
        2 * (4 * 4096 + 4096 + 3 * 11008)  # the half with gate and up is the larger one
        + 32  # ids, positions, places
    )
    # A decode step samples from every row: the last layer's rows have a residual of their own.
    assert steps.layer_bytes(SHAPE_7B, 8, 8) == 8 * (2 * (5 * 4096 + 4096 + 3 * 11008) + 32)
    narrow = small_shape(intermediate_size=16)
    assert steps.layer_bytes(narrow, 10, 1) == 10 * (2 * (2 * 64 + 3 * 64 + 2 * 32) + 32)


def test_split_attention_keeps_parts_only_where_tokens_are_shared_out():
    # One row of 32 heads: 528 programs wanted, 17 a head; each leaves 128 numbers and two sums.
    assert steps.split_bytes(SHAPE_7B, 1, 4096) == 32 * 17 * 130 * 4
    assert steps.split_bytes(SHAPE_7B, 32, 4096) == 0  # 1 024 programs without
    assert steps.split_bytes(SHAPE_7B, 1, 64) == 0  # no program takes less than 64 tokens
    # Eight queries of 70B share a key: eight tiles a row, of which 66 splits were wanted.
    assert steps.split_bytes(SHAPE_70B, 1, 16384) == 64 * 32 * 130 * 4


@pytest.mark.parametrize("shape", [SHAPE_7B, SHAPE_70B], ids=["7b", "70b"])
@pytest.mark.parametrize("rows", [1, 3, 32, 256])
@pytest.mark.parametrize("context", [64, 1000, 16384])
def test_attention_shares_out_its_work_as_is_counted(shape, rows, context):
    heads = (shape.num_heads, shape.num_kv_heads, shape.head_dim)
    for processors in (8, 108, 132):
        made = split_buffer_bytes(rows, *heads, context, processors)
        assert steps.split_bytes(shape, rows, context, processors) == made


@pytest.mark.parametrize("users", [1, 4, 32])
@pytest.mark.parametrize("context", [100, 4096, 100_000])
def test_prompts_gather_what_is_counted(users, context):
    token_bytes = 2 * 2 * SHAPE_7B.num_kv_heads * SHAPE_7B.head_dim
    made = prompt_bytes(token_bytes, max_model_len=context, max_num_seqs=users)
    assert steps.prefix_bytes(SHAPE_7B, context, users) == made


def test_graphs_share_the_memory_of_the_largest_step():
    sampling = steps.sampling_bytes(SHAPE_7B, 32)
    assert steps.pool_bytes(SHAPE_7B, 32, 4096) == sampling
    without_head = steps.pool_bytes(SHAPE_7B, 32, 4096, has_logits=False)
    most_split = max(steps.split_bytes(SHAPE_7B, rows, 4096) for rows in range(1, 33))
    assert without_head >= steps.layer_bytes(SHAPE_7B, 32, 32) + most_split
    assert without_head < sampling


def test_what_the_driver_keeps_of_graphs_follows_layers_and_rows():
    assert steps.launch_bytes(32, 32) == 10 * 2 * (32 * 10 + 120) * 16 * 1024
    assert steps.launch_bytes(32, 1) == steps.launch_bytes(32, 32) // 10
