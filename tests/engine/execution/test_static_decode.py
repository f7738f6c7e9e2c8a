from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.config import KVDtype
from engine.execution.model_runner import ModelRunner
from engine.execution.static_decode import StaticDecode, row_bucket
from engine.sampling.row_plan import plan_key
from engine.sampling_params import SamplingParams
from tests.engine.graph_guard import NothingForTheHost
from tests.engine.tiny_models import (
    FUSED,
    UNFUSED,
    generate,
    make_engine,
    make_model,
    make_prompts,
    run_engine,
)

GREEDY = SamplingParams(max_tokens=40, temperature=0)
MIXED = [
    GREEDY,
    SamplingParams(max_tokens=40, temperature=1.0, seed=3, top_p=0.8, logprobs=2),
    SamplingParams(max_tokens=40, temperature=0.7, seed=4, top_k=20, frequency_penalty=0.5),
    SamplingParams(max_tokens=40, temperature=0, repetition_penalty=1.3, min_tokens=9),
    SamplingParams(max_tokens=40, temperature=1.2, seed=5, typical_p=0.6, min_p=0.01),
]


def test_shapes_hold_what_they_are_asked_for_and_little_more():
    for num_rows in range(1, 600):
        assert num_rows <= row_bucket(num_rows) <= max(num_rows + 63, 4 * num_rows / 3)


@pytest.mark.parametrize("family", ["llama", "mistral with a window", "qwen3, tied", "phi"])
def test_answers_are_those_of_generate(family: str):
    config = (FUSED | UNFUSED)[family]
    prompts = make_prompts(1, 5, 16, 40, 70)
    model = make_model(config)
    wanted = [generate(model, prompt, GREEDY.max_tokens) for prompt in prompts]
    engine = make_engine(model, enforce_eager=False)
    assert run_engine(engine, [(prompt, GREEDY) for prompt in prompts]) == wanted
    assert isinstance(engine._runner, ModelRunner)
    assert engine._runner._graphs is not None
    shapes = {num_rows for num_rows, _ in engine._runner._graphs.num_replays}
    assert shapes == {6}  # five rows, padded


def test_any_settings_give_what_they_give_eagerly():
    requests = list(zip(make_prompts(3, 20, 33, 8, 15), MIXED, strict=True))
    eager = run_engine(make_engine(make_model(FUSED["llama"])), requests)
    static = run_engine(make_engine(make_model(FUSED["llama"]), enforce_eager=False), requests)
    assert static == eager


def step_of(**changes: Any) -> StaticDecode:
    """The shape that an engine used while it ran mixed requests of several lengths."""
    engine = make_engine(make_model(FUSED["llama"]), enforce_eager=False, **changes)
    run_engine(engine, list(zip(make_prompts(3, 20, 33, 8, 15), MIXED, strict=True)))
    assert isinstance(engine._runner, ModelRunner)
    assert engine._runner._graphs is not None
    return engine._runner._graphs._steps[6]


@pytest.mark.parametrize("kv_dtype", KVDtype)
@torch.inference_mode()
def test_a_step_does_nothing_that_a_graph_cannot_hold(kv_dtype: KVDtype):
    """No waiting for the device, no shapes made of data, no memory made of the host's numbers."""
    step = step_of(kv_dtype=kv_dtype)
    sampling = step._sampling
    step.fill([0, 1, 2], [5, 9, 7])
    keys = {sampling_key(sampling, slots) for slots in ([0], [1, 2], [0, 1, 2, 3, 4])}
    assert len(keys) == 3
    for key in keys:
        with NothingForTheHost():
            step.run(key)


def sampling_key(sampling: Any, slots: list[int]) -> Any:
    return plan_key(sampling, slots, [9] * len(slots))


@torch.inference_mode()
def test_running_a_step_again_reads_nothing_but_its_buffers_and_slots():
    """As the replay of a graph would: same tensors, other numbers in them."""
    step = step_of()
    pointers = [step._slots.data_ptr(), step._positions.data_ptr()]
    step.fill([4, 2], [11, 30])
    step.run(sampling_key(step._sampling, [4, 2]))
    step.fill([1], [3])
    assert step._slots.tolist() == [1] + [step._padding_slot] * (step.num_rows - 1)
    assert [step._slots.data_ptr(), step._positions.data_ptr()] == pointers
