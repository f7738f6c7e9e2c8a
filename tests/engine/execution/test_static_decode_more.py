"""Every family on a GPU's path: known ones in the engine's layers, others in Transformers'."""

from __future__ import annotations

import pytest
import torch

from engine.execution.model_runner import ModelRunner
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

NUM_TOKENS = 12


@pytest.mark.parametrize("family", FUSED | UNFUSED)
def test_answers_are_those_of_generate_and_a_step_does_nothing_that_a_graph_cannot_hold(
    family: str,
):
    model = make_model((FUSED | UNFUSED)[family])
    prompts = make_prompts(5, 19)
    wanted = [generate(model, prompt, NUM_TOKENS) for prompt in prompts]
    engine = make_engine(model, enforce_eager=False, max_num_seqs=2, num_blocks=16)
    params = SamplingParams(max_tokens=NUM_TOKENS, temperature=0)
    assert run_engine(engine, [(prompt, params) for prompt in prompts]) == wanted

    assert isinstance(engine._runner, ModelRunner)
    graphs = engine._runner._graphs
    assert graphs is not None
    # The first token of each is its prompt's; one step is recorded, and replayed for the others.
    assert graphs.num_replays.total() == NUM_TOKENS - 1
    (key,) = {key for _, key in graphs.num_replays}
    step = graphs._steps[2]
    with torch.inference_mode():
        step.fill([0, 1], [5, 19])
        with NothingForTheHost():
            step.run(key)
