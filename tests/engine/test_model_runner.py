from __future__ import annotations

import asyncio

import pytest
import torch
from torch import nn

from engine.batch import ScheduledBatch, ScheduledDecode, ScheduledPrefill
from engine.client import EngineClient
from engine.config import EngineConfig
from engine.errors import UnsupportedModelError
from engine.model_runner import ModelRunner
from engine.sampling_params import SamplingParams
from tests.engine.tiny_models import FUSED, generate, make_engine, make_model, make_prompts

GREEDY = SamplingParams(max_tokens=12, temperature=0)


def make_runner(model: object) -> ModelRunner:
    sizes = EngineConfig(max_num_seqs=2, max_num_batched_tokens=64, max_model_len=64, num_blocks=8)
    return ModelRunner(model, sizes)  # type: ignore[arg-type]


def test_a_step_can_be_launched_before_the_one_before_it_is_read():
    """Its input token is taken from the slot, where the step before leaves it."""
    model = make_model(FUSED["llama"])
    (prompt,) = make_prompts(5)
    wanted = generate(model, prompt, 3)
    runner = make_runner(model)
    table = (4, 1)
    steps = [
        runner.launch(
            ScheduledBatch((), (ScheduledPrefill(7, 1, tuple(prompt), table, GREEDY, 0),))
        )
    ]
    for position in (5, 6):
        decode = ScheduledDecode(7, 1, position, table, GREEDY, 0)
        steps.append(runner.launch(ScheduledBatch((decode,), ())))
    assert [step.result().token_ids for step in steps] == [{7: (token,)} for token in wanted]


def test_every_sequence_gets_its_own_token_however_the_rows_are_ordered():
    model = make_model(FUSED["llama"])
    prompts = dict(enumerate(make_prompts(3, 9)))
    wanted = {i: generate(model, prompt, 2) for i, prompt in prompts.items()}
    runner = make_runner(model)
    tables = {0: (0,), 1: (1,)}
    prefills = [ScheduledPrefill(i, i, tuple(prompts[i]), tables[i], GREEDY, 0) for i in (0, 1)]
    first = runner.launch(ScheduledBatch((), tuple(prefills))).result()
    decodes = [ScheduledDecode(i, i, len(prompts[i]), tables[i], GREEDY, 0) for i in (0, 1)]
    second = runner.launch(ScheduledBatch(tuple(decodes), ())).result()
    for i in (0, 1):
        assert [*first.token_ids[i], *second.token_ids[i]] == wanted[i]


def test_a_head_wider_than_the_embedding_is_refused():
    model = make_model(FUSED["llama"])
    model.lm_head = nn.Linear(64, 400, bias=False)
    batch = ScheduledBatch((), (ScheduledPrefill(0, 0, (1,), (0,), GREEDY, 0),))
    step = make_runner(model).launch(batch)
    with pytest.raises(UnsupportedModelError, match="400 logits, its embedding has 311 rows"):
        step.result()


def test_a_model_runs_in_the_clients_thread():
    model = make_model(FUSED["llama"])
    prompts = make_prompts(3, 17, 40)
    wanted = [generate(model, prompt, GREEDY.max_tokens) for prompt in prompts]

    async def answer(prompt: list[int]) -> list[int]:
        return [output.token_id async for output in client.generate(prompt, GREEDY)]

    async def answers() -> list[list[int]]:
        return await asyncio.gather(*map(answer, prompts))

    num_threads = torch.get_num_threads()
    client = EngineClient(make_engine(model))
    client.start()
    try:
        assert asyncio.run(answers()) == wanted
    finally:
        client.stop()
    assert torch.get_num_threads() == num_threads
